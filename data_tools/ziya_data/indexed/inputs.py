"""The text files a dataset is built from, read in batches of bounded size and in order.

Kinds by suffix: .jsonl, .jsonl.gz, .jsonl.zst (one JSON object a line, its text under "text"), .parquet (a column
"text"), .txt (the whole file is one document). A folder stands for all such files directly in it, in order of name.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
BATCH_BYTES = 1 << 20  # large enough to hide the hand-over to another process, small enough to hold many
READ_BYTES = 1 << 14  # of a compressed file; what comes of 64 KiB outgrows zstandard's buffer, at twice the time
TXT_LIMIT = 1 << 30  # bytes; a .txt is read whole


@dataclass(slots=True)
class Batch:
    """Records that follow each other in one file."""

    path: str
    first: int
    """Number of the first record (line, row), from 1."""
    records: list[bytes | str | None] = field(default_factory=list)
    """bytes: a line of JSON. str: a text. None: a row of parquet without one."""
    size: int = 0
    """Bytes, or characters, in all."""


def expand(inputs: Sequence[str | Path]) -> list[Path]:
    """The files that `inputs` (files and folders) stand for. Raises FileNotFoundError or ValueError."""
    found: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
            if not inside:
                raise ValueError(f"folder {path} holds no file to read; known are {', '.join(SUFFIXES)}")
            found += inside
        elif not path.exists():
            raise FileNotFoundError(f"{path} not found; check --input")
        elif not path.name.endswith(SUFFIXES):
            raise ValueError(f"{path} is of no known kind; known are {', '.join(SUFFIXES)}")
        else:
            found.append(path)
    seen = set()
    for path in found:
        if path.resolve() in seen:
            raise ValueError(f"{path} is given twice; give it once (a weight in the mix repeats data)")
        seen.add(path.resolve())
    return found


def batches(path: Path) -> Iterator[Batch]:
    """The records of one file. Raises ValueError for a file that is damaged, OSError for one that cannot be read."""
    batch = Batch(str(path), 1)
    for number, record in enumerate(_records(path), start=1):
        batch.records.append(record)
        batch.size += len(record or b"")
        if batch.size >= BATCH_BYTES:
            yield batch
            batch = Batch(str(path), number + 1)
    if batch.records:
        yield batch


def _records(path: Path) -> Iterable[bytes | str | None]:
    if path.name.endswith(".parquet"):
        return _parquet_texts(path)
    if path.name.endswith(".txt"):
        return [_whole_text(path)]
    return _lines(path)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a .jsonl, compressed or not, without their ends."""
    unfinished: list[bytes] = []
    for chunk in _chunks(path):
        first, *rest = chunk.split(b"\n")
        unfinished.append(first)
        if rest:
            yield b"".join(unfinished)
            yield from rest[:-1]
            unfinished = [rest[-1]]
    if last := b"".join(unfinished):
        yield last


def _chunks(path: Path) -> Iterator[bytes]:
    if path.name.endswith(".zst"):
        yield from _zstandard_chunks(path)
        return
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); fetch or write it again") from error


def _zstandard_chunks(path: Path) -> Iterator[bytes]:
    """By hand, because zstandard's own reader takes a truncated file for a whole one."""
    import zstandard

    frame = None
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise ValueError(f"{path} is damaged ({error}); fetch or write it again") from error
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise ValueError(f"{path} is truncated: its last frame has no end; fetch or write it again")


def _parquet_texts(path: Path) -> Iterator[str | None]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        if "text" not in columns:
            raise ValueError(f'no column "text", it has {", ".join(columns)}; rename one')
        kind = file.schema_arrow.field("text").type
        if kind not in (pyarrow.string(), pyarrow.large_string()):
            raise ValueError(f'column "text" holds {kind}, it must hold strings')
        for rows in file.iter_batches(batch_size=256, columns=["text"]):
            yield from rows.column(0).to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _whole_text(path: Path) -> str:
    size = path.stat().st_size
    if size > TXT_LIMIT:
        raise ValueError(f"{path} has {size} bytes, a .txt is one document of at most {TXT_LIMIT}; make it a .jsonl")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
