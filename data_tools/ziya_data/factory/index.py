"""What was seen: by address, by content, by likeness. It is kept, seen/, and new data meets old data.

    seen/urls.bloom, contents.bloom   Bloom filters
         near.index                   signatures of the pages that likeness is judged by, in order
         ids.txt                      their ids

The files do not depend on how many partitions the index had, and any number may read them.
"""

import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ziya_data._factory import NearOrder, best
from ziya_data.factory.clusters import Copies
from ziya_data.factory.partition import FILTERS, Ask, Found, Partition, Rows, Spread, local
from ziya_data.factory.recipe import Deduplicate

BLOOM, NEAR = b"ZIYABF1\0", b"ZIYANE3\0"
CHUNK = 1 << 16
"""Pages handed on at once."""
STRETCH = 1 << 22
"""Words of a filter that are fetched at once to be saved, 32 MB: it may be larger than the memory here."""


class Names:
    """Ids of the pages of an index, in order, in a file: in memory they would take more than the pages themselves."""

    EACH = 64
    """Ids between two places that are remembered."""

    def __init__(self, path: Path | None = None, scratch: Path | None = None) -> None:
        """Those that `save` wrote to `path`, or none yet, to be kept in a file in the folder `scratch`."""
        self.file = path.open("rb") if path else temporary(scratch)
        self.starts, self.count, self.end = array("q"), 0, 0
        for line in self.file:
            self.step(len(line))

    def step(self, size: int) -> None:
        if self.count % self.EACH == 0:
            self.starts.append(self.end)
        self.count += 1
        self.end += size

    def extend(self, names: Iterable[str]) -> None:
        for name in names:
            line = name.replace("\n", " ").encode() + b"\n"
            self.file.write(line)
            self.step(len(line))
        self.file.flush()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> str:
        block = place // self.EACH
        end = self.starts[block + 1] if block + 1 < len(self.starts) else self.end
        lines = os.pread(self.file.fileno(), end - self.starts[block], self.starts[block]).split(b"\n")
        return lines[place % self.EACH].decode()

    def save(self, path: Path) -> None:
        self.file.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(self.file, file)


class Near:
    """Pages by likeness: the partitions look in their own, and what is new is taken in order here.

    The signatures also go to the file `rows`: the partitions are filled from it again, and need not keep what they do
    not use. Without one nothing can be saved.
    """

    def __init__(self, method: str, ask: Ask, rows: BinaryIO | None = None) -> None:
        self.ask, self.order, self.rows = ask, NearOrder(method), rows

    def __len__(self) -> int:
        return len(self.order)

    def find(self, rows: Rows, distance: int, jaccard: float) -> Found:
        """Of each page the one most like it."""
        return best(self.ask("find", rows, distance, jaccard))

    def find_or_add(self, rows: Rows, distance: int, jaccard: float) -> Found:
        """The same, page by page; one that is like none before it is added, and its page is -1."""
        first = len(self.order)
        found, bands = self.order.resolve(rows, self.find(rows, distance, jaccard), distance, jaccard)
        new = found[0] < 0
        self.take(rows[new], first, bands[new])
        return found

    def take(self, rows: Rows, first: int, bands: NDArray[np.uint8]) -> None:
        self.ask("add", rows, first, bands)
        if self.rows:
            self.rows.write(rows.tobytes())

    @property
    def bytes(self) -> int:
        """Memory of all partitions and of what decides here."""
        return sum(self.ask("bytes")) + self.order.bytes

    def save(self, path: Path) -> None:
        assert self.rows, "an index that was read is saved already"
        self.rows.seek(0)
        with path.open("wb") as file:
            file.write(NEAR + self.order.method.encode().ljust(8, b"\0"))
            shutil.copyfileobj(self.rows, file)

    def load(self, path: Path) -> None:
        """Takes what `save` wrote."""
        for rows in pages_of(path):
            first = len(self.order)
            self.take(rows, first, self.order.admit(rows))


def method_of(path: Path) -> str:
    """Of the pages in a near.index. Raises ValueError for a file that is none."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[:8] != NEAR or (path.stat().st_size - 16) % 56:
        raise ValueError(f"{path} is cut short, or an older version wrote it; run that recipe again")
    return head[8:].rstrip(b"\0").decode()


def pages_of(path: Path) -> Iterator[Rows]:
    method_of(path)
    with path.open("rb") as file:
        file.seek(16)
        while len(rows := np.fromfile(file, np.uint64, 7 * CHUNK)):
            yield rows.reshape(-1, 7)


class Index:
    """Two Bloom filters and the pages by likeness, in partitions; the ids of the latter."""

    def __init__(
        self,
        settings: Deduplicate,
        spread: Spread = local,
        folder: Path | None = None,
        scratch: Path | None = None,
    ) -> None:
        """The one that `save` left in `folder`, to be asked only; or an empty one, which keeps signatures and ids in
        files in the folder `scratch`, gone with it (None: where the system puts such files, which may be memory)."""
        self.ask = spread(partial(Partition, settings, folder), settings.partitions)
        self.near = Near(settings.method, self.ask, None if folder else temporary(scratch))
        self.ids = Names(folder / "ids.txt" if folder else None, scratch)
        self.copies = Copies()
        self.added = {name: header_of(folder / f"{name}.bloom")[1] if folder else 0 for name in FILTERS}
        if folder:
            self.near.load(folder / "near.index")

    def seen(self, name: str, keys: NDArray[np.uint64], add: bool = False) -> NDArray[np.bool_]:
        """[N] of each key whether the filter `name` held it; with `add` it does from then on."""
        found: NDArray[np.bool_] = np.logical_and.reduce(self.ask("seen", name, keys, add))
        self.added[name] += int((~found).sum()) if add else 0
        return found

    def save(self, folder: Path) -> None:
        for name in FILTERS:
            probes, total = self.ask("filter_size", name)[0]
            with (folder / f"{name}.bloom").open("wb") as file:
                file.write(BLOOM + np.array([probes, self.added[name], total], np.uint64).tobytes())
                for start in range(0, total, STRETCH):
                    for words in self.ask("words", name, start, start + STRETCH):
                        file.write(words.tobytes())
        self.near.save(folder / "near.index")
        self.ids.save(folder / "ids.txt")


def temporary(folder: Path | None) -> BinaryIO:
    """A file without a name: it is gone when nobody holds it any more."""
    return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))


def header_of(path: Path) -> tuple[int, int, int]:
    """Probes, keys added, words of a filter that `Index.save` wrote. Raises ValueError for a file that is none."""
    with path.open("rb") as file:
        head = file.read(32)
    numbers = np.frombuffer(head[8:].ljust(24, b"\0"), np.uint64).tolist()
    if head[:8] != BLOOM or path.stat().st_size != 32 + 8 * numbers[2]:
        raise ValueError(f"{path} is cut short, or is no filter of an index; run that recipe again")
    return numbers[0], numbers[1], numbers[2]


def check(folder: Path, method: str) -> int:
    """How many pages the index in `folder` has.

    Raises FileNotFoundError when the folder holds no index, ValueError when a file of it is cut short or another
    `method` made it.
    """
    for name in ("near.index", "ids.txt", *(f"{name}.bloom" for name in FILTERS)):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; name the seen/ folder of a finished factory run")
    found = method_of(folder / "near.index")
    if found != method:
        raise ValueError(
            f"{folder} was made with deduplicate.method = {found!r}, this recipe says {method!r}; use that"
        )
    for name in FILTERS:
        header_of(folder / f"{name}.bloom")
    pages = ((folder / "near.index").stat().st_size - 16) // 56
    with (folder / "ids.txt").open("rb") as file:
        ids = sum(1 for _ in file)
    if ids != pages:
        raise ValueError(f"{folder / 'ids.txt'} holds {ids:,} ids of {pages:,} pages; run that recipe again")
    return pages
