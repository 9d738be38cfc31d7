"""WARC archives, as crawlers write them: pages out of .warc and .warc.gz, plain text out of .wet and .wet.gz.

The archive is cut into records here and not by the library, so that damage is seen: a broken gzip member, a record cut
short or bytes that are no record become one broken record each, and what comes after them is read.
"""

import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz")
PIECE = 1 << 20
LARGEST_MEMBER = 64 << 20
"""A gzip member up to this size is read only when its check sum holds; a larger one is passed on as it comes."""
LARGEST_RECORD = 1 << 30
LENGTH = re.compile(rb"(?im)^content-length:\s*(\d+)\s*$")
TYPE = re.compile(rb"(?im)^warc-type:\s*(\S+)\s*$")
START = b"WARC/1."
PAGES = ("text/html", "application/xhtml+xml")


class Damage(str):
    """What is wrong with a stretch of the file; the record that it cut in two is lost."""


def records(shard: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(where it stands, the record, why it is broken or ""); responses that are no page carry `not_a_page`."""
    pieces = gzip_pieces(shard) if shard.suffix == ".gz" else plain_pieces(shard)
    number = 0
    for number, found in enumerate(split(pieces), 1):
        place = f"{shard} record {number}"
        if isinstance(found, Damage):
            yield place, {"text": ""}, f"{place}: {found}"
        elif record := parsed(found):
            yield place, record, ""


def plain_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def gzip_pieces(path: Path) -> Iterator[bytes | Damage]:
    """The contents of a gzip file, member by member. Behind a broken member it goes on with the next that opens."""
    with path.open("rb") as file:
        start, damaged = 0, False
        while start >= 0:
            file.seek(start)
            held: list[bytes] = []
            end, why, size, passed = -1, "", 0, False
            for piece in member(file, start):
                if isinstance(piece, int):
                    end = piece
                elif isinstance(piece, Damage):
                    why = piece
                elif piece:
                    held.append(piece)
                    size += len(piece)
                    if size > LARGEST_MEMBER:
                        yield from held
                        held, size, passed = [], 0, True
            if end < 0 and not why:
                return
            if why and not damaged:  # a stretch is told once, however many of its bytes look like a member's beginning
                yield Damage(why)
            opens = passed or (held and held[0].startswith(START))
            if why or (damaged and not opens):
                damaged, start = True, next_member(file, start + 1)
            else:
                yield from held
                damaged, start = False, end


def member(file: io.BufferedReader, start: int) -> Iterator[bytes | int | Damage]:
    """The contents of the gzip member at `start`, then the place behind it; `Damage` when it is broken, nothing at the
    end of the file."""
    unpack = zlib.decompressobj(31)  # 31: gzip, with its check sum
    place, opened = start, False
    while piece := file.read(PIECE):
        place += len(piece)
        opened = True
        try:
            yield unpack.decompress(piece)
        except zlib.error as error:
            yield Damage(f"the gzip member at byte {start} is broken ({error})")
            return
        if unpack.eof:
            yield place - len(unpack.unused_data)
            return
    if opened:
        yield Damage(f"the gzip member at byte {start} is cut short")


def next_member(file: io.BufferedReader, start: int) -> int:
    """Where the next bytes stand that look like a gzip member's first ones; -1 when there are none."""
    file.seek(start)
    tail, place = b"", start
    while piece := file.read(PIECE):
        found = (tail + piece).find(b"\x1f\x8b\x08")
        if found >= 0:
            return place - len(tail) + found
        tail, place = piece[-2:], place + len(piece)
    return -1


def split(pieces: Iterator[bytes | Damage] | Iterator[bytes]) -> Iterator[bytes | Damage]:
    """The records, each with its header, out of a stream that may be damaged anywhere."""
    buffer = bytearray()
    lost = False  # within bytes that are no record, which are told once

    def step(last: bool) -> Iterator[bytes | Damage]:
        nonlocal lost
        while True:
            while buffer[:1] in (b"\r", b"\n"):
                del buffer[:1]
            if not buffer or (len(buffer) < len(START) and not last):
                return
            end = length = 0
            if buffer.startswith(START):
                end = buffer.find(b"\r\n\r\n") + 4
                if end < 4 and not last and len(buffer) < PIECE:
                    return
                found = LENGTH.search(buffer, 0, end)
                length = int(found.group(1)) if found else LARGEST_RECORD + 1
                if end >= 4 and length <= LARGEST_RECORD:
                    whole = end + length
                    if len(buffer) < whole + 4 and not last:
                        return
                    behind = bytes(buffer[whole : whole + 4])
                    if len(buffer) >= whole and b"\r\n\r\n".startswith(behind):
                        lost = False
                        yield bytes(buffer[:whole])
                        del buffer[: whole + 4]
                        continue
                yield Damage("a record's length is not what its header says")
                lost = True
            elif not lost:
                yield Damage("bytes that are no record")
                lost = True
            again = buffer.find(b"\n" + START, 1)
            if again >= 0:
                del buffer[: again + 1]
            elif last:
                buffer.clear()
            else:
                del buffer[: max(len(buffer) - len(START), 1)]
                return

    for piece in pieces:
        if isinstance(piece, Damage):
            buffer.clear()
            lost = False
            yield piece
        else:
            buffer += piece
            yield from step(False)
    yield from step(True)


def parsed(raw: bytes) -> dict[str, Any]:
    """The page or text of one record, as bytes, with the `charset` that the server told; empty for a record that holds
    none by its nature (request, metadata ...)."""
    kind = TYPE.search(raw, 0, raw.find(b"\r\n\r\n") + 2)
    if kind is None or kind.group(1).lower() not in (b"response", b"resource", b"conversion"):
        return {}
    from fastwarc.warc import ArchiveIterator  # only needed for archives

    record = next(iter(ArchiveIterator(io.BytesIO(raw + b"\r\n\r\n"), auto_decode="all")))
    content = record.reader.read()
    name = (record.record_id or "").strip("<>").removeprefix("urn:uuid:")
    found: dict[str, Any] = {"url": record.headers.get("WARC-Target-URI", "")}
    if name:
        found["id"] = name
    if kind.group(1).lower() == b"conversion":
        return {**found, "text": content}
    status = record.http_headers.status_code if record.is_http_parsed and record.http_headers else 200
    given = record.http_content_type if record.is_http_parsed else record.headers.get("Content-Type", "")
    given = (given or "").partition(";")[0].strip().lower()
    if status != 200 or given not in PAGES:
        what = f"status {status}" if status != 200 else f"content type {given or 'not given'}"
        return {**found, "text": "", "not_a_page": what}
    return {**found, "html": content, "charset": record.http_charset or ""}
