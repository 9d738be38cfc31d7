from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data.indexed.packing import PackedSamples
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.samples import corpus_of
from ziya_data.indexed.writer import IndexedDatasetWriter

PAD = 0


def oracle_rows(lengths: list[int], length: int) -> int:
    """Best-fit decreasing with nothing but lists: the number of rows."""
    pieces = [min(length + 1, n - at) for n in lengths for at in range(0, n - 1, length)]
    rooms: list[int] = []
    for piece in sorted(pieces, reverse=True):
        fits = [room for room in rooms if room >= piece]
        if fits:
            rooms.remove(min(fits))
            rooms.append(min(fits) - piece)
        else:
            rooms.append(length + 1 - piece)
    return len(rooms)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=40).filter(lambda all: max(all) > 1),
    length=st.integers(1, 24),
    key=st.integers(0, 2**64 - 1),
)
def test_packing(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, key: int) -> None:
    prefix = tmp_path_factory.mktemp("p") / "a"
    ids = iter(range(1, 2000))
    documents = [[next(ids) for _ in range(count)] for count in lengths]
    with IndexedDatasetWriter(prefix, 2000) as out:
        out.add([token for document in documents for token in document], lengths)
    corpus = corpus_of([IndexedDataset(prefix)])
    samples = PackedSamples(corpus, length, key)
    rows = oracle_rows(lengths, length)
    for epoch in range(2):
        predicted: Counter[int] = Counter()
        for number in range(rows * epoch, rows * (epoch + 1)):
            pieces = samples.pieces(number).tolist()
            tokens, starts, mask = corpus.row(np.array(pieces), length, PAD)
            expected_tokens: list[int] = []
            expected_starts: list[int] = []
            expected_mask: list[bool] = []
            for document, offset, count in pieces:
                # Whole, unless it cannot fit into any row.
                assert count == lengths[document] or lengths[document] > length + 1
                expected_starts += [len(expected_tokens)] * count
                expected_mask += [True] * (count - 1) + [False]
                expected_tokens += documents[document][offset : offset + count]
            used = len(expected_tokens)
            assert used <= length + 1
            padding = length + 1 - used
            assert tokens.tolist() == expected_tokens + [PAD] * padding
            assert starts.tolist() == (expected_starts + [used] * padding)[:length]
            assert mask.tolist() == (expected_mask + [False] * padding)[:length]
            predicted.update(tokens[1:][mask].tolist())
        # Each epoch predicts every token but the documents' first ones, once.
        assert predicted == Counter(token for document in documents for token in document[1:])


def test_epochs_differ_in_companions_and_order(write: Callable[..., str]) -> None:
    corpus = corpus_of([IndexedDataset(write([[d + 1] * 10 for d in range(100)]))])
    samples = PackedSamples(corpus, 49, 3)
    epochs = [[samples.pieces(number)[:, 0].tolist() for number in range(20 * e, 20 * e + 20)] for e in range(2)]
    assert epochs[0] != epochs[1]
    assert {frozenset(row) for row in epochs[0]} != {frozenset(row) for row in epochs[1]}


def test_rows_are_nearly_full(write: Callable[..., str]) -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 2000).astype(int).clip(2, 4097)
    corpus = corpus_of([IndexedDataset(write([[1] * length for length in lengths]))])
    rows = len(corpus.pack(3, 0, 4096)[1]) - 1
    assert lengths.sum() / (rows * 4097) > 0.97


def test_a_source_with_nothing_to_predict_is_refused(write: Callable[..., str]) -> None:
    corpus = corpus_of([IndexedDataset(write([[1], []]))])
    with pytest.raises(ValueError, match="no document of two tokens"):
        PackedSamples(corpus, 8, 5)
