import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data.indexed import inputs
from ziya_data.indexed.inputs import batches, expand

LINES = [json.dumps({"text": f"{i} 文本 " * (i % 50)}).encode() for i in range(3000)]


def records(path: Path) -> list[bytes | str | None]:
    return [record for batch in batches(path) for record in batch.records]


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.binary(max_size=8).map(lambda line: line.replace(b"\n", b""))), read=st.integers(1, 9))
def test_lines_are_cut_as_split_cuts_them(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], read: int
) -> None:
    path = tmp_path_factory.mktemp("i") / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "READ_BYTES", read)
        patch.setattr(inputs, "BATCH_BYTES", 5)
        found = list(batches(path))
    joined = [record for batch in found for record in batch.records]
    assert joined == (lines[:-1] if lines and not lines[-1] else lines)
    assert [batch.first for batch in found] == [
        1 + sum(len(earlier.records) for earlier in found[:i]) for i in range(len(found))
    ]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "two frames"])
def test_compressed_lines(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a." + kind.replace("two frames", "jsonl.zst"))
    data = b"\n".join(LINES) + b"\n"
    compress = {
        "jsonl": bytes,
        "jsonl.gz": gzip.compress,
        "jsonl.zst": zstandard.ZstdCompressor().compress,
        "two frames": lambda data: b"".join(zstandard.compress(half) for half in (data[:777], data[777:])),
    }[kind]
    path.write_bytes(compress(data))
    assert records(path) == LINES


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("keep", [0.3, 0.9, "all but one"])
def test_a_truncated_file_is_never_taken_for_a_whole_one(tmp_path: Path, kind: str, keep: float | str) -> None:
    path = tmp_path / f"a.{kind}"
    data = os.urandom(100_000).hex().encode()
    packed = gzip.compress(data) if kind == "jsonl.gz" else zstandard.compress(data)
    path.write_bytes(packed[: len(packed) - 1 if isinstance(keep, str) else int(len(packed) * keep)])
    with pytest.raises(ValueError, match=r"a\.jsonl.*truncated"):
        records(path)


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"plain text, not packed at all")
    with pytest.raises(ValueError, match=rf"a\.{kind}") as caught:
        records(path)
    assert "\n" not in str(caught.value)


def test_parquet(tmp_path: Path) -> None:
    texts = [f"{i} 文本" if i % 7 else None for i in range(1000)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": range(1000), "text": texts}), path, row_group_size=300)
    assert records(path) == texts


@pytest.mark.parametrize(
    ("table", "words"), [({"content": ["x"]}, 'no column "text", it has content'), ({"text": [1]}, "holds int64")]
)
def test_a_parquet_without_texts_is_refused(tmp_path: Path, table: dict[str, list[object]], words: str) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    with pytest.raises(ValueError, match=words):
        records(path)


def test_a_txt_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first line\n\nsecond 行\n", encoding="utf-8")
    assert records(path) == ["first line\n\nsecond 行\n"]
    path.write_bytes(b"latin \xe9")
    with pytest.raises(ValueError, match=r"not UTF-8.*at byte 6"):
        records(path)


def test_a_batch_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([b"x" * 1000] * 5000))
    assert max(batch.size for batch in batches(path)) < inputs.BATCH_BYTES + 1000


def test_a_folder_stands_for_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b-00001.jsonl.zst", "b-00000.jsonl.zst", "a.txt", "notes.md"):
        (tmp_path / name).touch()
    assert [path.name for path in expand([tmp_path])] == ["a.txt", "b-00000.jsonl.zst", "b-00001.jsonl.zst"]


def test_inputs_that_are_not_there_or_of_no_kind(tmp_path: Path) -> None:
    (tmp_path / "a.md").touch()
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl not found"):
        expand([tmp_path / "none.jsonl"])
    with pytest.raises(ValueError, match="of no known kind"):
        expand([tmp_path / "a.md"])
    with pytest.raises(ValueError, match="holds no file to read"):
        expand([tmp_path])


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    """Every document would be there twice, without a word."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}")
    for files in ([path, path], [tmp_path, path], [path, tmp_path / "." / "a.jsonl"]):
        with pytest.raises(ValueError, match=r"a\.jsonl is given twice"):
            expand(files)
