import itertools
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ziya_data._factory import content_hash, signatures, tokens
from ziya_data.document import Document
from ziya_data.factory.deduplicate import resolve
from ziya_data.factory.fingerprints import fingerprints
from ziya_data.factory.index import Index, Near
from ziya_data.factory.partition import Partition, local
from ziya_data.factory.recipe import METHODS, Deduplicate

SETTINGS = Deduplicate(capacity=10_000)


def near(method: str) -> Near:
    return Near(method, local(partial(Partition, Deduplicate(method=method), None), 1))


def deduplicate(documents: list[Document], index: Index, old: list[Index], settings: Deduplicate) -> list[str]:
    """One reason each, "" when it stays; the why goes into their metadata."""
    prints, ids = fingerprints(documents, settings.method), [document.id for document in documents]
    reasons = [""] * len(documents)
    for i, (reason, why) in resolve(prints, ids, index, old, settings).items():
        reasons[i], documents[i].metadata["why"] = reason, why
    return reasons


def edited(text: str, share: float, draw: random.Random) -> str:
    """Replaces a share of the characters (Chinese) or words by others."""
    units = list(text) if ord(text[0]) > 255 else text.split(" ")
    for i in draw.sample(range(len(units)), int(share * len(units))):
        units[i] = chr(draw.randrange(0x4E00, 0x9000)) if len(units[i]) == 1 else f"word{draw.randrange(9999)}"
    return ("" if ord(text[0]) > 255 else " ").join(units)


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
    index = Index(settings)
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
        pages = near(method)
        pages.find_or_add(signatures([text], method), 128, 0.0)
        page, _, alike = pages.find(signatures([copy], method), 128, 0.0)
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
    index = near("minhash")
    found, _, _ = index.find_or_add(signatures(pages, "minhash"), 0, 0.45)
    assert (found >= 0).sum() <= 2
    copies = [edited(text, 0.05, draw) for text in pages]  # one character: 2 of 24 pairs, j = 0.85
    found, _, _ = index.find(signatures(copies, "minhash"), 0, 0.45)
    assert (found >= 0).mean() > 0.99


def test_order_cheap_to_dear_and_the_first_stays(prose: Callable[..., list[str]]) -> None:
    a, b = prose("zh", 1, 12)[0], zipf("zh", 1, 200)[0]
    documents = [
        Document("1", a, "s", url="http://x.com/1"),
        Document("2", b, "s", url="http://www.x.com/1/"),
        Document("3", a + "！！", "s", url="http://x.com/3"),
        Document("4", a.replace("朋友", "邻居", 1), "s"),
        Document("5", b, "s"),
    ]
    index = Index(SETTINGS)
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
    reasons = deduplicate(documents, Index(SETTINGS), [], SETTINGS)
    assert reasons == ["", "deduplicate.near", "", "", "deduplicate.content"]


def test_new_data_meets_old_data_without_reading_it_again(tmp_path: Path, prose: Callable[..., list[str]]) -> None:
    a, b = prose("en", 2, 12)
    c = prose("zh", 1, 12)[0]
    old = Index(SETTINGS)
    deduplicate([Document("1", a, "s", url="http://x.com/1"), Document("2", b, "s")], old, [], SETTINGS)
    old.save(tmp_path)
    again = Index(SETTINGS, folder=tmp_path)
    documents = [
        Document("3", c, "s", url="http://x.com/1"),
        Document("4", b.upper(), "s"),
        Document("5", a.replace("farmer", "smith") + " Yes.", "s"),
        Document("6", c, "s"),
    ]
    reasons = deduplicate(documents, Index(SETTINGS), [again], SETTINGS)
    assert reasons == ["deduplicate.url", "deduplicate.content", "deduplicate.near", ""]
