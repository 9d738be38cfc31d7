"""What is kept of a document for de-duplication and the gate, so that no text is read again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ziya_data._factory import content_hash, signatures
from ziya_data.document import Document
from ziya_data.factory import fingerprints
from ziya_data.factory.evaluate import chosen
from ziya_data.factory.fingerprints import canonical
from ziya_data.factory.recipe import Source


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://www.Example.com:80/a/?utm_source=x&b=2&a=1#top", "https://example.com/a?a=1&b=2"),
        ("https://example.com/a/?spm=1.2.3", "http://example.com/a"),
        ("https://user@example.com/", "http://example.com"),
    ],
)
def test_one_page_has_one_address(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


def test_different_pages_have_different_addresses() -> None:
    pages = [
        "http://a.com/x?id=1",
        "http://a.com/x?id=2",
        "http://a.com/X?id=1",
        "http://b.com/x?id=1",
        "http://[bad/x",
    ]
    assert len({canonical(page) for page in pages}) == len(pages)


def test_what_a_source_leaves_out_is_left_out(tmp_path: Path, prose: Callable[..., list[str]]) -> None:
    texts = prose("zh", 3)
    documents = [
        Document("s:0", texts[0], "s", url="http://a.com/?b"),
        Document("s:1", texts[1], "s", kind="code"),
        Document("s:two\nlines", texts[2], "s"),
    ]
    for skip in ((), ("deduplicate.near",), ("deduplicate",)):
        for kind in ("text", "supervised"):
            with fingerprints.out(tmp_path, "a") as found:
                found.add(documents[:1], Source("s", (), kind, skip), "minhash", 7)
                found.add(documents[1:], Source("s", (), kind, skip), "minhash", 7)
            rows = fingerprints.read(tmp_path, "a")
            assert fingerprints.read_ids(tmp_path, "a") == ["s:0", "s:1", "s:two lines"]
            assert (rows["page"] == signatures(texts, "minhash")).all() == (not skip)
            assert (rows["content"] == content_hash(texts)).all() == ("deduplicate" not in skip)
            assert rows["has_url"].tolist() == ["deduplicate" not in skip, False, False]
            draws = [chosen("s:0", 7, "evaluate"), np.inf, chosen("s:two\nlines", 7, "evaluate")]
            assert rows["draw"].tolist() == (draws if kind == "text" else [np.inf] * 3)


def test_a_shard_without_documents_has_no_rows(tmp_path: Path) -> None:
    with fingerprints.out(tmp_path, "a"):
        pass
    assert len(fingerprints.read(tmp_path, "a")) == 0
    assert fingerprints.read_ids(tmp_path, "a") == []
