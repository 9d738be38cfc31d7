"""Part 4: pages seen before, by address, by content, by likeness. The index is kept, seen/: new data meets old data."""

import os
import re
import shutil
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np

from ziya_data._factory import Bloom, NearIndex, content_hash, signatures, text_hash
from ziya_data.document import Document
from ziya_data.factory.recipe import Deduplicate

TRACKING = re.compile(
    r"^(utm_\w+|gclid|fbclid|spm|scm|from|ref|referrer|share_\w+|session_?id|phpsessid|jsessionid)$", re.I
)
DEFAULT_PORT = {"http": ":80", "https": ":443"}


def canonical(url: str) -> str:
    """One spelling for the addresses of one page: no scheme, `www.`, default port, fragment, tracking or last slash."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:  # such as an unclosed [ in the host: then the address is compared as it is
        return url.strip()
    host = parts.netloc.lower().rpartition("@")[2].removesuffix(DEFAULT_PORT.get(parts.scheme.lower(), ":80"))
    query = sorted((name, value) for name, value in parse_qsl(parts.query, True) if not TRACKING.match(name))
    return host.removeprefix("www.") + parts.path.rstrip("/") + ("?" + urlencode(query) if query else "")


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


def deduplicate(
    documents: list[Document], index: Index, old: list[Index], settings: Deduplicate, near: bool = True
) -> list[str]:
    """Checks a batch against the index and the older ones and adds what is new to `index`; one reason a document.

    Cheap to dear: the address, then the content with everything but letters folded away, then likeness (with `near`).
    """
    reasons = [""] * len(documents)
    with_url = [i for i, document in enumerate(documents) if document.url]
    if with_url:
        keys = text_hash([canonical(documents[i].url) for i in with_url])
        seen = np.logical_or.reduce([index.urls.test_and_add(keys), *(other.urls.test(keys) for other in old)])
        mark(documents, reasons, with_url, seen, "deduplicate.url", "its address was seen before")
    left = [i for i, reason in enumerate(reasons) if not reason]
    if left:
        keys = content_hash([documents[i].text for i in left])
        seen = np.logical_or.reduce([index.contents.test_and_add(keys), *(other.contents.test(keys) for other in old)])
        mark(documents, reasons, left, seen, "deduplicate.content", "its content was seen before")
    if near:
        mark_near(documents, reasons, index, old, settings)
    return reasons


def mark_near(
    documents: list[Document], reasons: list[str], index: Index, old: list[Index], settings: Deduplicate
) -> None:
    """The older indexes first; what is new to them too is looked for in `index`, or added to it, one by one."""
    places = np.array([i for i, reason in enumerate(reasons) if not reason], np.int64)
    rows = signatures([documents[i].text for i in places], settings.method)
    long = rows[:, -1] >= settings.shortest
    places, rows = places[long], rows[long]
    for other in (*old, index):
        search = other.near.find_or_add if other is index else other.near.find
        pages, bits, alike = search(rows, settings.distance, settings.jaccard)
        found = pages >= 0
        if other is index:
            index.ids.extend(documents[i].id for i in places[~found])
        for i, page, apart, j in zip(places[found], pages[found], bits[found], alike[found], strict=True):
            reasons[i] = "deduplicate.near"
            bit_count = f"{apart} of 128 bits and " if settings.method == "simhash" else ""
            documents[i].metadata["why"] = f"{bit_count}Jaccard {j:.2f} from {other.ids[int(page)]}"
        places, rows = places[~found], rows[~found]


def mark(
    documents: list[Document], reasons: list[str], places: list[int], seen: np.ndarray, reason: str, why: str
) -> None:
    for place in np.asarray(places)[seen].tolist():
        reasons[place] = reason
        documents[place].metadata["why"] = why
