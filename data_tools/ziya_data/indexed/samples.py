"""A source as an endless stream of shuffled documents, cut into samples of S + 1 tokens.

Epoch e of a source is all its documents in the order `Permutation(key, e, DOCUMENTS)`; the stream is epoch 0, then
epoch 1, and so on. With T tokens in an epoch, sample k holds the tokens [k S, k S + S] of the stream: neighbours share
one token, so that every token is predicted exactly once an epoch. The samples that start in an epoch are handed out
in the order `Permutation(key, e, SAMPLES)`, so that a long document is not read for many samples in a row.

Both orders are keyed Feistel permutations (csrc/indexed/permutation.h): a pure function of (seed, name of the source,
epoch) that needs no table, so the only memory is 16 bytes a sample of the current epoch.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ziya_data import _indexed

from .cache import Cache
from .reader import IndexedDataset

SHUFFLE_VERSION = 1  # changes whenever the same seed would give another order
Row = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]
"""tokens [S + 1], starts [S], loss mask [S]; see mix.Sample."""
EPOCHS_KEPT = 3  # a mix reads one epoch of a source at a time, workers that run ahead the next


def source_key(seed: int, name: str) -> int:
    """The 64-bit key of a source's orders: other sources of the mix do not change it."""
    text = f"ziya shuffle {SHUFFLE_VERSION}/{seed}/{name}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def corpus_of(datasets: Sequence[IndexedDataset], as_sequences: bool = False) -> _indexed.Corpus:
    """The documents of several datasets, numbered on through them; or their sequences, as Megatron numbers them."""
    return _indexed.Corpus([dataset.file_tuple(as_sequences) for dataset in datasets])


class StreamSamples:
    """Sample number 0, 1, ... of one source whose documents run on and are cut every S tokens.

    Raises ValueError if the source has no token.
    """

    def __init__(self, corpus: _indexed.Corpus, sequence_length: int, key: int, cache: Cache | None = None) -> None:
        if corpus.tokens == 0:
            raise ValueError("it holds no token; give it documents or leave it out")
        self._corpus = corpus
        self._tokens = corpus.tokens
        self._length = sequence_length
        self._key = key
        self._cache = cache
        self._index = lru_cache(maxsize=EPOCHS_KEPT)(self.build_index)

    def build_index(self, epoch: int) -> NDArray[np.int64]:
        """[samples that start in this epoch, 2]: rank in its document order, offset in that document."""

        def build() -> tuple[NDArray[np.int64]]:
            return (self._corpus.sample_index(self._key, epoch, self._length),)

        if self._cache is None:
            return build()[0]
        return self._cache.arrays(f"stream-{self._key:016x}-{epoch}-{self._length}", build)[0]

    def epoch_of(self, number: int) -> int:
        return number * self._length // self._tokens

    def tokens_a_sample(self) -> float:
        return float(self._length)

    def pieces(self, number: int) -> NDArray[np.int64]:
        """[P, 3] (document, first token, tokens): what sample `number` is made of, S + 1 tokens in all."""
        epoch = self.epoch_of(number)
        first = -(-epoch * self._tokens // self._length)  # the first sample that starts in this epoch
        index = self._index(epoch)
        slot = _indexed.permute_one(self._key, epoch, _indexed.SAMPLES, len(index), number - first)
        rank, offset = index[slot]
        return self._corpus.stream_pieces(self._key, epoch, rank, offset, self._length + 1)

    def row(self, number: int, pad_id: int) -> Row:
        """What `Corpus.row` makes of its pieces, in one call into C++."""
        length = self._length
        epoch = number * length // self._tokens
        first = -(-epoch * self._tokens // length)
        return self._corpus.stream_row(self._key, epoch, self._index(epoch), number - first, length, pad_id)
