import itertools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ziya_data._factory import Bloom, NearIndex, content_hash, signatures, tokens
from ziya_data.document import Document
from ziya_data.factory.deduplicate import Index, Names, deduplicate
from ziya_data.factory.recipe import METHODS, Deduplicate

SETTINGS = Deduplicate(capacity=10_000)


def edited(text: str, share: float, draw: random.Random) -> str:
    """Replaces a share of the characters (Chinese) or words by others."""
    units = list(text) if ord(text[0]) > 255 else text.split(" ")
    for i in draw.sample(range(len(units)), int(share * len(units))):
        units[i] = chr(draw.randrange(0x4E00, 0x9000)) if len(units[i]) == 1 else f"word{draw.randrange(9999)}"
    return ("" if ord(text[0]) > 255 else " ").join(units)


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
    row = signatures([text], "simhash")[0]
    assert [int(row[0]) >> i & 1 for i in range(64)] == (votes > 0).astype(int).tolist()


def zipf(language: str, count: int, length: int = 400) -> list[str]:
    """Pages drawn by Zipf's law from one vocabulary, as real pages are."""
    draw = random.Random(3)
    vocabulary = [chr(0x4E00 + 5 * i) if language == "zh" else f"word{i}" for i in range(3000)]
    weights = [1 / (rank + 10) for rank in range(3000)]
    glue = "" if language == "zh" else " "
    return [glue.join(draw.choices(vocabulary, weights, k=length)) for _ in range(count)]


def pairs(text: str) -> set[tuple[int, int]]:
    return set(itertools.pairwise(tokens(text)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("language", ["zh", "en"])
def test_near_duplicates_are_found_and_others_kept(language: str, method: str) -> None:
    """Recall by edit rate over 200 pages of 400 tokens, half a page in 200 and more below what is wanted."""
    draw = random.Random(3)
    pages = zipf(language, 200)
    settings = Deduplicate(capacity=10_000, method=method)
    index = Index.empty(settings)
    originals = [Document(str(i), text, "s") for i, text in enumerate(pages)]
    assert sum(map(bool, deduplicate(originals, index, [], settings))) <= 1
    wanted = {0.01: 0.999, 0.02: 0.999, 0.05: 0.99, 0.10: 0.95, 0.15: 0.85}
    for share, least in wanted.items():
        copies = [Document(f"{i}'", edited(text, share, draw), "s") for i, text in enumerate(pages)]
        reasons = deduplicate(copies, index, [], settings)
        if method == "minhash" or share <= 0.05:
            assert np.mean([bool(reason) for reason in reasons]) >= least - 0.005, (share, reasons.count(""))


@pytest.mark.parametrize("method", METHODS)
def test_likeness_is_that_of_the_sets_of_pairs(method: str) -> None:
    """The estimate against the true Jaccard similarity: 256 and 128 bits leave it 1 / sqrt(bits) of scatter at most."""
    draw = random.Random(5)
    bits = 256 if method == "minhash" else 128
    errors = []
    for text in zipf("zh", 100):
        copy = edited(text, draw.choice((0.02, 0.1, 0.2, 0.3)), draw)
        index = NearIndex(method)
        index.find_or_add(signatures([text], method), 128, 0.0)
        page, _, alike = index.find(signatures([copy], method), 128, 0.0)
        if page[0] == 0:  # else no band agreed: a copy that is far away
            a, b = pairs(text), pairs(copy)
            errors.append(alike[0] - len(a & b) / len(a | b))
    assert len(errors) > 60
    assert abs(np.mean(errors)) < 4 / (bits * len(errors)) ** 0.5
    assert np.std(errors) < 1.3 / bits**0.5  # one-bit minima: sqrt(1 - j^2) / sqrt(bits), less one-permutation's gain


def test_short_pages_are_alike_only_when_they_are(prose: Callable[..., list[str]]) -> None:
    """Most of the 256 places of a page of 25 tokens are filled from others; that must not make strangers alike."""
    draw = random.Random(2)
    pages = zipf("zh", 3000, 25)
    index = NearIndex("minhash")
    found, _, _ = index.find_or_add(signatures(pages, "minhash"), 0, 0.45)
    assert (found >= 0).sum() <= 2
    copies = [edited(text, 0.05, draw) for text in pages]  # one character: 2 of 24 pairs, j = 0.85
    found, _, _ = index.find(signatures(copies, "minhash"), 0, 0.45)
    assert (found >= 0).mean() > 0.99


def random_rows(count: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 2**64, (count, 7), dtype=np.uint64)


def test_simhash_finds_what_a_search_of_everything_finds() -> None:
    draw = np.random.default_rng(2)
    base = random_rows(400)
    base[:, 4:6] = base[:, :2]  # its keys are its bits
    near = base[:200].copy()
    for row in near:
        for bit in draw.choice(128, draw.integers(0, 15), replace=False):
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    near[:, 4:6] = near[:, :2]
    index = NearIndex("simhash")
    assert (index.find_or_add(base, 14, 0.0)[0] == -1).all()
    pages, bits, _ = index.find(near, 14, 0.0)
    flips = np.bitwise_count(near[:, :2] ^ base[:200, :2]).sum(1)
    assert set((pages - np.arange(200))[pages >= 0]) == {0}
    assert (bits == flips)[pages >= 0].all()
    assert (pages < 0).sum() <= 3  # 7 in 1,000 at the full distance of 14


def test_minhash_finds_what_a_search_of_everything_finds() -> None:
    """Every page that shares a band is compared, whatever its neighbours in the chain: against NumPy over all pairs."""
    base = random_rows(3000)
    keys = base[:, 4:6].view(np.uint16)
    keys[:] = keys % 50  # so that chains are long and most pages share a band
    index = NearIndex("minhash")
    index.find_or_add(base, 0, 1.1)  # nothing is that alike: all are added
    rows = base[::7].copy()
    rows[:, 0] ^= np.uint64(0xFFFF)  # 16 of 256 bits
    pages, _, alike = index.find(rows, 0, 0.5)
    assert len(index) == 3000
    assert pages.tolist() == list(range(0, 3000, 7))
    assert np.allclose(alike, 1 - 2 * 16 / 256)


def test_a_bucket_of_very_many_pages_is_not_searched_to_its_end() -> None:
    base = random_rows(2000)
    base[:, 4:6] = 7  # one bucket a band
    index = NearIndex("minhash")
    index.find_or_add(base, 0, 1.1)
    pages = index.find(base, 0, 0.9)[0]
    assert (pages[-256:] == np.arange(1744, 2000)).all() and (pages[:1744] == -1).all()


def test_a_page_takes_64_bytes_and_damage_is_seen(tmp_path: Path) -> None:
    index = NearIndex("minhash")
    rows = random_rows(5000)
    index.find_or_add(rows, 0, 1.1)
    # blocks of 4,096 pages, and eight heads of four bytes for each of 65,536 buckets
    assert index.bytes == 8192 * 64 + 8 * 65536 * 4
    path = tmp_path / "near.index"
    index.save(str(path))
    again = NearIndex.load(str(path))
    assert (len(again), again.method) == (5000, "minhash")
    assert (again.find(rows, 0, 0.9)[0] == np.arange(5000)).all()
    again.find_or_add(random_rows(5001)[5000:], 0, 1.1)
    data = path.read_bytes()
    for place in (24 + 5, len(data) - 30):  # a head, a link of the last page
        path.write_bytes(data[:place] + b"\x7f\x7f\x7f\x7f" + data[place + 4 :])
        with pytest.raises(ValueError, match="is damaged"):
            NearIndex.load(str(path))


def test_names_are_read_from_their_file(tmp_path: Path) -> None:
    names = [f"s:{i}" * (i % 5 + 1) for i in range(300)] + ["s:two\u2028lines", "s:中文"]
    stored = Names()
    for start in range(0, 302, 100):
        stored.extend(names[start : start + 100])
    assert [stored[i] for i in range(302)] == names
    stored.save(tmp_path / "ids.txt")
    again = Names(tmp_path / "ids.txt")
    assert len(again) == 302 and [again[i] for i in (0, 63, 64, 127, 300, 301)] == [
        names[i] for i in (0, 63, 64, 127, 300, 301)
    ]


def test_order_cheap_to_dear_and_the_first_stays(prose: Callable[..., list[str]]) -> None:
    a, b = prose("zh", 1, 12)[0], zipf("zh", 1, 200)[0]
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
    assert [index.ids[i] for i in range(len(index.ids))] == ["1", "5"]


def test_short_pages_go_for_the_same_content_alone() -> None:
    long, short = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉戌亥", "天地玄黄宇宙洪荒日月盈昃辰宿列张"
    texts = [long, long[:-1] + "一", short, short[:-1] + "一", short + "！"]
    documents = [Document(str(i), text, "s") for i, text in enumerate(texts)]
    reasons = deduplicate(documents, Index.empty(SETTINGS), [], SETTINGS)
    assert reasons == ["", "deduplicate.near", "", "", "deduplicate.content"]


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
    with pytest.raises(ValueError, match=r"was made with deduplicate\.method = 'minhash', this recipe says 'simhash'"):
        Index.load(tmp_path, "simhash")
    (tmp_path / "near.index").write_bytes(b"ZIYANE2\0\xff\0\0\0\0\0\0\0")
    with pytest.raises(ValueError, match="cut short"):
        Index.load(tmp_path)
