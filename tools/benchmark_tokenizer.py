"""Megabytes of text a CPU second: `Tokenizer` (gigatoken behind a guard), sentencepiece, gigatoken alone, tokenizers.

Every encoder reads the same texts by turns in one process, on one thread; MB are 10^6 bytes of UTF-8. Before the timing
each encoder's ids are compared with sentencepiece's, text by text. "array" is what `ziya index build` takes; the others
make Python lists. Where tokenizers and gigatoken differ, they read a control token that is written out in a text
(`<s>`) as the token itself.
"""

import argparse
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import gigatoken
from machine import here

from ziya_data.tokenizer import Tokenizer
from ziya_data.tokenizer.corpus import read_texts

EXAMPLE = """example:
  python tools/benchmark_tokenizer.py --tokenizer plain=runs/demo/tokenizer/llama expanded=runs/demo/tokenizer/ziya \\
      --text zh=runs/demo/raw/news_zh.jsonl.zst en=runs/demo/raw/books_en.jsonl.zst code=runs/demo/raw/code.jsonl.zst"""
Encode = Callable[[list[str]], object]


def encoders(folder: Path) -> dict[str, Encode]:
    """Name -> encoder of the tokenizer in `folder`. Raises ValueError where ours is not used for it."""
    import sentencepiece

    ours = Tokenizer.load(folder)
    if ours.slow_because:
        raise ValueError(f"{folder}: sentencepiece encodes for us, there is nothing to compare: {ours.slow_because}")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    found: dict[str, Encode] = {
        "ours, array": lambda texts: ours.encode_arrays([text.encode() for text in texts]),
        "ours, lists": lambda texts: ours.encode_batch(texts, threads=1),
        "sentencepiece": lambda texts: processor.encode(texts, num_threads=1),
    }
    if find_spec("tokenizers") and (folder / "tokenizer.json").is_file():
        import tokenizers

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        found["tokenizers"] = lambda texts: [
            made.ids for made in theirs.encode_batch_fast(texts, add_special_tokens=False)
        ]
    giga = gigatoken.Tokenizer.from_sentencepiece(str(folder / "tokenizer.model"))
    found["gigatoken alone"] = lambda texts: [giga.encode(text) for text in texts]
    return found


def differing(encode: Encode, expected: Sequence[Sequence[int]], texts: list[str]) -> int:
    """How many texts an encoder gives other ids than `expected`."""
    found = encode(texts)
    if isinstance(found, tuple):
        tokens, lengths = found
        flat = [token for ids in expected for token in ids]
        return 0 if tokens.tolist() == flat and lengths.tolist() == [len(ids) for ids in expected] else len(texts)
    assert isinstance(found, list)
    return sum(list(ids) != list(wanted) for ids, wanted in zip(found, expected, strict=True))


def measured(folder: Path, texts: list[str], rounds: int) -> list[tuple[str, float, float, int]]:
    """(encoder, median MB a CPU second, best, texts with other ids than sentencepiece's) of each."""
    all_of_them = encoders(folder)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    expected = all_of_them["sentencepiece"](texts)
    assert isinstance(expected, list)
    wrong = {name: differing(encode, expected, texts) for name, encode in all_of_them.items()}
    rates: dict[str, list[float]] = {name: [] for name in all_of_them}
    for _ in range(rounds):
        for name, encode in all_of_them.items():
            begin = time.process_time()
            encode(texts)
            rates[name].append(megabytes / (time.process_time() - begin))
    return [(name, statistics.median(found), max(found), wrong[name]) for name, found in rates.items()]


def texts_of(path: Path, megabytes: float) -> list[str]:
    """The first texts of a file, so many that they hold `megabytes`."""
    texts: list[str] = []
    left = megabytes * 1e6
    for text in read_texts(path):
        texts.append(text)
        left -= len(text.encode())
        if left <= 0:
            break
    return texts


def page(given: argparse.Namespace, command: str) -> str:
    """The table as Markdown; command: what was typed."""
    packages = [name for name in ("sentencepiece", "tokenizers", "gigatoken") if find_spec(name)]
    before, begin = os.getloadavg()[0], here()
    texts = {name: texts_of(path, given.megabytes) for name, path in given.text}
    lines = ["| pieces | text | encoder | MB a CPU second | best | times sentencepiece | texts with other ids |"]
    lines.append("|---|---|---|---|---|---|---|")
    for label, folder in given.tokenizer:
        pieces = f"{label}, {Tokenizer.load(folder).vocab_size:,}"
        for language, some in texts.items():
            rows = measured(folder, some, given.rounds)
            base = next(median for name, median, _, _ in rows if name == "sentencepiece")
            for name, median, best, wrong in rows:
                cells = [pieces, language, name, f"{median:.1f}", f"{best:.1f}", f"{median / base:.1f}"]
                lines.append("| " + " | ".join([*cells, f"{wrong:,} of {len(some):,}"]) + " |")
            print(f"{label} {language}: done", file=sys.stderr)
    sizes = [
        f"{name} {sum(len(text.encode()) for text in some) / 1e6:.1f} MB in {len(some):,} texts"
        for name, some in texts.items()
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    head = (
        f"{begin}, load average {before:.1f} before and {os.getloadavg()[0]:.1f} after; {versions}. "
        f"Median and best of {given.rounds} rounds by turns, one thread. Texts: {'; '.join(sizes)}."
    )
    typed = f"`{command}`"
    return "\n".join(["# Text to tokens", "", typed, "", " ".join(__doc__.split()), "", head, "", *lines, ""])


def named(argument: str) -> tuple[str, Path]:
    """NAME=PATH. Raises ArgumentTypeError."""
    name, equals, path = argument.partition("=")
    if not name or not equals or not path:
        raise argparse.ArgumentTypeError(f"{argument!r} is not NAME=PATH")
    return name, Path(path)


def main(argv: list[str] | None = None) -> int:
    """Prints the page and writes it where `--markdown` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=named, nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--text", type=named, nargs="+", required=True, metavar="LANGUAGE=FILE", help=".jsonl or .txt")
    parser.add_argument("--megabytes", type=float, default=4, help="of each text at most, about (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each encoder (default 5)")
    parser.add_argument("--markdown", type=Path, help="write the page here as well")
    given = parser.parse_args(argv)
    try:
        words = sys.argv[1:] if argv is None else argv
        shown = page(given, shlex.join(["python", "tools/benchmark_tokenizer.py", *words]))
    except (ValueError, OSError) as error:
        print(f"benchmark_tokenizer: {error}", file=sys.stderr)
        return 2
    print(shown)
    if given.markdown:
        given.markdown.write_text(shown, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
