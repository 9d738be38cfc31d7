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
from ziya_data.factory.partition import FILTERS, Ask, Found, Partition, Rows, Spread, here
from ziya_data.factory.recipe import Deduplicate

BLOOM, NEAR = b"ZIYABF1\0", b"ZIYANE3\0"
CHUNK = 1 << 16
"""Pages handed on at once."""


class Names:
    """Ids of the pages of an index, in order, in a file: in memory they would take more than the pages themselves."""

    EACH = 64
    """Ids between two places that are remembered."""

    def __init__(self, path: Path | None = None) -> None:
        self.file = cast(BinaryIO, path.open("rb") if path else tempfile.TemporaryFile())  # noqa: SIM115 (lives as long as this)
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

    The signatures also go to a file: the partitions are filled from it again, and need not keep what they do not use.
    """

    def __init__(self, method: str, ask: Ask) -> None:
        self.ask, self.order = ask, NearOrder(method)
        self.rows = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (lives as long as this)

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
        self.rows.write(rows.tobytes())

    @property
    def bytes(self) -> int:
        """Memory of all partitions and of what decides here."""
        return sum(self.ask("bytes")) + self.order.bytes

    def save(self, path: Path) -> None:
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

    def __init__(self, settings: Deduplicate, spread: Spread = here, folder: Path | None = None) -> None:
        """An empty one, or the one that `save` left in `folder`."""
        self.ask = spread(partial(Partition, settings, folder), settings.partitions)
        self.near = Near(settings.method, self.ask)
        self.ids = Names(folder / "ids.txt" if folder else None)
        self.added = {name: added(folder / f"{name}.bloom") if folder else 0 for name in FILTERS}
        if folder:
            self.near.load(folder / "near.index")

    def seen(self, name: str, keys: NDArray[np.uint64], add: bool = False) -> NDArray[np.bool_]:
        """[N] of each key whether the filter `name` held it; with `add` it does from then on."""
        found: NDArray[np.bool_] = np.logical_and.reduce(self.ask("seen", name, keys, add))
        self.added[name] += int((~found).sum()) if add else 0
        return found

    def save(self, folder: Path) -> None:
        for name in FILTERS:
            parts = self.ask("layout", name)
            with (folder / f"{name}.bloom").open("wb") as file:
                file.write(BLOOM + np.array([parts[0][0], self.added[name], parts[0][1]], np.uint64).tobytes())
                for _, _, words in parts:
                    file.write(words.tobytes())
        self.near.save(folder / "near.index")
        self.ids.save(folder / "ids.txt")


def added(path: Path) -> int:
    """Keys of a filter that `Index.save` wrote."""
    return int(np.fromfile(path, np.uint64, 3, offset=8)[1])


def check(folder: Path, method: str) -> None:
    """Raises FileNotFoundError when the folder holds no index, ValueError when it was made by another `method`."""
    if not (folder / "near.index").is_file():
        raise FileNotFoundError(f"{folder} holds no index; name the seen/ folder of a finished factory run")
    found = method_of(folder / "near.index")
    if found != method:
        raise ValueError(
            f"{folder} was made with deduplicate.method = {found!r}, this recipe says {method!r}; use that"
        )
