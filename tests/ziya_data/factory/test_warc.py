"""WARC archives, written by fastwarc as crawlers do, whole and damaged in every way we could think of."""

import gzip
import io
from pathlib import Path

import pytest
from fastwarc.stream_io import GzipWriter
from fastwarc.warc import WarcRecord, WarcRecordType

from ziya_data.document import Document
from ziya_data.factory import parts, recipe, storage, warc
from ziya_data.factory.read import read, shards_of
from ziya_data.factory.recipe import Source

TEXT = "一个很长的段落，讲的是城里的事情。"
PAGE = "<html><head><meta charset='{charset}'></head><body><article><p>{text}</p></article></body></html>"


def record(body: bytes, kind: str = "text/html", number: int = 0, status: str = "200 OK", more: str = "") -> bytes:
    """One response as it stands in an uncompressed archive."""
    made = WarcRecord()
    made.init_headers(WarcRecordType.response, record_urn=f"uuid:00000000-0000-0000-0000-{number:012d}".encode())
    made.headers["WARC-Target-URI"] = f"http://a.com/{number}"
    made.headers["Content-Type"] = "application/http; msgtype=response"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}\r\n".encode()
    made.set_bytes_content(head + body)
    stream = io.BytesIO()
    made.write(stream)
    return stream.getvalue()


def pages(count: int = 6) -> list[bytes]:
    return [record(PAGE.format(charset="utf-8", text=f"{i}{TEXT}" * 5).encode(), number=i) for i in range(count)]


def archive(path: Path, records: list[bytes]) -> Path:
    path.write_bytes(b"".join(gzip.compress(raw) if path.suffix == ".gz" else raw for raw in records))
    return path


def found(path: Path) -> tuple[list[Document], list[str]]:
    """The pages that were read, and what was told as broken."""
    documents = list(read(Source("s", ()), path, 0))
    broken = [document.metadata["broken"] for document in documents if "broken" in document.metadata]
    return [document for document in documents if "broken" not in document.metadata], broken


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_whole_archive_gives_its_pages(name: str, tmp_path: Path) -> None:
    whole = archive(tmp_path / name, pages())
    documents, broken = found(whole)
    assert broken == []
    assert [document.text.strip() for document in documents] == [f"{i}{TEXT}" * 5 for i in range(6)]
    assert documents[3].url == "http://a.com/3"
    assert documents[3].id == "s:00000000-0000-0000-0000-000000000003"
    assert shards_of(Source("s", (str(tmp_path),))) == [whole]


def test_an_archive_that_the_library_wrote_is_read(tmp_path: Path) -> None:
    made = WarcRecord()
    made.init_headers(WarcRecordType.conversion)
    made.set_bytes_content(TEXT.encode())
    with (tmp_path / "a.warc.wet.gz").open("wb") as file:
        writer = GzipWriter(file)
        made.write(writer)
        writer.close()
    documents, broken = found(tmp_path / "a.warc.wet.gz")
    assert ([document.text for document in documents], broken) == ([TEXT], [])


def test_encodings_and_codings_of_http(tmp_path: Path) -> None:
    gbk = PAGE.format(charset="x", text=TEXT * 5).encode("gb18030")
    zipped = gzip.compress(PAGE.format(charset="utf-8", text=TEXT * 5).encode())
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(gbk), gbk)
    records = [
        record(gbk, "text/html; charset=gb2312", 0),
        record(gbk.replace(b"'x'", b"gbk"), "text/html; charset=ISO-8859-1", 1),  # a server that tells any page so
        record(zipped, "text/html", 2, more="Content-Encoding: gzip\r\n"),
        record(chunked, "text/html; charset=gbk", 3, more="Transfer-Encoding: chunked\r\n"),
    ]
    documents, broken = found(archive(tmp_path / "a.warc.gz", records))
    assert broken == []
    assert [document.text.strip() for document in documents] == [TEXT * 5] * 4


def test_what_is_no_page_is_counted_under_a_reason_of_its_own(tmp_path: Path) -> None:
    records = [record(b"\x89PNG", "image/png", 0), record(b"gone", number=1, status="404 Not Found"), *pages(1)]
    path = archive(tmp_path / "a.warc.gz", records)
    settings = recipe.parse({"run": {"output": "x"}, "source": [{"name": "s", "paths": [str(path)]}]})
    tally = parts.prepare(parts.Shard(settings.source[0], path, 0), settings, {}, tmp_path / "work")
    assert tally.reasons == {"read.not_a_page": 2}
    dropped = list(storage.read_lines(tmp_path / "work" / "s-00000.dropped.jsonl.zst"))
    assert [row["why"] for row in dropped] == ["content type image/png", "status 404"]


def test_a_broken_gzip_member_costs_that_record_alone(tmp_path: Path) -> None:
    members = [gzip.compress(raw) for raw in pages()]
    middle = bytearray(members[2])
    for where in (len(middle) // 2, len(middle) - 6):  # within the packed bytes; the check sum
        damaged = bytearray(middle)
        damaged[where] ^= 0xFF
        (tmp_path / "a.warc.gz").write_bytes(b"".join([*members[:2], bytes(damaged), *members[3:]]))
        documents, broken = found(tmp_path / "a.warc.gz")
        assert [document.url for document in documents] == [f"http://a.com/{i}" for i in (0, 1, 3, 4, 5)]
        assert len(broken) == 1 and f"byte {len(members[0]) + len(members[1])} is broken" in broken[0]


def test_a_gzip_file_within_a_broken_member_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    """A page that the server sent packed, in a member that is only stored: the search for the next one meets it."""
    inner = gzip.compress(PAGE.format(charset="utf-8", text=TEXT).encode())
    outer = bytearray(gzip.compress(record(inner, more="Content-Encoding: gzip\r\n"), 0))
    assert inner in outer
    outer[-6] ^= 0xFF
    (tmp_path / "a.warc.gz").write_bytes(bytes(outer) + gzip.compress(pages(2)[1]))
    documents, broken = found(tmp_path / "a.warc.gz")
    assert [document.url for document in documents] == ["http://a.com/1"]
    assert len(broken) == 1


def test_an_archive_cut_anywhere_never_looks_whole(tmp_path: Path) -> None:
    members = [gzip.compress(raw) for raw in pages(3)]
    packed = b"".join(members)
    ends = {0, len(members[0]), len(members[0] + members[1]), len(packed)}
    for cut in range(1, len(packed), 7):
        if cut in ends:
            continue
        (tmp_path / "a.warc.gz").write_bytes(packed[:cut])
        documents, broken = found(tmp_path / "a.warc.gz")
        assert len(documents) == sum(end <= cut for end in ends) - 1
        assert len(broken) == 1, cut
    plain = b"".join(pages(3))
    (tmp_path / "a.warc").write_bytes(plain[: len(plain) - 100])
    documents, broken = found(tmp_path / "a.warc")
    assert (len(documents), len(broken)) == (2, 1)


def test_bytes_between_and_wrong_lengths_cost_no_other_record(tmp_path: Path) -> None:
    raw = pages(4)
    wrong = raw[1].replace(b"Content-Length: ", b"Content-Length: 9", 1)
    (tmp_path / "a.warc").write_bytes(raw[0] + b"<html>no record</html>\r\n" * 9 + wrong + raw[2] + raw[3])
    documents, broken = found(tmp_path / "a.warc")
    assert [document.url[-1] for document in documents] == ["0", "2", "3"]
    assert len(broken) == 2, broken
    (tmp_path / "a.warc.gz").write_bytes(b"no archive at all" * 99)
    assert found(tmp_path / "a.warc.gz")[0] == []
    assert len(found(tmp_path / "a.warc.gz")[1]) == 1


def test_one_gzip_member_around_a_whole_archive_is_read_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warc, "LARGEST_MEMBER", 2000)
    monkeypatch.setattr(warc, "PIECE", 300)
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(b"".join(pages(50))))
    documents, broken = found(tmp_path / "a.warc.gz")
    assert (len(documents), broken) == (50, [])
