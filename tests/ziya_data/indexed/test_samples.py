"""Streams against a slow oracle: the whole token stream laid out in a Python list and cut with slices."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data import _indexed
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.samples import StreamSamples, corpus_of, source_key
from ziya_data.indexed.writer import IndexedDatasetWriter

MASK64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def scramble(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK64
    return x ^ (x >> 31)


def permutation(key: int, epoch: int, purpose: int, n: int) -> list[int]:
    """Version 1 of the shuffle, written out again in Python."""
    bits = max(6, (n - 1).bit_length())
    low_bits, high_bits = bits // 2, bits - bits // 2
    mixed = scramble((scramble((key + purpose * GOLDEN) & MASK64) + epoch * GOLDEN) & MASK64)
    keys = [scramble((mixed + (r + 1) * GOLDEN) & MASK64) for r in range(6)]

    def half_round(half: int, round_key: int, width: int) -> int:
        z = (half ^ round_key) * GOLDEN & MASK64
        return ((z ^ (z >> 32)) * 0xBF58476D1CE4E5B9 & MASK64) >> (64 - width)

    order = []
    for i in range(n):
        while True:
            high, low = i >> low_bits, i & ((1 << low_bits) - 1)
            for r in range(0, 6, 2):
                high ^= half_round(low, keys[r], high_bits)
                low ^= half_round(high, keys[r + 1], low_bits)
            i = high << low_bits | low
            if i < n:
                break
        order.append(i)
    return order


@settings(max_examples=60, deadline=None)
@given(key=st.integers(0, MASK64), epoch=st.integers(0, 1000), purpose=st.integers(0, 1), n=st.integers(1, 3000))
def test_a_permutation_is_version_1_and_a_permutation(key: int, epoch: int, purpose: int, n: int) -> None:
    order = _indexed.permute(key, epoch, purpose, n).tolist()
    assert order == permutation(key, epoch, purpose, n)
    assert sorted(order) == list(range(n))
    assert _indexed.permute_one(key, epoch, purpose, n, n // 2) == order[n // 2]


def test_the_key_of_a_source_never_changes() -> None:
    # Pinned with the shuffle's version: runs that go on after an update must see the same order.
    assert source_key(1234, "wiki") == 6749887410150588015
    assert _indexed.permute(source_key(1234, "wiki"), 0, _indexed.DOCUMENTS, 10).tolist() == [
        4,
        8,
        0,
        2,
        5,
        9,
        3,
        7,
        1,
        6,
    ]


@pytest.mark.parametrize("n", [3, 5])
def test_every_order_is_about_equally_likely(n: int) -> None:
    draws = 20_000
    seen = Counter(tuple(_indexed.permute(7, epoch, 0, n).tolist()) for epoch in range(draws))
    orders = math.factorial(n)
    chi_square = sum((count - draws / orders) ** 2 / (draws / orders) for count in seen.values())
    assert len(seen) == orders
    # Mean orders - 1, standard deviation sqrt(2 (orders - 1)): five of them are never met by chance.
    assert chi_square < orders - 1 + 5 * math.sqrt(2 * (orders - 1))


def test_a_large_order_is_not_near_the_original() -> None:
    n = 100_000
    order = _indexed.permute(3, 0, 0, n)
    # For a uniform order: correlation with the original about 0 +- 1/sqrt(n), one fixed point on average.
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 5 / math.sqrt(n)
    assert abs(np.corrcoef(np.diff(order)[1:], np.diff(order)[:-1])[0, 1] + 0.5) < 5 / math.sqrt(n)
    assert np.sum(order == np.arange(n)) < 10


Tokens = list[tuple[int, int, int]]  # (token, instance of a document in the stream, position in it)


def oracle_stream(documents: list[list[int]], key: int, epochs: int) -> tuple[Tokens, list[int]]:
    """The stream, and the document of each instance."""
    stream: Tokens = []
    instances: list[int] = []
    for epoch in range(epochs):
        for document in permutation(key, epoch, 0, len(documents)):
            stream += [(token, len(instances), at) for at, token in enumerate(documents[document])]
            instances.append(document)
    return stream, instances


def oracle_row(row: Tokens) -> tuple[list[int], list[int], list[bool]]:
    """Tokens, starts and loss mask of a row of S + 1 labelled tokens, from their definitions alone."""
    labels = [instance for _, instance, _ in row]
    tokens = [token for token, _, _ in row]
    starts = [labels.index(label) for label in labels[:-1]]
    mask = [at > 0 and labels[t] == labels[t + 1] for t, (_, _, at) in enumerate(row[1:])]
    return tokens, starts, mask


lengths = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)


@settings(max_examples=150, deadline=None)
@given(lengths=lengths, cut=st.integers(0, 12), length=st.integers(1, 20), seed=st.integers(0, 2**40))
def test_a_stream_is_the_oracles(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cut: int, length: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("s")
    ids = iter(range(1, 1000))
    documents = [[next(ids) for _ in range(count)] for count in lengths]
    for name, part in (("a", documents[:cut]), ("b", documents[cut:])):  # two files, one of them perhaps empty
        with IndexedDatasetWriter(folder / name, 1000) as out:
            out.add([token for document in part for token in document], [len(document) for document in part])
    corpus = corpus_of([IndexedDataset(folder / name) for name in "ab"])
    key = source_key(seed, "x")
    samples = StreamSamples(corpus, length, key)

    epochs = 3
    total = sum(lengths)
    stream, instances = oracle_stream(documents, key, epochs + 2 + length // total)
    for epoch in range(epochs):
        first, stop = math.ceil(epoch * total / length), math.ceil((epoch + 1) * total / length)
        order = permutation(key, epoch, 1, stop - first) if stop > first else []
        for number in range(first, stop):
            begin = (first + order[number - first]) * length
            row = stream[begin : begin + length + 1]
            pieces = samples.pieces(number)
            tokens, starts, mask = corpus.row(pieces, length, 0)
            assert (tokens.tolist(), starts.tolist(), mask.tolist()) == oracle_row(row)
            assert [part.tolist() for part in samples.row(number, 0)] == list(oracle_row(row))
            assert pieces[:, 0].tolist() == [instances[i] for i in dict.fromkeys(label for _, label, _ in row)]


@pytest.mark.parametrize("files", [1, 2])
def test_samples_of_hundreds_of_documents(tmp_path: Path, files: int) -> None:
    """The seams between batches of documents: rows of 700 tokens over documents of 0 to 3."""
    lengths = np.random.default_rng(0).integers(0, 4, 1500)
    for part, name in zip(np.array_split(lengths, files), "ab", strict=False):
        with IndexedDatasetWriter(tmp_path / name, 10) as out:
            out.add(np.ones(part.sum(), np.int64), part)
    corpus = corpus_of([IndexedDataset(tmp_path / name) for name in "ab"[:files]])
    samples = StreamSamples(corpus, 700, 5)
    order = np.concatenate([permutation(5, epoch, 0, 1500) for epoch in range(3)])
    begins = np.cumsum(lengths[order]) - lengths[order]
    total = int(lengths.sum())
    first, stop = math.ceil(total / 700), math.ceil(2 * total / 700)
    expected = []
    for number in range(first, stop):
        rank = int(np.searchsorted(begins, number * 700, side="right")) - 1
        expected.append([rank - 1500, number * 700 - int(begins[rank])])
    assert samples.build_index(1).tolist() == expected
    slots = permutation(5, 1, 1, stop - first)
    for number in range(first, stop):
        begin = (first + slots[number - first]) * 700
        pieces, at = [], begin
        rank = int(np.searchsorted(begins, begin, side="right")) - 1
        while at < begin + 701:
            end = min(int(begins[rank] + lengths[order[rank]]), begin + 701)
            if end > at:
                pieces.append([int(order[rank]), at - int(begins[rank]), end - at])
            at, rank = max(at, end), rank + 1
        assert samples.pieces(number).tolist() == pieces


def test_every_token_is_predicted_once_an_epoch(write: Callable[..., str]) -> None:
    documents = [list(range(10 * d, 10 * d + 9)) for d in range(40)]  # 360 tokens, 45 samples of 8
    corpus = corpus_of([IndexedDataset(write(documents))])
    samples = StreamSamples(corpus, 8, 5)
    for epoch in range(3):
        predicted: Counter[int] = Counter()
        for number in range(45 * epoch, 45 * (epoch + 1)):
            tokens, _, mask = corpus.row(samples.pieces(number), 8, 0)
            predicted.update(tokens[1:][mask].tolist())
        assert predicted == Counter(token for document in documents for token in document[1:])


def test_long_runs_do_not_overflow(write: Callable[..., str]) -> None:
    """Sample 10^12 of a source of three tokens: epoch 1.4 * 10^15."""
    corpus = corpus_of([IndexedDataset(write([[1], [2], [3]]))])
    samples = StreamSamples(corpus, 4096, 5)
    tokens, starts, _ = corpus.row(samples.pieces(10**12), 4096, 0)
    assert set(tokens.tolist()) == {1, 2, 3}
    assert starts.tolist() == list(range(4096))


def test_a_source_of_no_tokens_is_refused(write: Callable[..., str]) -> None:
    corpus = corpus_of([IndexedDataset(write([[], []]))])
    with pytest.raises(ValueError, match="holds no token"):
        StreamSamples(corpus, 8, 5)
