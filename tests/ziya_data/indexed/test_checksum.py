"""The fast CRC-32 and the copying of tokens against zlib and NumPy, whatever the processor can."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data import _indexed
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.samples import corpus_of
from ziya_data.indexed.writer import IndexedDatasetWriter

PLAIN, CARRYLESS, WIDE = 0, 1, 2  # what a processor cannot do falls back to the one before
DATA = np.random.default_rng(0).bytes(5000)


@settings(max_examples=300, deadline=None)
@given(begin=st.integers(0, 70), size=st.integers(0, 4900), crc=st.integers(0, 2**32 - 1), kind=st.integers(0, 2))
def test_it_is_zlibs(begin: int, size: int, crc: int, kind: int) -> None:
    part = DATA[begin : begin + size]
    assert _indexed.crc32(part, crc, kind) == zlib.crc32(part, crc)


@pytest.mark.parametrize("kind", [PLAIN, CARRYLESS, WIDE])
def test_every_small_size_and_every_bit(kind: int) -> None:
    for size in range(600):
        assert _indexed.crc32(DATA[:size], 0, kind) == zlib.crc32(DATA[:size])
    right = zlib.crc32(DATA[:600])
    for bit in range(0, 4800, 7):
        damaged = bytearray(DATA[:600])
        damaged[bit // 8] ^= 1 << bit % 8
        assert _indexed.crc32(damaged, 0, kind) == zlib.crc32(damaged) != right


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_rows_of_every_dtype(write: Callable[..., str], tmp_path: object, dtype: type[np.integer]) -> None:
    """Lengths around those of a vector, and the largest id of the dtype."""
    lengths = [*range(1, 70), 1000]
    largest = int(np.iinfo(dtype).max)
    ids = np.random.default_rng(1).integers(0, largest, sum(lengths), dtype=dtype, endpoint=True)
    ids[::50] = largest
    prefix = f"{tmp_path}/a"
    with IndexedDatasetWriter(prefix, min(largest + 1, 2**62), dtype=dtype) as out:
        out.add(np.minimum(ids, min(largest, 2**62 - 1)), lengths)
    dataset = IndexedDataset(prefix)
    corpus = corpus_of([dataset])
    for document in range(len(dataset)):
        expected = dataset[document].astype(np.int64).tolist()
        tokens, _, _ = corpus.row(np.array([[document, 0, len(expected)]]), len(expected) - 1 or 1, 7)
        assert tokens.tolist()[: len(expected)] == expected
