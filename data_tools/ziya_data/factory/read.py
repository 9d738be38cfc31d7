"""Raw input to `Document`s: JSON lines (plain, gzip, zstd), parquet, WARC archives, text files, folders of HTML."""

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import zstandard
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

from ziya_data.document import Document
from ziya_data.factory import warc
from ziya_data.factory.recipe import KINDS, Source

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
FILES = (*JSON_LINES, ".parquet", *warc.SUFFIXES, ".txt")
PAGES = (".html", ".htm")
ONE_BYTE = ("iso-8859", "latin", "windows-125", "cp125", "us-ascii")
SKIPPED_ELEMENTS = ["nav", "footer", "aside", "form", "script", "style"]


def shards_of(source: Source) -> list[Path]:
    """The files (or folders of HTML) of a source, sorted; each is one unit of work and of resuming.

    A folder is read with all that lies below it: its pages of HTML as one unit, every other file as one of its own.
    Raises FileNotFoundError when a path or pattern matches nothing, or a folder holds nothing that can be read.
    """
    shards: list[Path] = []
    for pattern in source.paths:
        found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 (pathlib refuses "/x/*")
        if not found:
            raise FileNotFoundError(f"source {source.name}: {pattern} matches no file; check paths in the recipe")
        for path in found:
            if not path.is_dir():
                shards.append(path)
                continue
            inside = sorted(item for item in path.rglob("*") if item.is_file())
            units = [path] if any(item.suffix in PAGES for item in inside) else []
            units += [item for item in inside if item.name.endswith(FILES)]
            if not units:
                kinds = ", ".join((*FILES, *PAGES))
                raise FileNotFoundError(f"source {source.name}: no file in {path} can be read; kinds are {kinds}")
            shards += units
    return shards


def read(source: Source, shard: Path, number: int) -> Iterator[Document]:
    """Documents of one shard, in order. A broken record becomes a document with metadata["broken"], so that it is
    counted and seen (metadata["not_a_page"] likewise, for a crawler's pictures and error pages); an id that the input
    lacks is made of the shard's and the record's number.

    Raises ValueError for a kind of file that is not known.
    """
    for position, (place, record, broken) in enumerate(records(shard)):
        given = record.get("id")
        name = f"{source.name}:{given}" if given is not None else f"{source.name}:{number:05d}-{position:08d}"
        text = record.get("text")
        if not isinstance(text, str):
            html = record.get("html")
            text = main_text(html) if isinstance(html, str) and html else ""
            broken = broken or ("" if isinstance(html, str) else no_text(record, place))
        metadata: dict[str, Any] = {key: record[key] for key in ("language_name", "not_a_page") if key in record}
        kind = record.get("kind")
        yield Document(
            id=name,
            text=text,
            source=source.name,
            url=str(record.get("url") or ""),
            language=str(record.get("language") or ""),
            kind=kind if kind in KINDS else source.kind,
            metadata=metadata | {"broken": broken} if broken else metadata,
        )


def no_text(record: dict[str, Any], place: str) -> str:
    """Why a record is no document, told so that one sees which key holds the text."""
    if record.get("text") is not None:
        return f'"text" in {place} is no string but {record["text"]!r}'[:300]
    return f'no key "text" in {place}; keys there: {", ".join(map(str, record)) or "none"}'[:300]


def records(shard: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(where it stands, the record, why it is broken or "")."""
    name = shard.name
    if shard.is_dir():
        for page in sorted(item for item in shard.rglob("*") if item.suffix in PAGES):
            yield str(page), {"id": str(page.relative_to(shard)), "html": decode(page.read_bytes())}, ""
    elif name.endswith(PAGES):
        yield str(shard), {"id": name, "html": decode(shard.read_bytes())}, ""
    elif name.endswith(".txt"):
        yield str(shard), {"id": name, "text": decode(shard.read_bytes())}, ""
    elif name.endswith(".parquet"):
        yield from parquet_rows(shard)
    elif name.endswith(JSON_LINES):
        yield from json_lines(shard)
    elif name.endswith(warc.SUFFIXES):
        yield from archived(shard)
    else:
        raise ValueError(f"{shard} is of no kind that can be read; give {', '.join(FILES)} or .html")


def parquet_rows(shard: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Rows of a parquet file; a damaged one ends in one broken record, not in a crash."""
    import pyarrow  # heavy, and only needed here
    import pyarrow.parquet

    rows = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(shard).iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                rows += 1
                yield f"{shard} row {rows}", record, ""
    except (pyarrow.ArrowException, EOFError) as error:
        yield f"{shard} row {rows + 1}", {"text": ""}, f"{shard} is damaged from row {rows + 1} on: {error}"


def archived(shard: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Records of a WARC archive, their bytes decoded."""
    for place, record, broken in warc.records(shard):
        for key in record.keys() & {"html", "text"}:
            if isinstance(record[key], bytes):
                record[key] = decode(record[key], record.get("charset", ""))
        yield place, record, broken


def json_lines(shard: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Records of a JSON-lines file; a file cut short in the middle ends in one broken record, not in a crash."""
    number = 0
    try:
        with open_bytes(shard) as file:
            for number, line in enumerate(file, 1):
                place = f"{shard} line {number}"
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
                    record = None
                    message = f"{place} is not JSON: {error}"
                else:
                    message = f"{place} is not a JSON object"
                if isinstance(record, dict):
                    halves = b"\\ud" in line or b"\\uD" in line
                    yield place, whole(record) if halves else record, ""
                else:
                    yield place, {"text": line[:2000].decode("utf-8", "replace")}, message
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        place = f"{shard} line {number + 1}"
        yield place, {"text": ""}, f"{shard} is damaged from line {number + 1} on: {error}"


def whole(value: Any) -> Any:
    """A JSON value without halves of surrogate pairs: JSON may escape one alone, but no file can hold it."""
    if isinstance(value, str):
        return value.encode("utf-8", "ignore").decode()
    if isinstance(value, list):
        return [whole(item) for item in value]
    return {key: whole(item) for key, item in value.items()} if isinstance(value, dict) else value


def open_bytes(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return cast("IO[bytes]", io.BufferedReader(ZstdFile(path), 1 << 20))
    return path.open("rb")


class ZstdFile(io.RawIOBase):
    """A .zst of one or more frames (`cat a.zst b.zst`). Unlike zstandard's own reader it raises EOFError where the
    file ends within a frame: a shard cut short must not look like a whole one."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.input = self.output = b""
        self.within = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.output:
            self.input = self.input or self.file.read(1 << 17)
            if not self.input:
                if self.within:
                    raise EOFError("it ends within a zstd frame")
                return 0
            self.output, self.within = self.frame.decompress(self.input), True
            self.input = b""
            if self.frame.eof:
                self.input, self.within = self.frame.unused_data, False
                self.frame = zstandard.ZstdDecompressor().decompressobj()
        count = min(len(buffer), len(self.output))
        buffer[:count], self.output = self.output[:count], self.output[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def decode(data: bytes, told: str = "") -> str:
    """Text of unknown encoding: UTF-8 when it is valid, else the one that the server `told` when the bytes are valid in
    it, else what they look like (GB18030, Big5, Latin-1 ...). Any bytes are valid in an encoding of one byte a
    character, so servers that tell one are not believed."""
    told = told.lower()
    told = "" if told.startswith(ONE_BYTE) else "gb18030" if told in ("gb2312", "gbk") else told
    for encoding in ("utf-8-sig", told):
        try:
            return data.decode(encoding or "ascii")
        except (UnicodeDecodeError, LookupError):
            continue
    return bytes_to_str(data, detect_encoding(data, from_html_meta=True) or "utf-8")


def main_text(html: str) -> str:
    """The page's own text, without menus, footers and scripts; paragraphs stay lines."""
    return extract_plain_text(
        html, main_content=True, alt_texts=False, list_bullets=False, skip_elements=SKIPPED_ELEMENTS
    )
