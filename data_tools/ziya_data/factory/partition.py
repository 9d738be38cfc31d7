"""A part of an index of pages, wherever it lies: here, or in a process of a cluster."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziya_data._factory import Bloom, NearPages
from ziya_data.factory.recipe import Deduplicate

FILTERS = ("urls", "contents")
Rows = NDArray[np.uint64]
"""[N, 7]: signatures."""
Found = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]
"""[N] each: page or -1, Hamming distance of 128 SimHash bits (0 for minhash), estimated Jaccard similarity."""
Ask = Callable[..., list[Any]]
"""ask(method, *arguments) -> what that method of each partition returns, in order."""
Spread = Callable[[Callable[[int, int], "Partition"], int], Ask]
"""Makes so many partitions, of (number of the partition, how many there are), and gives the way to ask them all."""


class Partition:
    """Of each Bloom filter a stretch of its bits, and of the pages every `parts`-th one: memory and work are divided,
    and what all partitions together find does not depend on how many there are."""

    def __init__(self, settings: Deduplicate, folder: Path | None, part: int, parts: int) -> None:
        """Empty filters, or with `folder` those that Index.save left there; the pages are added in any case."""
        if folder is None:
            blooms = [Bloom(settings.capacity, settings.false_positive_rate, part, parts) for _ in FILTERS]
        else:
            blooms = [Bloom.load(str(folder / f"{name}.bloom"), part, parts) for name in FILTERS]
        self.filters = dict(zip(FILTERS, blooms, strict=True))
        self.near = NearPages(settings.method, part, parts)
        self.part, self.parts = part, parts

    def seen(self, name: str, keys: NDArray[np.uint64], add: bool) -> NDArray[np.bool_]:
        """[N], whether this part of the filter holds a key's bits, each key after those before it were added."""
        bloom = self.filters[name]
        return bloom.test_and_add(keys) if add else bloom.test(keys)

    def filter_size(self, name: str) -> tuple[int, int]:
        """Probes a key, words of the whole filter."""
        return self.filters[name].probes, self.filters[name].total

    def words(self, name: str, start: int, stop: int) -> NDArray[np.uint64]:
        """Of the words `start` to `stop` of the whole filter those that lie here."""
        bloom = self.filters[name]
        first = self.part * bloom.total // self.parts
        return bloom.words[max(start - first, 0) : max(stop - first, 0)]

    def find(self, rows: Rows, distance: int, jaccard: float) -> Found:
        return self.near.find(rows, distance, jaccard)

    def add(self, rows: Rows, first: int, bands: NDArray[np.uint8]) -> None:
        """Takes its own of the pages `first`, `first` + 1 ..."""
        self.near.add(rows, first, bands)

    def bytes(self) -> int:
        """Memory of its pages."""
        return self.near.bytes


def local(make: Callable[[int, int], Partition], count: int) -> Ask:
    """All partitions in this process, asked by a thread each: the look-ups run side by side."""
    partitions = [make(part, count) for part in range(count)]
    pool = ThreadPoolExecutor(count)

    def ask(method: str, *arguments: Any) -> list[Any]:
        return list(pool.map(lambda partition: getattr(partition, method)(*arguments), partitions))

    return ask
