"""What de-duplication and the gate need of a document, 81 bytes each: so that they need not read the texts again."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
from numpy.typing import NDArray

from ziya_data._factory import content_hash, signatures, text_hash
from ziya_data.document import Document
from ziya_data.factory import storage
from ziya_data.factory.evaluate import chosen
from ziya_data.factory.recipe import Source

PRINT = np.dtype(
    [("has_url", "?"), ("url", "<u8"), ("content", "<u8"), ("page", "<u8", (7,)), ("draw", "<f8")],
)
"""Whether it has an address; hashes of the address and of the content; the signature (_factory.signatures); the number
by which the gate draws its sample, infinite for what is no prose."""
Prints = NDArray[np.void]

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
    page = host.removeprefix("www.") + parts.path.rstrip("/")
    if not parts.query:
        return page
    query = sorted((name, value) for name, value in parse_qsl(parts.query, True) if not TRACKING.match(name))
    return f"{page}?{urlencode(query)}" if query else page


def fingerprints(documents: list[Document], method: str, near: bool = True) -> Prints:
    """[documents] of PRINT; without `near` the signatures stay zero."""
    rows = np.zeros(len(documents), PRINT)
    rows["draw"] = np.inf
    with_url = [i for i, document in enumerate(documents) if document.url]
    rows["has_url"][with_url] = True
    rows["url"][with_url] = text_hash([canonical(documents[i].url) for i in with_url])
    texts = [document.text for document in documents]
    rows["content"] = content_hash(texts)
    if near:
        rows["page"] = signatures(texts, method)
    return rows


class Out:
    """The fingerprints and ids of a shard, collected as its documents come."""

    def __init__(self, ids: IO[str]) -> None:
        self.ids = ids
        self.rows = [np.zeros(0, PRINT)]

    def add(self, documents: list[Document], source: Source, method: str, seed: int) -> None:
        """`source` says what of it is left out."""
        if "deduplicate" in source.skip:
            rows = np.zeros(len(documents), PRINT)
            rows["draw"] = np.inf
        else:
            rows = fingerprints(documents, method, "deduplicate.near" not in source.skip)
        if source.kind == "text":
            prose = [i for i, document in enumerate(documents) if document.kind == "text"]
            rows["draw"][prose] = [chosen(documents[i].id, seed, "evaluate") for i in prose]
        self.rows.append(rows)
        self.ids.writelines(document.id.replace("\n", " ") + "\n" for document in documents)


@contextmanager
def out(folder: Path, name: str) -> Iterator[Out]:
    """Writes NAME.prints.npy and NAME.ids.txt when the block ends well."""
    with storage.lines_out(folder / f"{name}.ids.txt") as ids:
        found = Out(ids)
        yield found
    with storage.replacing(folder / f"{name}.prints.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(found.rows), allow_pickle=False)


def read(folder: Path, name: str) -> Prints:
    """[documents] of PRINT."""
    found: Any = np.load(folder / f"{name}.prints.npy", mmap_mode="r", allow_pickle=False)
    return found


def read_ids(folder: Path, name: str) -> list[str]:
    """Of each document its id, on one line."""
    return (folder / f"{name}.ids.txt").read_bytes().decode().split("\n")[:-1]
