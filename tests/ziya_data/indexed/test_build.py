import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import zstandard

from ziya_data.indexed import inputs
from ziya_data.indexed.build import BuildReport, build
from ziya_data.indexed.reader import IndexedDataset


@pytest.fixture
def expected(tokenizer_folder: Path, texts: list[str]) -> list[list[int]]:
    """The documents by sentencepiece itself."""
    processor = sentencepiece.SentencePieceProcessor(str(tokenizer_folder / "tokenizer.model"))
    return [[*processor.encode(text), processor.eos_id()] for text in texts]


def documents_of(prefix: str) -> list[list[int]]:
    return [document.tolist() for document in IndexedDataset(prefix)]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_dataset_is_the_texts_in_order(
    tmp_path: Path,
    tokenizer_folder: Path,
    jsonl: Path,
    expected: list[list[int]],
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inputs, "BATCH_BYTES", 2000)  # some thirty batches
    report = build([jsonl], str(tmp_path / "out" / "a"), tokenizer_folder, workers)
    assert documents_of(str(tmp_path / "out" / "a")) == expected
    assert (report.documents, report.tokens) == (200, sum(map(len, expected)))
    meta = IndexedDataset(tmp_path / "out" / "a").meta
    assert meta is not None
    assert meta.vocabulary_size == 400
    assert len(meta.tokenizer) == 64


def test_every_kind_of_input_gives_the_same_documents(
    tmp_path: Path, tokenizer_folder: Path, jsonl: Path, texts: list[str], expected: list[list[int]]
) -> None:
    zst, parquet = tmp_path / "a.jsonl.zst", tmp_path / "a.parquet"
    zst.write_bytes(zstandard.compress(jsonl.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), parquet)
    folder = tmp_path / "txt"
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i:05}.txt").write_text(text, encoding="utf-8")
    for path in (zst, parquet, folder):
        build([path], str(tmp_path / path.stem), tokenizer_folder)
        assert documents_of(str(tmp_path / path.stem)) == expected
    build([zst, parquet], str(tmp_path / "both"), tokenizer_folder)
    assert documents_of(str(tmp_path / "both")) == expected * 2


BAD = [
    (b"{", "not JSON"),
    (b"[]", "not a JSON object"),
    (b'{"html": "x"}', 'no key "text"'),
    (b'{"text": 5}', '"text" is a int, not a string'),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"text": "\\ud800"}', "surrogate"),
    (b"[" * 100_000, "not JSON"),
]


def test_bad_lines_are_counted_and_the_first_ten_told(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "good"}', b"", b'{"text": ""}', *[line for line, _ in BAD * 2]]
    path.write_bytes(b"\n".join(lines) + b"\n")
    report = build([path], str(tmp_path / "a"), tokenizer_folder)
    assert (report.documents, report.empty, report.bad) == (1, 1, 14)
    assert len(report.first_bad) == 10
    told = capsys.readouterr().err
    for number, (line, (_, why)) in enumerate(zip(report.first_bad, BAD, strict=False), start=4):
        assert line.startswith(f"{path}:{number}: ")
        assert why in line
        assert "\n" not in line
        assert line in told


def test_too_many_bad_lines_stop_the_build(tmp_path: Path, tokenizer_folder: Path, write: Callable[..., str]) -> None:
    prefix = write([[1, 2]], name="old")
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "good"}) + "\n" + "bad\n" * 3)
    assert build([path], str(tmp_path / "new"), tokenizer_folder, bad_limit=3).bad == 3
    with pytest.raises(ValueError, match=r"3 bad records, more than bad_limit=2.*a\.jsonl:2: not JSON"):
        build([path], prefix, tokenizer_folder, bad_limit=2)
    assert documents_of(prefix) == [[1, 2]]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_build_of_nothing_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="no document in 1 files"):
        build([path], str(tmp_path / "a"), tokenizer_folder)
    with pytest.raises(ValueError, match="workers=0"):
        build([path], str(tmp_path / "a"), tokenizer_folder, workers=0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_damaged_input_stops_a_build_of_several_workers(tmp_path: Path, tokenizer_folder: Path, jsonl: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(jsonl.read_bytes())[:-5])
    with pytest.raises(ValueError, match="truncated"):
        build([path], str(tmp_path / "a"), tokenizer_folder, workers=2)
    assert not list(tmp_path.glob("a.*i*"))


def test_a_report_reads_as_a_line() -> None:
    report = BuildReport(files=2, documents=1000, tokens=50_000, bad=3, seconds=2.0)
    assert str(report) == (
        "1,000 documents, 50,000 tokens from 2 files in 2.0 s (25,000 tokens/s); 0 empty and 3 bad records left out"
    )
