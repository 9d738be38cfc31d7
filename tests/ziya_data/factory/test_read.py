import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from ziya_data.factory.read import decode, read, shards_of
from ziya_data.factory.recipe import Source

ROWS = [{"text": "你好", "url": "http://a/b", "id": 7}, {"text": "two", "kind": "code", "language_name": "c"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
HTML = "<html><body><nav>Home</nav><article><p>{}</p><p>{}</p></article><footer>Imprint</footer></body></html>"


def texts(path: Path) -> list[str]:
    return [document.text for document in read(Source("s", ()), path, 0)]


def test_every_form_of_json_lines_and_parquet_gives_the_same(tmp_path: Path) -> None:
    files = {
        "a.jsonl": LINES,
        "a.jsonl.gz": gzip.compress(LINES),
        # two frames, as `cat a.zst b.zst` makes them
        "a.jsonl.zst": b"".join(zstandard.compress(line) for line in LINES.splitlines(True)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"text": row["text"]} for row in ROWS]), tmp_path / "a.parquet"
    )
    for name in (*files, "a.parquet"):
        assert texts(tmp_path / name) == ["你好", "two"], name
    first, second = read(Source("s", ()), tmp_path / "a.jsonl", 3)
    assert (first.id, first.url, first.kind) == ("s:7", "http://a/b", "text")
    assert (second.id, second.kind, second.metadata) == ("s:00003-00000001", "code", {"language_name": "c"})


def test_html_keeps_the_article_and_its_paragraphs(tmp_path: Path) -> None:
    first, second = "一个很长的段落，讲的是城里的事情。" * 5, "另一个很长的段落，讲的是山下的事情。" * 5
    page = HTML.format(first, second)
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "a.html").write_bytes(page.encode())
    (folder / "b.html").write_bytes(page.replace("<html>", '<html><meta charset="gb2312">').encode("gb18030"))
    shard = shards_of(Source("s", (str(folder),)))[0]
    assert shard == folder
    for text in texts(shard):
        assert [line for line in text.split("\n") if line] == [first, second]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "big5", "shift_jis"])
def test_encodings_are_found(encoding: str) -> None:
    text = {
        "big5": "這個時候，他們還沒有離開學校，老師也在那裡等著。",
        "shift_jis": "これは日本語の文章です。とても長い。",
    }.get(encoding, "这个时候，他们还没有离开学校，老师也在那里等着。")
    assert decode((text * 20).encode(encoding)) == text * 20


def test_damage_is_a_record_not_a_crash(tmp_path: Path) -> None:
    many = LINES * 3000
    cut = {"a.jsonl.gz": gzip.compress(many), "a.jsonl.zst": zstandard.compress(many)}
    for name, data in cut.items():
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        *good, last = read(Source("s", ()), tmp_path / name, 0)
        assert "broken" in last.metadata, name
        assert not any("broken" in document.metadata for document in good[:-1])
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more")
    assert ["broken" in document.metadata for document in read(Source("s", ()), tmp_path / "a.parquet", 0)] == [True]
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n\n{"text": 1}\n[1]\n{"text"\n\xff\xfe\n{"text": "b\\u0000"}\n')
    found = list(read(Source("s", ()), tmp_path / "b.jsonl", 0))
    assert ["broken" in document.metadata for document in found] == [False, True, True, True, True, False]


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="matches no file"):
        shards_of(Source("s", (str(tmp_path / "*.jsonl"),)))
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(ValueError, match="of no kind that can be read"):
        texts(tmp_path / "a.doc")


def test_half_a_surrogate_pair_is_left_out(tmp_path: Path) -> None:
    """JSON may escape one, and no file can hold it; whole pairs stay."""
    path = tmp_path / "a.jsonl"
    rows = [{"text": "a\ud800b😀", "id": "x\udc00", "url": "http://\udfff/"}, {"text": "\\ud800"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows).replace("dfff", "DFFF"))
    first, second = read(Source("s", ()), path, 0)
    assert (first.text, first.id, first.url) == ("ab😀", "s:x", "http:///")
    assert second.text == "\\ud800"
