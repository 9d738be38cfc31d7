"""Megatron's order against NumPy's own generator, written out again as Megatron's documentation describes it.

Where megatron-core is installed, test_megatron.py holds it against the real thing as well.
"""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ziya_data.indexed import format
from ziya_data.indexed.megatron import MegatronSamples, plan
from ziya_data.indexed.mix import Mix, Source
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.samples import corpus_of
from ziya_data.indexed.writer import IndexedDatasetWriter


def oracle(lengths: list[int], length: int, samples: int, seed: int) -> tuple[NDArray, list[list[int]], NDArray]:
    """Document index, sample index and shuffle index with NumPy's shuffle and a flat list of tokens."""
    total = sum(lengths)
    epochs = 1
    while epochs * total < samples * length + 1:
        epochs += 1
    count, before_last = (epochs * total - 1) // length, ((epochs - 1) * total - 1) // length
    separate = epochs > 1 and samples - before_last < int(0.80 * ((total - 1) // length))
    random = np.random.RandomState(seed)
    parts = [np.tile(np.arange(len(lengths)), epochs - separate)] + [np.arange(len(lengths))] * separate
    for part in parts:
        random.shuffle(part)
    documents = np.concatenate(parts)
    flat = [(rank, offset) for rank, d in enumerate(documents) for offset in range(lengths[d])]
    index = [list(flat[k * length]) for k in range(count + 1)]
    index[0] = [0, 0]
    shuffled = [np.arange(before_last if separate else count)]
    shuffled += [np.arange(before_last, count)] if separate else []
    for part in shuffled:
        random.shuffle(part)
    return documents, index, np.concatenate(shuffled)


lengths_of = st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(lambda all: sum(all) > 1)


@settings(max_examples=200, deadline=None)
@given(lengths=lengths_of, length=st.integers(1, 40), samples=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_the_three_indexes_are_numpys(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, samples: int, seed: int
) -> None:
    prefix = tmp_path_factory.mktemp("m") / "a"
    with IndexedDatasetWriter(prefix, 5000) as out:
        out.add(np.arange(sum(lengths)), lengths)
    dataset = IndexedDataset(prefix)
    ours = MegatronSamples(corpus_of([dataset]), length, seed, samples)
    documents, index, shuffled = oracle(lengths, length, samples, seed)
    assert ours.document_index.tolist() == documents.tolist()
    assert ours.sample_index.tolist() == index
    assert ours.shuffle_index.tolist() == shuffled.tolist()
    stream = np.concatenate([dataset[int(d)] for d in documents])
    mix = Mix([Source("x", (str(prefix),), order="megatron")], length, samples, seed, 0)
    for i in range(samples):
        begin = int(shuffled[i]) * length
        assert mix[i].tokens.tolist() == stream[begin : begin + length + 1].tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 63, 64, 65, 66, 127, 128, 129, 1000, 100_000])
def test_one_epoch_of_any_size(write: Callable[..., str], count: int) -> None:
    """The seams of the batched shuffle: around powers of two and multiples of 64."""
    corpus = corpus_of([IndexedDataset(write([[1]] * (count + 1)))])
    expected = np.arange(count + 1)
    np.random.RandomState(7).shuffle(expected)
    assert MegatronSamples(corpus, 1, 7, 0).document_index.tolist() == expected.tolist()


def test_counts_are_integers() -> None:
    """In float32, as Megatron counts a partial last sample, these 562,632.03 samples are 562,632 with it."""
    assert plan(1_152_270_393, 2048, 562_632) == (1, 562_632, False, 562_632)
    assert plan(1_152_270_393, 2048, 562_633)[0] == 2
    all_of_it, two_epochs = (9 * 10**12 - 1) // 4096, (6 * 10**12 - 1) // 4096
    assert plan(3 * 10**12, 4096, 2 * 10**9) == (3, two_epochs, True, all_of_it)
    assert plan(3 * 10**12, 4096, 2 * 10**9 + 10**8) == (3, all_of_it, False, all_of_it)


def test_documents_beyond_int32_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    """20 documents of 2^31 - 1 tokens, lengths only (a sparse file): positions beyond 2^35."""
    folder = tmp_path_factory.mktemp("big")
    lengths = np.full(20, 2**31 - 1, "<i4")
    ends = np.cumsum(lengths, dtype="<i8")
    with (folder / "a.bin").open("wb") as file:
        file.truncate(int(ends[-1]))
    (folder / "a.idx").write_bytes(
        format.HEADER.pack(format.MAGIC, 1, 1, 20, 21)
        + lengths.tobytes()
        + np.concatenate(([0], ends[:-1])).astype("<i8").tobytes()
        + np.arange(21, dtype="<i8").tobytes()
    )
    length, samples = 1 << 20, 50_000
    ours = MegatronSamples(corpus_of([IndexedDataset(folder / "a")]), length, 3, samples)
    assert ours.sample_index.dtype == np.int32
    total = int(ends[-1])
    assert len(ours.shuffle_index) == (2 * total - 1) // length
    for k in (1, 30_000, len(ours.sample_index) - 1):
        rank, offset = ours.sample_index[k].tolist()
        assert rank * (2**31 - 1) + offset == k * length
    for order in ("megatron", "ziya"):
        sample = Mix([Source("x", (str(folder / "a"),), order=order)], 4096, 2**24, 3, 0)[2**24 - 1]
        assert sample.tokens.sum() == 0


@pytest.mark.parametrize(
    ("samples", "seed", "words"), [(5, -1, "seed=-1"), (5, 2**32, "2\\^32 - 1"), (2**33, 1, "31 bits")]
)
def test_what_it_cannot_count_is_refused(write: Callable[..., str], samples: int, seed: int, words: str) -> None:
    corpus = corpus_of([IndexedDataset(write([[1], [2]]))])
    with pytest.raises(ValueError, match=words) as caught:
        MegatronSamples(corpus, 1, seed, samples)
    assert "\n" not in str(caught.value)


def test_a_source_without_tokens_is_refused(write: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match="holds no token"):
        Mix([Source("x", (write([[]]),), order="megatron")], 8, 4, 1, 0)
