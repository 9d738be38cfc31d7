import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data import _indexed
from ziya_data.indexed import format
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


def oracle_pack(lengths: list[int], order: list[int], length: int) -> list[list[list[int]]]:
    """The rows of an epoch whose documents come in this order, each a list of [document, first token, tokens]."""
    pieces = [[d, at, min(length + 1, lengths[d] - at)] for d in order for at in range(0, lengths[d] - 1, length)]
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), the last one given that room last
    for place in sorted(range(len(pieces)), key=lambda place: -pieces[place][2]):
        size = pieces[place][2]
        fits = [room for room, _ in open_rows if room >= size]
        room, row = length + 1, len(rows)
        if fits:
            at = max(k for k, (room, _) in enumerate(open_rows) if room == min(fits))
            room, row = open_rows.pop(at)
        else:
            rows.append([])
        rows[row].append(place)
        open_rows.append((room - size, row))
    return [[pieces[place] for place in sorted(row)] for row in rows]


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=60).filter(lambda all: max(all) > 1),
    length=st.integers(1, 45),
    key=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 5),
)
def test_the_rows_of_an_epoch_never_change(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, key: int, epoch: int
) -> None:
    """Row by row the oracle's: a run that goes on must find the rows that it left."""
    prefix = tmp_path_factory.mktemp("p") / "a"
    with IndexedDatasetWriter(prefix, 10) as out:
        out.add(np.zeros(sum(lengths), np.int64), lengths)
    corpus = corpus_of([IndexedDataset(prefix)])
    pieces, rows = corpus.pack(key, epoch, length)
    assert pieces.shape[1] == (2 if max(lengths) > length + 1 else 1)
    expected = oracle_pack(lengths, _indexed.permute(key, epoch, 0, len(lengths)).tolist(), length)
    made = [corpus.packed_pieces(pieces[a:b], length).tolist() for a, b in pairwise(rows.tolist())]
    assert made == expected
    assert corpus.packed_tokens(length) == sum(count for row in expected for _, _, count in row)


def test_packing_takes_a_few_bytes_a_document(tmp_path: Path) -> None:
    """Lengths only, over a sparse file: 2,000,000 documents in rows of 4,097 take 8 bytes each while packed."""
    documents = 2_000_000
    lengths = np.random.default_rng(0).integers(2, 600, documents, dtype="<i4")
    ends = np.cumsum(lengths, dtype="<i8")
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(int(ends[-1]) * 2)
    with (tmp_path / "a.idx").open("wb") as file:
        file.write(format.HEADER.pack(format.MAGIC, 1, 8, documents, documents + 1) + lengths.tobytes())
        file.write(((ends - lengths) * 2).tobytes() + np.arange(documents + 1, dtype="<i8").tobytes())
    program = f"""
import resource
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.samples import corpus_of
corpus = corpus_of([IndexedDataset({str(tmp_path / "a")!r})])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pieces, rows = corpus.pack(1, 0, 4096)
print(len(pieces), pieces.nbytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    count, size, grew = map(int, done.stdout.split())
    assert (count, size) == (documents, 4 * documents)
    assert grew < 12 * documents  # 8 by design, and 16 a row (of 13 documents); a list of pieces alone would take 24


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
