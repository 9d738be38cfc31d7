"""Held against collections.Counter and the packers' own libraries."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zstandard

from ziya_data.tokenizer.corpus import batches, corpus_files, count_characters, read_texts

TEXTS = ["one line", "谢谢\u2028not a break", "", "a\rb", "𠀀 last"]


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "id": "x"}, ensure_ascii=False) + "\n" for text in texts).encode()


def test_every_kind_of_file_gives_the_same_texts(tmp_path: Path) -> None:
    lines, plain = json_lines(TEXTS), "\n".join(TEXTS).encode()
    # Two frames one after the other, as parallel writers leave them.
    frames = zstandard.compress(json_lines(TEXTS[:2])) + zstandard.compress(json_lines(TEXTS[2:]))
    for name, content in {
        "a.jsonl": lines,
        "b.jsonl.gz": gzip.compress(lines),
        "c.jsonl.zst": frames,
        "d.txt": plain,
        "e.txt.gz": gzip.compress(plain),
        "f.txt.zst": zstandard.compress(plain),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert list(read_texts(tmp_path / name)) == TEXTS, name
    (tmp_path / "report.html").write_text("not text")
    assert [file.name[0] for file in corpus_files([tmp_path])] == list("abcdef")


def test_counts(tmp_path: Path, lines: list[str]) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(json_lines(lines))
    expected = Counter("".join(lines) * 2)
    counts = count_characters([file, file])
    assert {chr(point): int(counts[point]) for point in np.flatnonzero(counts)} == dict(expected)


def test_batches_keep_order() -> None:
    texts = [str(number) for number in range(100)]
    parts = list(batches(iter(texts), characters=7))
    assert [text for part in parts for text in part] == texts
    assert len(parts) > 10
    assert not list(batches([]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "line 2: not JSON"),
        ("a.jsonl", b'{"html": "a"}\n', "line 1: no 'text'"),
        ("a.jsonl", b'["a"]\n', "line 1: no 'text'"),
        ("a.txt", "fine\n人".encode("gb18030"), "not UTF-8"),
        ("a.txt.zst", zstandard.compress(b"a long line\n" * 99)[:-5], r"broken \.zst"),
        ("a.txt.zst", b"no zstd at all", r"broken \.zst"),
        ("a.txt.gz", gzip.compress(b"a long line\n" * 99, mtime=0)[:-12], r"broken \.gz"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_texts(tmp_path / name))


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file"):
        corpus_files([tmp_path / "missing.txt"])
    with pytest.raises(ValueError, match=r"holds no \.txt or \.jsonl"):
        corpus_files([tmp_path])
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ValueError, match=r"is neither \.txt nor \.jsonl"):
        corpus_files([tmp_path / "a.parquet"])
