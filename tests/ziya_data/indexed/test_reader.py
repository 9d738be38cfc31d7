import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data.indexed import format
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.writer import IndexedDatasetWriter

DOCUMENTS = [[1, 2, 3], [], [4], [5, 6, 7, 8]]


def test_views_outlive_the_dataset(write: Callable[..., str]) -> None:
    dataset = IndexedDataset(write([list(range(5000))]))
    view = dataset[0]
    del dataset
    gc.collect()
    assert view.tolist() == list(range(5000))


def test_views_are_read_only(write: Callable[..., str]) -> None:
    view = IndexedDataset(write(DOCUMENTS))[0]
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_the_first_and_last_documents_and_no_others(write: Callable[..., str]) -> None:
    dataset = IndexedDataset(write(DOCUMENTS))
    assert (len(dataset), dataset.tokens) == (4, 8)
    assert dataset.lengths().tolist() == [3, 0, 1, 4]
    assert dataset[3].tolist() == [5, 6, 7, 8]
    for outside in (-1, 4):
        with pytest.raises(IndexError, match="documents 0 to 3"):
            dataset[outside]


def test_an_empty_dataset_opens(write: Callable[..., str]) -> None:
    dataset = IndexedDataset(write([]))
    assert (len(dataset), dataset.tokens, list(dataset)) == (0, 0, [])


def _header(**changed: object) -> bytes:
    fields = {"magic": format.MAGIC, "version": 1, "code": 8, "sequences": 4, "entries": 5} | changed
    return format.HEADER.pack(*fields.values())


LENGTHS = np.array([3, 0, 1, 4], "<i4").tobytes()
POINTERS = np.array([0, 6, 6, 8], "<i8").tobytes()
INDEX = np.arange(5, dtype="<i8").tobytes()


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"", "truncated: 0 bytes"),
        (_header()[:20], "truncated: 20 bytes, its header alone takes 34"),
        (_header() + LENGTHS + POINTERS + INDEX[:-1], "truncated: 121 bytes of 122"),
        (_header() + LENGTHS + POINTERS + INDEX + b"x", "1 bytes too many"),
        (_header() + LENGTHS + POINTERS + INDEX + b"0000", "multimodal"),
        (_header(magic=b"PK\x03\x04 a zip") + LENGTHS + POINTERS + INDEX, "is not an index"),
        (_header(version=2) + LENGTHS + POINTERS + INDEX, "version 2, this program reads version 1"),
        (_header(code=7) + LENGTHS + POINTERS + INDEX, "float32"),
        (_header(code=99) + LENGTHS + POINTERS + INDEX, "dtype code 99"),
        (_header(code=4) + LENGTHS + POINTERS + INDEX, "sequence 1 starts at byte 6 although"),
        (_header(sequences=2**62) + LENGTHS + POINTERS + INDEX, "truncated"),
        (_header(entries=0) + LENGTHS + POINTERS, "empty document index"),
        (_header() + np.array([3, 0, 1, 5], "<i4").tobytes() + POINTERS + INDEX, "add up to 18 bytes"),
        (_header() + np.array([3, 0, 1, 3], "<i4").tobytes() + POINTERS + INDEX, "add up to 14 bytes"),
        (_header() + np.array([3, 0, -1, 4], "<i4").tobytes() + POINTERS + INDEX, "has length -1"),
        (_header() + LENGTHS + POINTERS[::-1] + INDEX, "although the lengths before it take 0 bytes"),
        (_header() + LENGTHS + POINTERS + np.array([1, 1, 2, 3, 4], "<i8").tobytes(), "document 0 starts at"),
        (_header() + LENGTHS + POINTERS + np.array([0, 2, 1, 3, 4], "<i8").tobytes(), "document 2 starts at"),
        (_header() + LENGTHS + POINTERS + np.array([0, 1, 2, 3, 9], "<i8").tobytes(), "document 4 starts at"),
        (_header() + LENGTHS + POINTERS + np.array([0, 1, 2, 3, 3], "<i8").tobytes(), "end at sequence 3 of 4"),
    ],
)
def test_a_bad_index_is_refused_in_one_line(write: Callable[..., str], index: bytes, words: str) -> None:
    prefix = write(DOCUMENTS)
    assert Path(f"{prefix}.idx").read_bytes() == _header() + LENGTHS + POINTERS + INDEX
    Path(f"{prefix}.idx").write_bytes(index)
    with pytest.raises(ValueError, match=words) as caught:
        IndexedDataset(prefix)
    assert "\n" not in str(caught.value)
    assert f"{prefix}.idx" in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 15, 17, 100])
def test_a_bin_of_the_wrong_size_is_refused(write: Callable[..., str], size: int) -> None:
    prefix = write(DOCUMENTS)
    os.truncate(f"{prefix}.bin", size)
    with pytest.raises(ValueError, match=rf"add up to 16 bytes of tokens, the \.bin holds {size}"):
        IndexedDataset(prefix)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_half_is_named(write: Callable[..., str], suffix: str) -> None:
    prefix = write(DOCUMENTS)
    Path(prefix + suffix).unlink()
    with pytest.raises(FileNotFoundError, match=rf"data\{suffix} not found, although"):
        IndexedDataset(prefix)


def test_the_side_car_of_another_dataset_is_refused(write: Callable[..., str]) -> None:
    prefix, other = write(DOCUMENTS), write([[1]], name="other")
    Path(f"{prefix}.meta.json").write_bytes(Path(f"{other}.meta.json").read_bytes())
    with pytest.raises(ValueError, match="documents 1 there, 4 here"):
        IndexedDataset(prefix)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_of_the_index_crashes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    prefix = tmp_path_factory.mktemp("d") / "a"
    with IndexedDatasetWriter(prefix, 100) as out:
        out.add(range(8), [3, 0, 1, 4])
    content = bytearray(Path(f"{prefix}.idx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    Path(f"{prefix}.idx").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    Path(f"{prefix}.meta.json").unlink()
    try:
        dataset = IndexedDataset(prefix)
    except ValueError:
        return
    assert sum(map(len, dataset)) == dataset.tokens


def test_beyond_two_to_the_32_tokens(tmp_path: Path) -> None:
    """A sparse file: 9 G tokens in three documents, the last two of them real."""
    lengths = np.array([2**31 - 1] * 4 + [7, 3], "<i4")
    ends = np.cumsum(lengths, dtype=np.int64)
    size = int(ends[-1]) * 2
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(size)
        file.seek(size - 20)
        file.write(np.arange(1, 11, dtype="<u2").tobytes())
    index = np.arange(7, dtype="<i8")
    pointers = np.concatenate(([0], ends[:-1])).astype("<i8") * 2
    (tmp_path / "a.idx").write_bytes(
        format.HEADER.pack(format.MAGIC, 1, 8, 6, 7) + lengths.tobytes() + pointers.tobytes() + index.tobytes()
    )
    dataset = IndexedDataset(tmp_path / "a")
    assert dataset.tokens == 4 * (2**31 - 1) + 10
    assert dataset[4].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert dataset[5].tolist() == [8, 9, 10]
