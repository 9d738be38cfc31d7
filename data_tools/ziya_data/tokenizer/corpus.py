"""Reads texts from files and counts their characters."""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

SUFFIXES = (".txt", ".jsonl")
PACKED = (".gz", ".zst")
CODE_POINTS = 0x110000
BATCH_CHARACTERS = 1_000_000
"""Enough to keep NumPy and sentencepiece's threads busy, little enough to stay in cache and out of memory's way."""


def corpus_files(paths: Sequence[Path]) -> list[Path]:
    """The text files among `paths`, folders opened one level, sorted by name.

    Raises FileNotFoundError for a missing path, ValueError for a file of another kind or a folder without texts.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if _is_text(file))
            if not inside:
                raise ValueError(f"{path} holds no .txt or .jsonl file (plain, .gz or .zst); give one that does")
            files.extend(inside)
        elif not path.exists():
            raise FileNotFoundError(f"no file {path}; give .txt or .jsonl files (plain, .gz or .zst)")
        elif not _is_text(path):
            raise ValueError(f"{path} is neither .txt nor .jsonl (plain, .gz or .zst); rename or convert it")
        else:
            files.append(path)
    return files


def _is_text(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix in PACKED else path
    return name.suffix in SUFFIXES


def read_texts(path: Path) -> Iterator[str]:
    """The texts of one file: the lines of a .txt file, the `text` of each line of a .jsonl file.

    Raises ValueError, with the line's number, where a line is not UTF-8 or not such an object.
    """
    json_lines = ".jsonl" in path.suffixes[-2:]
    number = 0
    try:
        with _open(path) as lines:
            for number, line in enumerate(lines, 1):
                if not json_lines:
                    yield line.rstrip("\r\n")
                elif line.strip():
                    yield _text_of(line, path, number)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, after line {number}: not UTF-8 ({error.reason}); convert the file") from None
    except (EOFError, OSError, zlib.error) as error:
        if path.suffix not in PACKED:
            raise
        raise ValueError(f"{path}, after line {number}: broken {path.suffix} ({error}); get the file again") from None


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    if path.suffix == ".zst":
        # pyarrow, because the package zstandard ends silently where a file is cut off or its first frame is over.
        import pyarrow

        packed = pyarrow.input_stream(path, compression="zstd")
        return io.TextIOWrapper(packed, encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")


def _text_of(line: str, path: Path, number: int) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error.msg}); each line is an object with a text") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError(f"{path}, line {number}: no 'text'; each line is an object with a text")
    return record["text"]


def batches(texts: Iterable[str], characters: int = BATCH_CHARACTERS) -> Iterator[list[str]]:
    """The texts in order, in lists of about `characters` characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def count_characters(paths: Sequence[Path]) -> np.ndarray:
    """How often each code point occurs in the files' texts: int64 [0x110000].

    Lone surrogates that JSON escapes let through are counted like the rest; no caller takes them for a character.
    """
    counts = np.zeros(CODE_POINTS, np.int64)
    for path in paths:
        for batch in batches(read_texts(path)):
            points = np.frombuffer("".join(batch).encode("utf-32-le", "surrogatepass"), np.uint32)
            counts += np.bincount(points, minlength=CODE_POINTS)
    return counts
