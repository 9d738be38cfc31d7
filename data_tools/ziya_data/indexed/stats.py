"""How long the documents of a dataset are, and what its most frequent ids are; in bounded memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .merge import blocks
from .progress import Progress
from .reader import IndexedDataset


@dataclass(frozen=True)
class Stats:
    """Of one dataset."""

    documents: int
    tokens: int
    empty: int
    """Documents without a token."""
    longest: int
    histogram: list[tuple[int, int, int]]
    """(documents of up to so many tokens, how many, their tokens), by powers of two."""
    ids: list[tuple[int, int]]
    """(id, how often) of the most frequent ones."""
    used: int
    """Different ids that occur."""


def stats(prefix: str, top: int = 20) -> Stats:
    """Reads every token once. Raises what IndexedDataset raises, and ValueError for negative ids."""
    if top < 0:
        raise ValueError(f"top={top} must be 0 or more")
    dataset = IndexedDataset(prefix)
    progress = Progress(f"index stats {prefix}")
    counts: NDArray[np.int64] = np.zeros(0, np.int64)
    of_size = np.zeros((65, 2), np.int64)
    longest = empty = done = 0
    for block in blocks(dataset):
        if block.tokens.size:
            if int(block.tokens.min()) < 0 or int(block.tokens.max()) > np.iinfo(np.int32).max:
                raise ValueError(f"{dataset.prefix} holds ids outside 0 to 2^31 - 1; see ziya index verify")
            found = np.bincount(block.tokens, minlength=counts.size)
            found[: counts.size] += counts
            counts = found
            longest = max(longest, int(block.lengths.max()))
        empty += int(np.count_nonzero(block.lengths == 0))
        size = np.ceil(np.log2(np.maximum(block.lengths, 1))).astype(np.int64)
        of_size[:, 0] += np.bincount(size[block.lengths > 0], minlength=65)
        # Whole numbers up to 2^53 are exact in bincount's float64; a block has far fewer tokens.
        of_size[:, 1] += np.bincount(size, weights=block.lengths, minlength=65).astype(np.int64)
        done += block.lengths.size
        progress.update(f"{done:,} of {len(dataset):,} documents")
    most = np.argsort(-counts, kind="stable")[:top]
    return Stats(
        documents=len(dataset),
        tokens=dataset.tokens,
        empty=empty,
        longest=longest,
        histogram=[(2**size, int(n), int(tokens)) for size, (n, tokens) in enumerate(of_size) if n],
        ids=[(int(token), int(counts[token])) for token in most if counts[token]],
        used=int(np.count_nonzero(counts)),
    )
