"""Bits per character of held-out text, at once and after some steps, for each way to make rows for new characters.

A real model (--gguf) is widened with the characters of --text, once for each method of `ziya convert grow-vocabulary`,
for embedding and head apart; measured on --held-out, trained on --text, measured again. Every step is a `ziya` command
that is printed, so anyone can run it alone. Loss per token would hide what matters here, since the old vocabulary takes
more and easier tokens for the same text: bits per character do not.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import gguf_model
from machine import here

from megatron_ziya import cli
from megatron_ziya.faults import EXIT_LOST

EXAMPLE = """example:
  python tools/compare_rows.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --text zh.jsonl --held-out held_zh.jsonl"""
METHODS = ("mean", "rising", "falling", "frequency", "random", "zero")
PAIRS = [
    *((method, "mean") for method in METHODS),
    *(("mean", method) for method in (*METHODS[1:], "embedding")),
    ("rising", "falling"),
    ("random", "random"),
]
"""(embedding, head): one of them as it is by default, the other each way; then the best of both, and both at random."""


class Row(NamedTuple):
    """Of one way: bits per character."""

    embedding: str
    head: str
    before: float
    after: float


def ziya(*words: object, allowed: int = 0) -> int:
    """Runs a command of ours, shows it, gives back its exit code. Raises RuntimeError for one but 0 and `allowed`."""
    given = [str(word) for word in words]
    print(f"$ ziya {shlex.join(given)}", file=sys.stderr, flush=True)
    code = cli.main(given)
    if code not in (0, allowed):
        raise RuntimeError(f"ziya {shlex.join(given)}: exit code {code}")
    return code


def bits(model: Path, tokenizer: Path, given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Bits and tokens per character of the held-out text."""
    ziya("evaluate", "perplexity", "--model", model, "--tokenizer", tokenizer, "--text", f"zh={given.held_out}",
         "--sequence-length", given.sequence, "--max-characters", given.characters, "--threads", given.threads,
         "--dtype", "bfloat16", "--out", folder / "bits.json")  # fmt: skip
    found = json.loads((folder / "bits.json").read_text(encoding="utf-8"))["languages"]["zh"]
    return {"bits": found["bits_per_character"], "tokens": found["tokens"] / found["characters"]}


def recipe(given: argparse.Namespace, folder: Path, index: Path) -> Path:
    """The training recipe, the same for every way."""
    file = folder / "recipe.toml"
    file.write_text(
        f"""[run]
directory = "{folder}/run"
steps = {given.steps}
device = "cpu"
threads = {given.threads}
[model]
load = "{folder}/grown"
[data]
sequence_length = {given.sequence}
global_batch_size = {given.batch}
micro_batch_size = {given.batch}
sources = [{{ name = "zh", paths = ["{index}"] }}]
[optimizer]
learning_rate = {given.learning_rate}
minimum = {given.learning_rate / 10}
warmup = 0.1
[log]
every = {max(given.steps // 4, 1)}
report = false
tensorboard = false
""",
        encoding="utf-8",
    )
    return file


def measured(given: argparse.Namespace, folder: Path) -> tuple[dict[str, float], dict[str, float], list[Row]]:
    """What the old vocabulary takes at step 0, and after as many steps; and every way with the new one."""
    old, base, wide = folder / "model", folder / "base", folder / "wide"
    gguf_model.write(given.gguf, old)
    ziya("convert", "from-hf", old, base, "--skip-verify")
    ziya("tokenizer", "expand", "--base", old, "--corpus", given.text, "--count", given.count, "--out", wide)
    for tokenizer, index in (old, folder / "index_old"), (wide, folder / "index_wide"):
        ziya("index", "build", "--tokenizer", tokenizer, "--input", given.text, "--output", index)
    shutil.copytree(base, folder / "grown")
    before = bits(base, old, given, folder)
    narrow = {**before, "after": trained(given, folder, folder / "index_old", old)}
    rows: list[Row] = []
    wider: dict[str, float] = {}
    for embedding, head in given.pairs:
        begin = time.monotonic()
        ziya("convert", "grow-vocabulary", "--model", base, "--tokenizer", wide, "--out", folder / "grown",
             "--method", embedding, "--head-method", head)  # fmt: skip
        wider = bits(folder / "grown", wide, given, folder)
        rows.append(Row(embedding, head, wider["bits"], trained(given, folder, folder / "index_wide", wide)))
        print(f"{rows[-1]}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return narrow, wider, rows


def trained(given: argparse.Namespace, folder: Path, index: Path, tokenizer: Path) -> float:
    """Bits per character after training `grown`; NaN where no step is asked for, infinite where training gave up."""
    if not given.steps:
        return math.nan
    lost = ziya("train", recipe(given, folder, index), allowed=EXIT_LOST)
    found = math.inf if lost else bits(folder / "run", tokenizer, given, folder)["bits"]
    shutil.rmtree(folder / "run")
    return found


def page(given: argparse.Namespace, command: str) -> str:
    """The table as Markdown; command: what was typed."""
    load, begin = os.getloadavg()[0], time.monotonic()
    place = here()
    with tempfile.TemporaryDirectory(dir=given.folder) as private:
        narrow, wider, rows = measured(given, Path(private))
    after = f"after {given.steps} steps"
    lines = [f"| embedding rows | head rows | bits a character at step 0 | {after} |", "|---|---|---|---|"]
    lines.append(f"| the old vocabulary | | {narrow['bits']:.3f} | {narrow['after']:.3f} |")
    for row in rows:
        end = "no finite gradient" if math.isinf(row.after) else f"{row.after:.3f}"
        lines.append(f"| {row.embedding} | {row.head} | {row.before:.3f} | {end} |")
    minutes = (time.monotonic() - begin) / 60
    cpu = sum(os.times()[:4]) / 60  # of this process and those that it has waited for
    head = (
        f"{place}, load average {load:.1f} before and {os.getloadavg()[0]:.1f} after, {minutes:.0f} minutes, "
        f"{cpu:.0f} CPU minutes. "
        f"{given.gguf.name}; {given.count:,} characters asked for; {narrow['tokens']:.2f} tokens a character before, "
        f"{wider['tokens']:.2f} after. Held out: {given.characters:,} characters. Training: {given.steps} steps of "
        f"{given.batch} x {given.sequence} tokens, learning rate {given.learning_rate:g}, the same samples each time."
    )
    return "\n".join(["## New rows", "", f"`{command}`", "", head, "", *lines, ""])


def pair(argument: str) -> tuple[str, str]:
    """EMBEDDING:HEAD, two methods. Raises ArgumentTypeError."""
    embedding, _, head = argument.partition(":")
    if embedding not in METHODS or head not in (*METHODS, "embedding"):
        raise argparse.ArgumentTypeError(f"{argument!r} is not EMBEDDING:HEAD of {', '.join(METHODS)}; as mean:zero")
    return embedding, head


def main(argv: list[str] | None = None) -> int:
    """Prints the section and writes it where `--markdown` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, required=True, help="a LLaMA model of llama.cpp")
    parser.add_argument("--text", type=Path, required=True, help=".jsonl to take characters from and to train on")
    parser.add_argument("--held-out", type=Path, required=True, help=".jsonl to measure on")
    parser.add_argument("--pairs", type=pair, nargs="+", default=PAIRS, metavar="EMBEDDING:HEAD", help="default: all")
    parser.add_argument("--count", type=int, default=7400, help="characters to add (default 7400)")
    parser.add_argument("--characters", type=int, default=4000, help="of the held-out text (default 4000)")
    parser.add_argument("--steps", type=int, default=60, help="of training; 0: measure at once only (default 60)")
    parser.add_argument("--batch", type=int, default=2, help="sequences a step (default 2)")
    parser.add_argument("--sequence", type=int, default=128, help="tokens of a sequence (default 128)")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="(default 3e-4)")
    parser.add_argument("--threads", type=int, default=1, help="on a machine that is shared 1 is faster (default 1)")
    parser.add_argument("--folder", type=Path, help="for what is made on the way, some GB (default: the system's)")
    parser.add_argument("--markdown", type=Path, help="write the section here as well")
    given = parser.parse_args(argv)
    try:
        words = sys.argv[1:] if argv is None else argv
        shown = page(given, shlex.join(["python", "tools/compare_rows.py", *words]))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"compare_rows: {error}", file=sys.stderr)
        return 2
    print(shown)
    if given.markdown:
        given.markdown.write_text(shown, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
