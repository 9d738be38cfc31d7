from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ziya_data.indexed import format
from ziya_data.indexed.reader import IndexedDataset

# Written by megatron-core 0.19.2: IndexedDatasetBuilder("g.bin", dtype=numpy.uint16), add_document for each of
# [1, 2, 3], [], [65499, 2] with lengths [len], finalize("g.idx").
DOCUMENTS = [[1, 2, 3], [], [65499, 2]]
BIN = "010002000300dbff0200"
IDX = (
    "4d4d494449445800000100000000000000080300000000000000040000000000000003000000000000000200000000000000"
    "0000000006000000000000000600000000000000000000000000000001000000000000000200000000000000030000000000"
    "0000"
)
# The same with dtype=numpy.int32: a document of two sequences, [5, 6] and [70000], then one of [8].
TWO_SEQUENCES_BIN = "05000000060000007011010008000000"
TWO_SEQUENCES_IDX = (
    "4d4d494449445800000100000000000000040300000000000000030000000000000002000000010000000100000000000000"
    "0000000008000000000000000c00000000000000000000000000000002000000000000000300000000000000"
)


def test_our_files_are_megatrons_byte_for_byte(write: Callable[..., str]) -> None:
    bin_path, idx_path, _ = format.files(write(DOCUMENTS, vocabulary_size=65_500, dtype=np.uint16))
    assert bin_path.read_bytes().hex() == BIN
    assert idx_path.read_bytes().hex() == IDX


def test_megatrons_documents_of_several_sequences_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "two.bin").write_bytes(bytes.fromhex(TWO_SEQUENCES_BIN))
    (tmp_path / "two.idx").write_bytes(bytes.fromhex(TWO_SEQUENCES_IDX))
    dataset = IndexedDataset(tmp_path / "two")
    assert [document.tolist() for document in dataset] == [[5, 6, 70000], [8]]
    assert dataset.lengths().tolist() == [3, 1]
    assert dataset.meta is None


def test_dtype_follows_megatrons_rule() -> None:
    assert format.dtype_for(65_499) is np.uint16
    assert format.dtype_for(65_500) is np.int32


@pytest.mark.parametrize("name", ["corpus.v2", "corpus.v2.bin", "corpus.v2.idx"])
def test_prefix_of(name: str) -> None:
    assert format.prefix_of(name) == "corpus.v2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "not the side-car"),
        (b'{"version": 9}', "newer than 1"),
        (b'{"version": 1, "colour": 2}', "missing or unknown keys"),
    ],
)
def test_a_bad_side_car_is_refused_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.meta.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        format.Meta.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
