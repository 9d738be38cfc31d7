"""A source as rows of whole documents: best-fit packed to the sequence length, the rest of a row padded.

For supervised stages, where half a question is worth nothing (Ziya2 packs whole documents of one task type). The
method is best-fit decreasing, as in "Fewer Truncations Improve Language Modeling" (Ding et al. 2024): the longest
document first, each into the fullest row with room for it. As there, a document longer than a row is split, not
truncated, so that no token is lost; its pieces overlap by one token and count as documents of their own. A row holds
S + 1 tokens: the last is only ever a target. Documents of fewer than two tokens have nothing to predict and are left
out. A row never mixes sources.

Best fit needs no list of pieces, only how many there are of each length. So with fewer than 2^32 documents an epoch
takes 4 bytes a document (8 where one is cut) and 8 a row; while it is built 4 a document and 4 a row more.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ziya_data import _indexed

from .cache import Cache
from .samples import EPOCHS_KEPT, Row

Pieces = NDArray[np.uint32] | NDArray[np.int64]
"""[P, 1 or 2]"""


class PackedSamples:
    """Sample number 0, 1, ... of one source whose documents are packed whole.

    Every epoch packs the documents anew (other companions, the same number of rows) and hands out its rows in an
    order of its own. Raises ValueError if no document has two tokens.
    """

    def __init__(self, corpus: _indexed.Corpus, sequence_length: int, key: int, cache: Cache | None = None) -> None:
        self._corpus = corpus
        self._length = sequence_length
        self._key = key
        self._cache = cache
        self._epoch = lru_cache(maxsize=EPOCHS_KEPT)(self.build_index)
        self._rows = len(self._epoch(0)[1]) - 1
        if self._rows == 0:
            raise ValueError("it holds no document of two tokens or more; give it documents or leave it out")

    def build_index(self, epoch: int) -> tuple[Pieces, NDArray[np.int64]]:
        """Pieces and rows [R + 1] of an epoch, as `Corpus.pack` numbers them: row r is pieces[rows[r]:rows[r + 1]]."""

        def build() -> tuple[Pieces, NDArray[np.int64]]:
            return self._corpus.pack(self._key, epoch, self._length)

        if self._cache is None:
            return build()
        pieces, rows = self._cache.arrays(f"packed-{self._key:016x}-{epoch}-{self._length}", build)
        return pieces, rows

    def epoch_of(self, number: int) -> int:
        return number // self._rows

    def tokens_a_sample(self) -> float:
        """Mean; padding is none."""
        return self._corpus.packed_tokens(self._length) / self._rows

    def pieces(self, number: int) -> NDArray[np.int64]:
        """[P, 3] (document, first token, tokens): what row `number` is made of, at most S + 1 tokens in all."""
        epoch, place = divmod(number, self._rows)
        pieces, rows = self._epoch(epoch)
        row = _indexed.permute_one(self._key, epoch, _indexed.SAMPLES, self._rows, place)
        return self._corpus.packed_pieces(pieces[rows[row] : rows[row + 1]], self._length)

    def row(self, number: int, pad_id: int) -> Row:
        """Row `number` as tokens, starts and loss mask."""
        return self._corpus.row(self.pieces(number), self._length, pad_id)
