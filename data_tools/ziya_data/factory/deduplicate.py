"""Part 4: pages seen before, by address, by content, by likeness. The index is kept, seen/: new data meets old data."""

import re
from pathlib import Path
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


class Index:
    """What was seen: two Bloom filters and a SimHash index, with the ids of the pages in the latter."""

    def __init__(self, urls: Bloom, contents: Bloom, near: NearIndex, ids: list[str]) -> None:
        self.urls, self.contents, self.near, self.ids = urls, contents, near, ids

    @classmethod
    def empty(cls, settings: Deduplicate) -> "Index":
        urls, contents = (Bloom(settings.capacity, settings.false_positive_rate) for _ in range(2))
        return cls(urls, contents, NearIndex(), [])

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """Raises FileNotFoundError when the folder holds no index."""
        if not (folder / "near.index").is_file():
            raise FileNotFoundError(f"{folder} holds no index; name the seen/ folder of a finished factory run")
        ids = (folder / "ids.txt").read_text(encoding="utf-8").splitlines()
        urls, contents = (Bloom.load(str(folder / name)) for name in ("urls.bloom", "contents.bloom"))
        return cls(urls, contents, NearIndex.load(str(folder / "near.index")), ids)

    def save(self, folder: Path) -> None:
        self.urls.save(str(folder / "urls.bloom"))
        self.contents.save(str(folder / "contents.bloom"))
        self.near.save(str(folder / "near.index"))
        (folder / "ids.txt").write_text("".join(f"{name}\n" for name in self.ids), encoding="utf-8")


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
    if not near:
        return reasons
    left = [i for i, reason in enumerate(reasons) if not reason]
    rows = signatures([documents[i].text for i in left])
    for i, row in zip(left, rows, strict=True):
        if row[4] < settings.shortest:
            continue
        for other in (index, *old):
            page, bits, alike = other.near.find(row, settings.distance, settings.jaccard)
            if page >= 0:
                reasons[i] = "deduplicate.near"
                documents[i].metadata["why"] = f"{bits} of 128 bits and Jaccard {alike:.2f} from {other.ids[page]}"
                break
        else:
            index.near.add(row)
            index.ids.append(documents[i].id)
    return reasons


def mark(
    documents: list[Document], reasons: list[str], places: list[int], seen: np.ndarray, reason: str, why: str
) -> None:
    for place in np.asarray(places)[seen].tolist():
        reasons[place] = reason
        documents[place].metadata["why"] = why
