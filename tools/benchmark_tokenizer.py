"""Megabytes of text a CPU second: `Tokenizer` (gigatoken behind a guard), sentencepiece, gigatoken alone, tokenizers.

Every encoder reads the same texts by turns in one process, on one thread, each text once, since gigatoken remembers
what it has seen; MB are 10^6 bytes of UTF-8. Each encoder's ids are compared, text by text, with those of the library
that decides: sentencepiece, for byte-level BPE tokenizers.
"array" is what `ziya index build` takes; the others make Python lists. "jsonl.zst to .bin" is `ziya index build` as a
whole on one process, from a compressed file to a dataset on the disk, with the vocabulary loaded; what that takes
stands above the table. Where tokenizers and gigatoken differ, they read a control token that is written out in a text
(`<s>`) as the token itself.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import gigatoken
import zstandard
from machine import here

from ziya_data.indexed.build import build, load_tokenizer
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.tokenizer import Tokenizer
from ziya_data.tokenizer.corpus import read_texts
from ziya_data.tokenizer.tokenizer import rows

EXAMPLE = """example:
  python tools/benchmark_tokenizer.py --tokenizer plain=runs/demo/tokenizer/llama expanded=runs/demo/tokenizer/ziya \\
      --text zh=runs/demo/raw/news_zh.jsonl.zst en=runs/demo/raw/books_en.jsonl.zst code=runs/demo/raw/code.jsonl.zst"""
Encode = Callable[[list[str]], object]


def encoders(folder: Path, file: Path) -> dict[str, Encode]:
    """Name -> encoder of the tokenizer in `folder`; file: the texts as jsonl.zst.

    The library that decides comes third. Raises ValueError where gigatoken is not used for it.
    """
    ours, lists = Tokenizer.load(folder), Tokenizer.load(folder)
    if ours.slow_because:
        raise ValueError(f"{folder}: the library encodes for us, there is nothing to compare: {ours.slow_because}")
    found: dict[str, Encode] = {
        "ours, array": lambda texts: ours.encode_arrays([text.encode() for text in texts]),
        "ours, lists": lambda texts: lists.encode_batch(texts, threads=1),
    }
    sentencepiece_model = folder / "tokenizer.model"
    if sentencepiece_model.is_file():
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
        found["sentencepiece"] = lambda texts: processor.encode(texts, num_threads=1)
    if find_spec("tokenizers") and (folder / "tokenizer.json").is_file():
        import tokenizers

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        theirs.encode_special_tokens = not sentencepiece_model.is_file()  # as a decider: `<s>` in a text is text
        found["tokenizers"] = lambda texts: [
            made.ids for made in theirs.encode_batch_fast(texts, add_special_tokens=False)
        ]
    if sentencepiece_model.is_file():
        giga = gigatoken.Tokenizer.from_sentencepiece(str(sentencepiece_model))
        found["gigatoken alone"] = lambda texts: [giga.encode(text) for text in texts]

    def to_bin(_: list[str]) -> IndexedDataset:
        build([file], str(file.with_name("built")), folder)
        return IndexedDataset(file.with_name("built"))

    load_tokenizer(folder)
    found["jsonl.zst to .bin"] = to_bin
    return found


def differing(found: object, expected: Sequence[Sequence[int]]) -> int:
    """How many texts have other ids than `expected`."""
    if isinstance(found, IndexedDataset):
        found = [document[:-1].tolist() for document in found]
    if isinstance(found, tuple):
        found = rows(*found)
    assert isinstance(found, list) and len(found) == len(expected)
    return sum(list(ids) != list(wanted) for ids, wanted in zip(found, expected, strict=True))


def measured(folder: Path, parts: list[list[str]], file: Path) -> list[tuple[str, float, float, int]]:
    """(encoder, median MB a CPU second over the parts, best, texts with other ids than the library's) of each.

    file: where each part is written as jsonl.zst.
    """
    all_of_them = encoders(folder, file)
    rates: dict[str, list[float]] = {name: [] for name in all_of_them}
    wrong = dict.fromkeys(all_of_them, 0)
    for part in parts:
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part)
        file.write_bytes(zstandard.compress(lines.encode()))
        megabytes = sum(len(text.encode()) for text in part) / 1e6
        found: dict[str, object] = {}
        for name, encode in all_of_them.items():
            begin = time.process_time()
            found[name] = encode(part)
            rates[name].append(megabytes / (time.process_time() - begin))
        expected = found[list(found)[2]]
        assert isinstance(expected, list)
        for name, ids in found.items():
            wrong[name] += differing(ids, expected)
    return [(name, statistics.median(found), max(found), wrong[name]) for name, found in rates.items()]


def loading(folder: Path, rounds: int) -> float:
    """CPU seconds of loading a vocabulary and checking that gigatoken reads it right, the least of some rounds."""
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        Tokenizer.load(folder)
        found.append(time.process_time() - begin)
    return min(found)


def texts_of(path: Path, megabytes: float, parts: int) -> list[list[str]]:
    """The first texts of a file, in so many parts, each of `megabytes`. Raises ValueError where there are fewer."""
    found: list[list[str]] = [[]]
    left = megabytes * 1e6
    for text in filter(None, read_texts(path)):  # an empty one is no document
        if left <= 0:
            if len(found) == parts:
                break
            found.append([])
            left = megabytes * 1e6
        found[-1].append(text)
        left -= len(text.encode())
    if len(found) < parts or left > 0:
        raise ValueError(f"{path} has no {parts} x {megabytes:g} MB of text; lower --rounds or --megabytes")
    return found


def page(given: argparse.Namespace, command: str) -> str:
    """The table as Markdown; command: what was typed."""
    packages = [name for name in ("sentencepiece", "tokenizers", "gigatoken") if find_spec(name)]
    before, begin = os.getloadavg()[0], here()
    texts = {name: texts_of(path, given.megabytes, given.rounds) for name, path in given.text}
    lines = ["| pieces | text | encoder | MB a CPU second | best | times the library | texts with other ids |"]
    lines.append("|---|---|---|---|---|---|---|")
    loads = []
    for label, folder in given.tokenizer:
        pieces = f"{label}, {Tokenizer.load(folder).vocab_size:,}"
        loads.append(f"{label} {loading(folder, given.rounds):.2f} s")
        for language, parts in texts.items():
            with tempfile.TemporaryDirectory() as private:
                results = measured(folder, parts, Path(private) / "texts.jsonl.zst")
            base = results[2][1]
            for name, median, best, wrong in results:
                cells = [pieces, language, name, f"{median:.1f}", f"{best:.1f}", f"{median / base:.1f}"]
                lines.append("| " + " | ".join([*cells, f"{wrong:,} of {sum(map(len, parts)):,}"]) + " |")
            print(f"{label} {language}: done", file=sys.stderr)
    sizes = [
        f"{name} {sum(len(text.encode()) for part in parts for text in part) / 1e6:.1f} MB in "
        f"{sum(map(len, parts)):,} texts"
        for name, parts in texts.items()
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    head = (
        f"{begin}, load average {before:.1f} before and {os.getloadavg()[0]:.1f} after; {versions}. "
        f"Median and best of {given.rounds} parts, one thread. Texts: {'; '.join(sizes)}. "
        f"Loading the vocabulary, once a process, CPU seconds, the least: {', '.join(loads)}."
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
    parser.add_argument("--megabytes", type=float, default=3, help="of each part, about (default 3)")
    parser.add_argument("--rounds", type=int, default=4, help="parts of each text (default 4)")
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
