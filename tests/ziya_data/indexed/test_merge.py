from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data import _indexed
from ziya_data.indexed import format, writer
from ziya_data.indexed import merge as module
from ziya_data.indexed.merge import merge
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.split import in_validation
from ziya_data.indexed.stats import stats
from ziya_data.indexed.writer import IndexedDatasetWriter

documents = st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=12)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(documents, min_size=1, max_size=4), block=st.integers(1, 12))
def test_a_merge_is_the_documents_in_order(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[list[int]]], block: int
) -> None:
    folder = tmp_path_factory.mktemp("m")
    for k, part in enumerate(parts):
        with IndexedDatasetWriter(folder / f"p{k}", 100) as out:
            out.add([t for d in part for t in d], [len(d) for d in part], [len(d) // 2 for d in part])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_TOKENS", block)
        merge([str(folder / f"p{k}") for k in range(len(parts))], str(folder / "all"))
    whole = [document for part in parts for document in part]
    merged = IndexedDataset(folder / "all")
    assert [document.tolist() for document in merged] == whole
    told = [0] * len(whole) if merged.prompts is None else merged.prompts.tolist()
    assert told == [len(document) // 2 for document in whole]
    found = stats(str(folder / "all"))
    lengths = [len(document) for document in whole]
    assert (found.documents, found.tokens, found.empty) == (len(whole), sum(lengths), lengths.count(0))
    assert sum(n for _, n, _ in found.histogram) == len(whole) - lengths.count(0)
    assert sum(tokens for _, _, tokens in found.histogram) == sum(lengths)
    flat = [token for document in whole for token in document]
    assert found.used == len(set(flat))
    assert all(count == flat.count(token) for token, count in found.ids)


def test_other_dtypes_and_megatrons_sequences_are_merged(tmp_path: Path, write: Callable[..., str]) -> None:
    theirs = tmp_path / "theirs"  # int32: a document of two sequences, [5, 6] and [70000], then one of [8]
    Path(f"{theirs}.bin").write_bytes(np.array([5, 6, 70_000, 8], "<i4").tobytes())
    Path(f"{theirs}.idx").write_bytes(
        format.HEADER.pack(format.MAGIC, 1, 4, 3, 3)
        + np.array([2, 1, 1], "<i4").tobytes()
        + np.array([0, 8, 12], "<i8").tobytes()
        + np.array([0, 2, 3], "<i8").tobytes()
    )
    with pytest.raises(ValueError, match="give it with --vocabulary"):
        merge([str(theirs)], str(tmp_path / "all"))
    with pytest.raises(ValueError, match="id 70000"):
        merge([write([[1, 2]]), str(theirs)], str(tmp_path / "all"))
    assert merge([write([[1, 2]]), str(theirs)], str(tmp_path / "all"), vocabulary_size=80_000) == (3, 6)
    assert [d.tolist() for d in IndexedDataset(tmp_path / "all")] == [[1, 2], [5, 6, 70_000], [8]]


def test_what_cannot_be_merged_is_refused(tmp_path: Path, write: Callable[..., str]) -> None:
    a, b = write([[1]], name="a", tokenizer="aa"), write([[1]], name="b", tokenizer="bb")
    for arguments, words in (
        (([], "x"), "no dataset"),
        (([a, b], str(tmp_path / "x")), "2 tokenizers .*a aa, .*b bb.; build all"),
        (([a], a), "both read and written"),
        (([a, f"{a}.bin"], str(tmp_path / "x")), "is given twice"),
        (([a], "x", 0, 1.0), "validation=1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            merge(*arguments)
    Path(f"{a}.bin").write_bytes(b"\x02\x00")
    with pytest.raises(ValueError, match="is damaged"):
        merge([a], str(tmp_path / "x"))
    assert not list(tmp_path.glob("x*"))


def test_pointers_and_counts_beyond_int32(tmp_path: Path) -> None:
    """40 G tokens in 20 documents: the index alone, its lengths spooled as if the tokens had been written."""
    with IndexedDatasetWriter(tmp_path / "a", 60_000) as out:
        out._idx.write(np.full(20, 2**31 - 1, "<i4").tobytes())
        out._bin.truncate(20 * (2**31 - 1) * 2)
        out.documents, out.tokens = 20, 20 * (2**31 - 1)
    dataset = IndexedDataset(tmp_path / "a")
    assert (len(dataset), dataset.tokens) == (20, 20 * (2**31 - 1))
    assert dataset.begin(19) == 19 * (2**31 - 1)
    assert dataset.document_at(2**35) == 17
    assert dataset[19][-3:].tolist() == [0, 0, 0]


def test_validation_never_overlaps_training(tmp_path: Path, write: Callable[..., str]) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 1000, n).tolist() for n in rng.integers(1, 30, 400)]
    a, b = write(texts, name="a"), write(texts[::-1], name="b", vocabulary_size=70_000)  # copies, in another dtype
    both = merge([a, b], str(tmp_path / "all"), validation=0.2)
    train, validation = ([tuple(d) for d in IndexedDataset(tmp_path / name)] for name in ("all", "all.validation"))
    assert both == (800, sum(map(len, train)) + sum(map(len, validation)))
    assert not set(train) & set(validation)
    assert set(train) | set(validation) == set(map(tuple, texts))
    assert 0.1 < len(validation) / 800 < 0.3  # 0.2 +- five standard deviations of 400 draws


def test_the_share_is_kept_and_grows_by_inclusion() -> None:
    tokens, lengths = np.arange(200_000), np.full(100_000, 2)
    small, large = in_validation(tokens, lengths, 0.01), in_validation(tokens, lengths, 0.03)
    assert abs(small.mean() - 0.01) < 5 * (0.01 / 100_000) ** 0.5
    assert abs(large.mean() - 0.03) < 5 * (0.03 / 100_000) ** 0.5
    assert np.all(large[small])
    assert in_validation(tokens.astype(np.int32), lengths, 0.01).tolist() == small.tolist()


@given(documents=st.lists(st.lists(st.integers(0, 2**31), max_size=6), max_size=5))
def test_the_hash_never_changes(documents: list[list[int]]) -> None:
    """Written out again: another one would move documents from validation to training."""
    expected = []
    for document in documents:
        x = 0xCBF29CE484222325
        for token in document:
            x = (x ^ token) * 0x100000001B3 % 2**64
        x ^= len(document)
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        expected.append(x ^ x >> 31)
    flat = np.array([token for document in documents for token in document], np.int64)
    lengths = np.array([len(document) for document in documents], np.int64)
    assert _indexed.document_hashes(flat, lengths).tolist() == expected


def test_a_merge_in_steps_of_one(monkeypatch: pytest.MonkeyPatch, write: Callable[..., str], tmp_path: Path) -> None:
    monkeypatch.setattr(writer, "STEP", 1)
    merge([write([[1], [], [2, 3]])], str(tmp_path / "x"))
    assert [d.tolist() for d in IndexedDataset(tmp_path / "x")] == [[1], [], [2, 3]]
