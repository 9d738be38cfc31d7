import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ziya_data._factory import Bloom, NearIndex, content_hash, distance, signatures, tokens
from ziya_data.document import Document
from ziya_data.factory.deduplicate import Index, canonical, deduplicate
from ziya_data.factory.recipe import Deduplicate

SETTINGS = Deduplicate(capacity=10_000)


def edited(text: str, share: float, draw: random.Random) -> str:
    """Replaces a share of the characters (Chinese) or words by others."""
    units = list(text) if ord(text[0]) > 255 else text.split(" ")
    for i in draw.sample(range(len(units)), int(share * len(units))):
        units[i] = chr(draw.randrange(0x4E00, 0x9000)) if len(units[i]) == 1 else f"word{draw.randrange(9999)}"
    return ("" if ord(text[0]) > 255 else " ").join(units)


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


def test_bloom_keeps_its_promise(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    keys = draw.integers(0, 2**64, 40_000, dtype=np.uint64)
    bloom = Bloom(20_000, 0.01)
    assert not bloom.test_and_add(keys[:20_000]).all()
    assert bloom.test(keys[:20_000]).all(), "a key that was added is always found"
    # 20,000 trials at 0.01: 0.0121 is three standard deviations above
    assert bloom.test(keys[20_000:]).mean() < 0.0121
    assert bloom.bytes == pytest.approx(20_000 * 9.585 / 8, rel=0.01)  # 1.44 log2(1/p) bits a key
    bloom.save(str(tmp_path / "b"))
    assert (Bloom.load(str(tmp_path / "b")).test(keys) == bloom.test(keys)).all()


def test_content_hash_folds_what_does_not_matter() -> None:
    same = ["Hello，World 你好！", "hello world你好", "ＨＥＬＬＯ, world... 你 好 😀"]
    assert len(set(content_hash(same).tolist())) == 1
    assert len(set(content_hash(["你好", "好你", "hello", "hallo", ""]).tolist())) == 5


def test_tokens_are_characters_and_words() -> None:
    assert len(tokens("我爱 Beijing don't, 2008年!")) == 6
    assert len(tokens("我爱 Beijing don't, 2008年!", True)) == 8
    assert tokens("WORD") == tokens("word") == tokens("ｗord")


def test_signature_matches_a_plain_one(prose: Callable[..., list[str]]) -> None:
    """The 128 bits, written out again: a weighted vote of each token's hash bits."""
    text = prose("zh", 1, 20)[0]
    counts: dict[int, int] = {}
    for token in tokens(text):
        counts[token] = counts.get(token, 0) + 1
    votes = np.zeros(64, np.int64)
    for token, n in counts.items():
        bits = np.array([token >> i & 1 for i in range(64)])
        votes += np.where(bits == 1, 1, -1) * n.bit_length()
    row = signatures([text])[0]
    assert [int(row[0]) >> i & 1 for i in range(64)] == (votes > 0).astype(int).tolist()


@pytest.mark.parametrize("language", ["zh", "en"])
def test_near_duplicates_are_found_and_others_kept(language: str) -> None:
    """Recall by edit rate over 200 pages of 400 tokens, drawn by Zipf's law from one vocabulary as real pages are."""
    draw = random.Random(3)
    vocabulary = [chr(0x4E00 + 5 * i) if language == "zh" else f"word{i}" for i in range(3000)]
    weights = [1 / (rank + 10) for rank in range(3000)]
    glue = "" if language == "zh" else " "
    pages = [glue.join(draw.choices(vocabulary, weights, k=400)) for _ in range(200)]
    index = Index.empty(SETTINGS)
    originals = [Document(str(i), text, "s") for i, text in enumerate(pages)]
    assert sum(map(bool, deduplicate(originals, index, [], SETTINGS))) <= 1
    for share, least in ((0.01, 0.99), (0.05, 0.99), (0.10, 0.93)):
        copies = [Document(f"{i}'", edited(text, share, draw), "s") for i, text in enumerate(pages)]
        reasons = deduplicate(copies, index, [], SETTINGS)
        assert np.mean([bool(reason) for reason in reasons]) >= least, (share, reasons.count(""))


def test_index_finds_what_a_search_of_everything_finds() -> None:
    draw = np.random.default_rng(2)
    base = draw.integers(0, 2**64, (400, 5), dtype=np.uint64)
    near = base[:200].copy()
    for row in near:
        for bit in draw.choice(128, draw.integers(0, 15), replace=False):
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    index = NearIndex()
    for row in base:
        index.add(row)
    missed = 0
    for i, row in enumerate(near):
        page, bits, _ = index.find(row, 14, 0.0)
        flips = sum(int(a).bit_count() for a in (row[:2] ^ base[i, :2]).tolist())
        assert page in (-1, i)
        missed += page < 0
        assert page < 0 or bits == flips == distance(row, base[i])[0]
    assert missed <= 3  # 7 in 1,000 at the full distance of 14


def test_order_cheap_to_dear_and_the_first_stays(prose: Callable[..., list[str]]) -> None:
    a, b = prose("zh", 2, 12)
    documents = [
        Document("1", a, "s", url="http://x.com/1"),
        Document("2", b, "s", url="http://www.x.com/1/"),
        Document("3", a + "！！", "s", url="http://x.com/3"),
        Document("4", a.replace("朋友", "邻居", 1), "s"),
        Document("5", b, "s"),
    ]
    index = Index.empty(SETTINGS)
    assert deduplicate(documents, index, [], SETTINGS) == [
        "",
        "deduplicate.url",
        "deduplicate.content",
        "deduplicate.near",
        "",
    ]
    assert "from 1" in documents[3].metadata["why"]
    assert index.ids == ["1", "5"]


def test_new_data_meets_old_data_without_reading_it_again(tmp_path: Path, prose: Callable[..., list[str]]) -> None:
    a, b = prose("en", 2, 12)
    c = prose("zh", 1, 12)[0]
    old = Index.empty(SETTINGS)
    deduplicate([Document("1", a, "s", url="http://x.com/1"), Document("2", b, "s")], old, [], SETTINGS)
    old.save(tmp_path)
    again = Index.load(tmp_path)
    documents = [
        Document("3", c, "s", url="http://x.com/1"),
        Document("4", b.upper(), "s"),
        Document("5", a.replace("farmer", "smith") + " Yes.", "s"),
        Document("6", c, "s"),
    ]
    reasons = deduplicate(documents, Index.empty(SETTINGS), [again], SETTINGS)
    assert reasons == ["deduplicate.url", "deduplicate.content", "deduplicate.near", ""]
    with pytest.raises(FileNotFoundError, match="holds no index"):
        Index.load(tmp_path / "nothing")
    (tmp_path / "near.index").write_bytes(b"ZIYASH1\0\xff\0\0\0\0\0\0\0")
    with pytest.raises(ValueError, match="cut short"):
        Index.load(tmp_path)
