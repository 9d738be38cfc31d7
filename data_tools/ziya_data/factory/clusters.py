"""Clusters of near-duplicates: a page that stayed, and those that went because they are like it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 10
"""Clusters that the report shows with their texts."""
FROM = " from "
"""What stands between the likeness and the id in the reason of a near-duplicate."""


class Copies:
    """How many near-duplicates each page of an index has; 4 to 8 bytes a page, for the room to grow."""

    def __init__(self) -> None:
        self.counts = np.zeros(0, np.uint32)

    def add(self, pages: NDArray[np.int64]) -> None:
        """Pages of which a near-duplicate was found, each as often as one was."""
        if len(pages) and pages.max() >= len(self.counts):
            grown = np.zeros(2 * int(pages.max()) + 1, np.uint32)
            grown[: len(self.counts)] = self.counts
            self.counts = grown
        np.add.at(self.counts, pages, 1)

    def summary(self, name: Callable[[int], str]) -> dict[str, Any]:
        """Clusters by size (the page that stayed counts), in powers of two, and the largest; `name`: page -> id."""
        pages = np.flatnonzero(self.counts)
        sizes = self.counts[pages].astype(np.int64) + 1
        powers = np.ceil(np.log2(sizes)).astype(int).tolist()
        first = np.lexsort((pages, -sizes))[:LARGEST]  # of equals the older one
        return {
            "clusters": len(pages),
            "copies": int((sizes - 1).sum()),
            "sizes": {str(power): count for power, count in sorted(Counter(powers).items())},
            "largest": {name(int(pages[i])): int(sizes[i]) for i in first},
        }


def original(why: str) -> str:
    """The id of the page that stayed, in the reason of a near-duplicate."""
    return why.partition(FROM)[2]


def label(power: int) -> str:
    """Of the sizes above 2**(power - 1) up to 2**power."""
    least, most = 2 ** (power - 1) + 1, 2**power
    return str(most) if least == most else f"{least:,}-{most:,}"
