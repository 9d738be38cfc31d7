"""Part 4: pages seen before, by address, by content, by likeness. The index is kept, seen/: new data meets old data."""

import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ziya_data._factory import Bloom, NearIndex
from ziya_data.document import Document
from ziya_data.factory.fingerprints import Prints, fingerprints
from ziya_data.factory.recipe import Deduplicate


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


class Index:
    """What was seen: two Bloom filters and an index of likeness, with the ids of the pages in the latter."""

    def __init__(self, urls: Bloom, contents: Bloom, near: NearIndex, ids: Names) -> None:
        self.urls, self.contents, self.near, self.ids = urls, contents, near, ids

    @classmethod
    def empty(cls, settings: Deduplicate) -> "Index":
        urls, contents = (Bloom(settings.capacity, settings.false_positive_rate) for _ in range(2))
        return cls(urls, contents, NearIndex(settings.method), Names())

    @classmethod
    def load(cls, folder: Path, method: str = "") -> "Index":
        """Raises FileNotFoundError when the folder holds no index, ValueError when it was made by another `method`."""
        if not (folder / "near.index").is_file():
            raise FileNotFoundError(f"{folder} holds no index; name the seen/ folder of a finished factory run")
        urls, contents = (Bloom.load(str(folder / name)) for name in ("urls.bloom", "contents.bloom"))
        near = NearIndex.load(str(folder / "near.index"))
        if method and near.method != method:
            raise ValueError(
                f"{folder} was made with deduplicate.method = {near.method!r}, this recipe says {method!r}; use that"
            )
        return cls(urls, contents, near, Names(folder / "ids.txt"))

    def save(self, folder: Path) -> None:
        self.urls.save(str(folder / "urls.bloom"))
        self.contents.save(str(folder / "contents.bloom"))
        self.near.save(str(folder / "near.index"))
        self.ids.save(folder / "ids.txt")


Verdicts = dict[int, tuple[str, str]]
"""Position of a document that goes -> (reason, why)."""


def resolve(
    prints: Prints, ids: list[str], index: Index, old: list[Index], settings: Deduplicate, near: bool = True
) -> Verdicts:
    """Checks documents in order against the index and the older ones and adds what is new to `index`.

    Cheap to dear: the address, then the content with everything but letters folded away, then likeness (with `near`).
    """
    verdicts: Verdicts = {}
    left = np.arange(len(prints))
    for name, what in (("url", "address"), ("content", "content")):
        asked = left[prints["has_url"][left]] if name == "url" else left
        keys = prints[name][asked]
        seen = np.logical_or.reduce(
            [getattr(index, name + "s").test_and_add(keys), *(getattr(other, name + "s").test(keys) for other in old)]
        )
        verdicts |= dict.fromkeys(asked[seen].tolist(), (f"deduplicate.{name}", f"its {what} was seen before"))
        left = np.setdiff1d(left, asked[seen], assume_unique=True)
    return verdicts | near_ones(prints, left, ids, index, old, settings) if near else verdicts


def near_ones(
    prints: Prints, places: NDArray[np.int64], ids: list[str], index: Index, old: list[Index], settings: Deduplicate
) -> Verdicts:
    """The older indexes first; what is new to them too is looked for in `index`, or added to it, one by one."""
    verdicts: Verdicts = {}
    places = places[prints["page"][places, -1] >= settings.shortest]
    rows = prints["page"][places]
    for other in (*old, index):
        search = other.near.find_or_add if other is index else other.near.find
        pages, bits, alike = search(rows, settings.distance, settings.jaccard)
        found = pages >= 0
        if other is index:
            index.ids.extend(ids[i] for i in places[~found].tolist())
        for i, page, apart, j in zip(places[found].tolist(), pages[found], bits[found], alike[found], strict=True):
            bit_count = f"{apart} of 128 bits and " if settings.method == "simhash" else ""
            verdicts[i] = "deduplicate.near", f"{bit_count}Jaccard {j:.2f} from {other.ids[int(page)]}"
        places, rows = places[~found], rows[~found]
    return verdicts


def deduplicate(documents: list[Document], index: Index, old: list[Index], settings: Deduplicate) -> list[str]:
    """The same for documents in memory: one reason each, "" when it stays; the why goes into their metadata."""
    prints, ids = fingerprints(documents, settings.method), [document.id for document in documents]
    reasons = [""] * len(documents)
    for i, (reason, why) in resolve(prints, ids, index, old, settings).items():
        reasons[i], documents[i].metadata["why"] = reason, why
    return reasons
