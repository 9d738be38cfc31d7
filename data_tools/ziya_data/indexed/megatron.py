"""A source in the order of megatron-core's GPT dataset, to the bit: for runs that go on from one of Megatron's.

The number of samples N fixes everything. E epochs are the fewest with E T >= N S + 1 tokens; all documents E times over
are shuffled together (document index), the stream is cut every S tokens (sample index), and the samples are shuffled
(shuffle index). If fewer than 80 % of an epoch's samples are wanted of the last epoch, it is shuffled by itself, behind
the others. So, unlike our own order, another N is another order, and 4 bytes a document and epoch must be held.

Its "documents" are the sequences of the `.idx`. What is wrong there is an error here: more than 2^31 - 1 documents or
2^32 samples (they wrap), a seed that NumPy refuses.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziya_data import _indexed

from .cache import Cache
from .samples import Row

LAST_EPOCH_SHARE = 0.80
Indexes = tuple[NDArray[Any], ...]


class MegatronSamples:
    """Sample number 0 to `samples` - 1 of one source, as GPTDataset(num_samples=samples) gives them.

    Raises ValueError if the source has no token, or for what Megatron cannot count.
    """

    def __init__(
        self, corpus: _indexed.Corpus, sequence_length: int, seed: int, samples: int, cache: Cache | None = None
    ) -> None:
        if corpus.tokens == 0:
            raise ValueError("it holds no token; give it documents or leave it out")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} must be 0 to 2^32 - 1 for Megatron's order; choose another")
        self._corpus = corpus
        self._length = sequence_length
        self.epochs, self._together, self._separate, total = plan(corpus.tokens, sequence_length, samples)
        entries = self.epochs * corpus.documents
        if corpus.documents >= 2**31 or entries >= 2**32 or total >= 2**32:
            raise ValueError(
                f"{corpus.documents} documents in {self.epochs} epochs, {total} samples: Megatron's order counts "
                'documents in 31 bits and samples in 32; use order = "ziya"'
            )
        name = f"megatron-{seed}-{self.epochs}-{int(self._separate)}-{sequence_length}"
        indexes: Indexes = cache.arrays(name, lambda: self._build(seed, total)) if cache else self._build(seed, total)
        self.document_index, self.sample_index, self.shuffle_index = indexes

    def _build(self, seed: int, total: int) -> Indexes:
        return self._corpus.megatron_indexes(seed, self.epochs, self._together, self._separate, total, self._length)

    def pieces(self, number: int) -> NDArray[np.int64]:
        """[P, 3] (document, first token, tokens): what sample `number` is made of, S + 1 tokens in all."""
        rank, offset = self.sample_index[self.shuffle_index[number]]
        return self._corpus.listed_pieces(self.document_index, int(rank), int(offset), self._length + 1)

    def row(self, number: int, pad_id: int) -> Row:
        """Sample `number` as tokens, starts and loss mask."""
        return self._corpus.row(self.pieces(number), self._length, pad_id)

    def tokens_a_sample(self) -> float:
        return float(self._length)


def plan(tokens: int, length: int, samples: int) -> tuple[int, int, bool, int]:
    """(epochs, samples shuffled together, is the last epoch shuffled by itself, samples in all) for N `samples`.

    In integers, but for the one product that Megatron rounds to float64 as well.
    """
    epochs = max(1, -(-(samples * length + 1) // tokens))
    total = (epochs * tokens - 1) // length
    if epochs == 1:
        return epochs, total, False, total
    before_last = ((epochs - 1) * tokens - 1) // length
    separate = samples - before_last < int(LAST_EPOCH_SHARE * ((tokens - 1) // length))
    return epochs, before_last if separate else total, separate, total
