"""What was seen: the filters, the pages by likeness, in any number of partitions; saved and read again."""

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ziya_data._factory import Bloom
from ziya_data.factory import index
from ziya_data.factory.index import Index, Names, Near
from ziya_data.factory.partition import Ask, Partition, local
from ziya_data.factory.recipe import METHODS, Deduplicate


def near(method: str, parts: int = 1) -> Near:
    return Near(method, local(partial(Partition, Deduplicate(method=method), None), parts))


def random_rows(count: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 7), dtype=np.uint64)


def test_bloom_keeps_its_promise() -> None:
    draw = np.random.default_rng(1)
    keys = draw.integers(0, 2**64, 40_000, dtype=np.uint64)
    bloom = Bloom(20_000, 0.01)
    assert not bloom.test_and_add(keys[:20_000]).all()
    assert bloom.test(keys[:20_000]).all(), "a key that was added is always found"
    # 20,000 trials at 0.01: 0.0121 is three standard deviations above
    assert bloom.test(keys[20_000:]).mean() < 0.0121
    assert bloom.words.nbytes == pytest.approx(20_000 * 9.585 / 8, rel=0.01)  # 1.44 log2(1/p) bits a key


@pytest.mark.parametrize("parts", [2, 3, 300])
def test_a_filter_in_parts_finds_what_the_whole_one_finds(parts: int) -> None:
    """Full beyond its size, so that many keys are taken for others; 240 words, so that some of 300 parts are empty."""
    keys = np.random.default_rng(1).integers(0, 2**64, 3000, dtype=np.uint64)
    keys[1500:1600] = keys[1400:1500]  # repeats within a batch
    whole, cut = Bloom(1000, 0.001), [Bloom(1000, 0.001, part, parts) for part in range(parts)]
    for some in (keys[:7], keys[7:1600], keys[1600:]):
        assert (whole.test(some) == np.logical_and.reduce([part.test(some) for part in cut])).all()
        found = whole.test_and_add(some)
        assert (found == np.logical_and.reduce([part.test_and_add(some) for part in cut])).all()
    assert 0.01 < found.mean() < 0.9
    assert (np.concatenate([part.words for part in cut]) == whole.words).all()


def plain(rows: np.ndarray, least: float) -> list[tuple[int, float]]:
    """(page or -1, Jaccard) of each row, by comparing it with every page that shares an open bucket."""
    keys = rows[:, 4:6].copy().view(np.uint16)
    counts: Counter[tuple[int, int]] = Counter()
    bits, buckets, found = [], [], []
    for row, mine in zip(rows[:, :4], keys.tolist(), strict=True):
        best = (-1, 0.0)
        for page, (other, theirs) in enumerate(zip(bits, buckets, strict=True)):
            if theirs & set(enumerate(mine)):
                alike = max(0.0, 1 - 2 * int(np.bitwise_count(row ^ other).sum()) / 256)
                if alike >= least and alike > best[1]:
                    best = (page, alike)
        found.append(best)
        if best[0] < 0:
            bits.append(row)
            buckets.append({bucket for bucket in enumerate(mine) if counts[bucket] < 255})
            counts.update(enumerate(mine))
    return found


@pytest.fixture(scope="module")
def copies() -> np.ndarray:
    """Chains are long, some buckets full; a third are copies of one before them, with up to 60 of 256 bits changed."""
    draw = np.random.default_rng(4)
    rows = random_rows(1500)
    keys = rows[:, 4:6].view(np.uint16)
    keys[:] = keys % np.array([3, 3, 50, 50, 900, 900, 900, 900], np.uint16)
    for at in draw.integers(300, 1500, 500):
        rows[at] = rows[draw.integers(0, at)]
        for bit in draw.integers(0, 256, draw.integers(0, 60)):
            rows[at, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return rows


def test_pages_in_any_number_of_parts_are_found_as_by_comparing_all(copies: np.ndarray) -> None:
    """Copies come in the batch of their page and in later ones."""
    wanted = plain(copies, 0.6)
    assert 250 < sum(page >= 0 for page, _ in wanted) < 490
    for parts in (1, 2, 5):
        pages = near("minhash", parts)
        found = [pages.find_or_add(some, 0, 0.6) for some in np.split(copies, [1, 100, 1100])]
        assert np.concatenate([page for page, _, _ in found]).tolist() == [page for page, _ in wanted]
        assert np.allclose(np.concatenate([alike for _, _, alike in found]), [alike for _, alike in wanted])
        assert len(pages) == sum(page < 0 for page, _ in wanted)


def test_of_pages_equally_like_the_oldest_is_named() -> None:
    base = np.repeat(random_rows(1), 6, 0)
    for at in range(5):
        base[at, at // 2] ^= np.uint64(
            0xFFFF << 32 * (at % 2)
        )  # 16 bits of their own; the last page is what they share
    for parts in (1, 2, 3):
        pages = near("minhash", parts)
        assert (pages.find_or_add(base[1:5], 0, 0.95)[0] == -1).all()
        assert pages.find(base[:1], 0, 0.5)[0] == [0]
        found, _, alike = pages.find_or_add(base[[0, 5]], 0, 0.8)
        assert (found == [-1, 0]).all() and alike[1] == 1 - 2 * 16 / 256, "of four before the batch and one in it"


def test_simhash_finds_what_a_search_of_everything_finds() -> None:
    draw = np.random.default_rng(2)
    base = random_rows(400)
    base[:, 4:6] = base[:, :2]  # its keys are its bits
    copies = base[:200].copy()
    for row in copies:
        for bit in draw.choice(128, draw.integers(0, 15), replace=False):
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    copies[:, 4:6] = copies[:, :2]
    pages = near("simhash", 2)
    assert (pages.find_or_add(base, 14, 0.0)[0] == -1).all()
    found, bits, _ = pages.find(copies, 14, 0.0)
    flips = np.bitwise_count(copies[:, :2] ^ base[:200, :2]).sum(1)
    assert set((found - np.arange(200))[found >= 0]) == {0}
    assert (bits == flips)[found >= 0].all()
    assert (found < 0).sum() <= 3  # 7 in 1,000 at the full distance of 14


def test_a_bucket_takes_its_first_255_pages() -> None:
    base = random_rows(2000)
    base[:, 4:6] = 7  # one bucket a band
    pages = near("minhash")
    pages.find_or_add(base, 0, 1.1)
    found = pages.find(base, 0, 0.9)[0]
    assert (found[:255] == np.arange(255)).all() and (found[255:] == -1).all()


def test_memory_of_a_page() -> None:
    pages = near("minhash")
    pages.find_or_add(random_rows(5000), 0, 1.1)
    # 60 in blocks of 4,096; of 8 x 65,536 buckets a head of four bytes and a count of one
    assert pages.bytes == 8192 * 60 + 8 * 65536 * 5
    assert near("minhash", 3).bytes == 8 * 65536 * (3 * 4 + 1)


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


@pytest.mark.parametrize("method", METHODS)
def test_what_one_number_of_partitions_saved_any_other_reads(method: str, tmp_path: Path) -> None:
    rows, keys = random_rows(5000), random_rows(300, 3)[:, 0]
    rows[:, 5] %= 300  # full buckets among them
    more = random_rows(50, 5)
    saved = {}
    for parts in (1, 3):
        settings = Deduplicate(capacity=1000, method=method, partitions=parts)
        first = Index(settings)
        first.seen("urls", keys[:100], add=True)
        first.seen("contents", keys, add=True)
        first.near.find_or_add(rows, 0, 1.1)
        first.ids.extend(str(i) for i in range(5000))
        (tmp_path / str(parts)).mkdir()
        first.save(tmp_path / str(parts))
        saved[parts] = [path.read_bytes() for path in sorted((tmp_path / str(parts)).iterdir())]
        again = Index(Deduplicate(capacity=7, method=method, partitions=4 - parts), folder=tmp_path / str(parts))
        assert len(again.near) == len(again.ids) == 5000
        for name in ("urls", "contents"):
            assert (again.seen(name, keys) == first.seen(name, keys)).all()
        for each in (first, again):
            each.near.find_or_add(more, 0, 1.1)
        for one, other in zip(first.near.find(rows, 128, 0.4), again.near.find(rows, 128, 0.4), strict=True):
            assert (one == other).all()
        again.seen("urls", keys, add=True)
        assert again.added == {"urls": 300, "contents": 300}
    assert saved[1] == saved[3]


def test_a_filter_is_saved_a_stretch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be larger than the memory of the process that saves it."""
    keys = random_rows(300)[:, 0]
    saved, most = [], []
    for parts, stretch in ((1, 1 << 22), (3, 7), (300, 1000)):
        monkeypatch.setattr(index, "STRETCH", stretch)
        made = Index(Deduplicate(capacity=1000, partitions=parts))
        made.seen("urls", keys, add=True)
        real = made.ask

        def ask(method: str, *arguments: Any, real: Ask = real) -> list[Any]:
            found = real(method, *arguments)
            if method == "words":
                most.append(sum(len(words) for words in found))
            return found

        made.ask = ask
        made.save(tmp_path)
        assert max(most) <= stretch
        most.clear()
        saved.append((tmp_path / "urls.bloom").read_bytes())
    assert saved[0] == saved[1] == saved[2]
    bloom = Bloom(1000, 0.001)
    assert np.shares_memory(bloom.words, bloom.words)


def test_files_of_a_growing_index_lie_where_it_is_told_and_one_that_was_read_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    made = Index(Deduplicate(capacity=10), scratch=tmp_path)
    made.near.find_or_add(random_rows(10), 0, 1.1)
    made.ids.extend(str(i) for i in range(10))
    (tmp_path / "seen").mkdir()
    made.save(tmp_path / "seen")
    again = Index(Deduplicate(capacity=10), folder=tmp_path / "seen")
    assert len(again.near) == len(again.ids) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]


def test_an_empty_index_is_saved_and_read(tmp_path: Path) -> None:
    settings = Deduplicate(capacity=10)
    Index(settings).save(tmp_path)
    index.check(tmp_path, "minhash")
    assert len(Index(settings, folder=tmp_path).near) == 0


def test_a_folder_that_does_not_do_is_told_in_one_line(tmp_path: Path) -> None:
    full = Index(Deduplicate(capacity=10))
    full.near.find_or_add(random_rows(3), 0, 1.1)
    full.ids.extend("abc")
    full.save(tmp_path)
    index.check(tmp_path, "minhash")
    for name in ("near.index", "urls.bloom", "contents.bloom", "ids.txt"):
        path = tmp_path / name
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(
            FileNotFoundError, match=rf"holds no {name}; name the seen/ folder of a finished factory run"
        ):
            index.check(tmp_path, "minhash")
        for cut in (b"", whole[:-1], whole[:20]) if name.endswith(".bloom") else (b"",):
            path.write_bytes(cut)
            with pytest.raises(
                ValueError, match=r"is cut short, |ids.txt holds 0 ids of 3 pages; run that recipe again"
            ):
                index.check(tmp_path, "minhash")
        path.write_bytes(whole)
    index.check(tmp_path, "minhash")
    with pytest.raises(ValueError, match=r"was made with deduplicate\.method = 'minhash', this recipe says 'simhash'"):
        index.check(tmp_path, "simhash")
    for wrong in (b"", b"ZIYANE2\0" + b"\0" * 64, (tmp_path / "near.index").read_bytes() + b"\0" * 8):
        (tmp_path / "near.index").write_bytes(wrong)
        with pytest.raises(ValueError, match=r"near\.index is cut short, or an older version wrote it"):
            index.check(tmp_path, "minhash")
