"""Files of documents, written whole or not at all: JSON lines in zstd for the user, batches in zstd between steps."""

import io
import json
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import zstandard

from ziya_data.document import Document

ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # json.dumps makes one a record
PIECE = 1 << 20  # bytes handed to zstd at once: a line at a time takes half as long again
LEVEL = 3  # 1 is hardly faster here, 9 takes five times the time for a tenth of the bytes
BETWEEN = 1  # of files that are read once: three fifths of level 3's time
LENGTHS = struct.Struct("<qq")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives NAME.<32 hex digits>.tmp to write to and renames it to `path` when the block ends well.

    Two may write the same: a task of a cluster that was cancelled, or whose node was given up, may go on beside the one
    that does its work again. Hence the digits. What a killed writer leaves goes with OUT/work, or by `sweep`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes from a folder that nobody else writes to now what killed writers of `replacing` left in it."""
    for path in folder.glob("*.tmp"):
        if path.is_file() and re.search(r"\.[0-9a-f]{32}\.tmp$", path.name):
            path.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder; an older folder of that name gives way only at the end.

    Only the process that leads a run writes folders, so NAME.tmp is what a killed one left: it goes first, since it may
    be as large as the corpus.
    """
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def lines_out(path: Path) -> Iterator[IO[str]]:
    """A text file to write lines to, compressed when its name ends in .zst; appears under `path` when closed."""
    with replacing(path) as temporary:
        if path.suffix == ".zst":
            compressor = zstandard.ZstdCompressor(level=LEVEL)
            with (
                zstandard.open(temporary, "wb", cctx=compressor) as packed,
                io.TextIOWrapper(io.BufferedWriter(packed, PIECE), encoding="utf-8", newline="\n") as file,
            ):
                yield file
        else:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                yield file


def write_line(file: IO[str], record: dict[str, Any]) -> None:
    file.write(ENCODER.encode(record) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file that `lines_out` wrote, or of several such files one behind the other."""
    if path.suffix == ".zst":
        with zstandard.open(path, "rb") as packed:
            lines = io.TextIOWrapper(io.BufferedReader(packed, PIECE), encoding="utf-8", newline="\n")
            yield from map(json.loads, lines)
    else:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from map(json.loads, file)


@contextmanager
def batches_out(path: Path) -> Iterator[IO[bytes]]:
    """A file for `write_batch`; appears under `path` when closed."""
    compressor = zstandard.ZstdCompressor(level=BETWEEN)
    with replacing(path) as temporary, zstandard.open(temporary, "wb", cctx=compressor) as file:
        yield file


def write_batch(file: IO[bytes], documents: list[Document]) -> None:
    """Two lengths, JSON of all but the texts, and these as they are: to quote them as JSON costs more than zstd."""
    texts = [document.text.encode("utf-8", "surrogatepass") for document in documents]
    rows = [
        (item.id, item.source, item.url, item.language, item.kind, item.metadata, len(text))
        for item, text in zip(documents, texts, strict=True)
    ]
    head, body = ENCODER.encode(rows).encode("utf-8", "surrogatepass"), b"".join(texts)
    if documents:
        file.write(LENGTHS.pack(len(head), len(body)) + head)
        file.write(body)


def read_batches(path: Path) -> Iterator[list[Document]]:
    """The batches of a file that `batches_out` wrote."""
    with zstandard.open(path, "rb") as packed:
        file = io.BufferedReader(packed, PIECE)
        while lengths := file.read(LENGTHS.size):
            sizes = LENGTHS.unpack(lengths)
            head, body = (file.read(size) for size in sizes)
            assert (len(head), len(body)) == sizes, f"{path} is cut short"
            documents, start = [], 0
            for name, source, url, language, kind, metadata, size in json.loads(head):
                text = body[start : start + size].decode("utf-8", "surrogatepass")
                documents.append(Document(name, text, source, url, language, kind, metadata))
                start += size
            yield documents


def dropped_record(document: Document, reason: str) -> dict[str, Any]:
    """What dropped/ keeps of a document: enough to judge the reason by."""
    record: dict[str, Any] = {
        "id": document.id,
        "part": reason.partition(".")[0],
        "reason": reason,
        "text": document.text,
        "source": document.source,
        "language": document.language,
    }
    if why := document.metadata.get("why") or document.metadata.get("broken"):
        record["why"] = why
    return record


def kept_record(document: Document, text: str) -> dict[str, Any]:
    """A line of kept/ or heldout/."""
    return {
        "id": document.id,
        "text": text,
        "url": document.url,
        "source": document.source,
        "language": document.language,
        "kind": document.kind,
        "quality": document.metadata.get("quality", ""),
    }


def join(paths: Iterable[Path], path: Path) -> None:
    """One file of several that `lines_out` wrote; zstd frames may stand one behind the other."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        for each in paths:
            with each.open("rb") as part:
                shutil.copyfileobj(part, file)


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
