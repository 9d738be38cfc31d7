import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data import _indexed
from ziya_data.indexed.mix import Mix, Sample, Source, integer_weights
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.writer import IndexedDatasetWriter

GOLDEN_MIX = "0f968b5644687bb8"


def oracle_interleave(weights: list[float], samples: int) -> list[int]:
    """The source that lags furthest behind its weight goes next; in integers of any size."""
    units = integer_weights(weights)
    total = sum(units)
    counts = [0] * len(units)
    order = []
    for i in range(samples):
        deficits = [unit * (i + 1) - count * total for unit, count in zip(units, counts, strict=True)]
        source = deficits.index(max(deficits))
        counts[source] += 1
        order.append(source)
    return order


weights = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(weights=weights, looks=st.lists(st.integers(0, 2999), min_size=1, max_size=20))
def test_interleaving_is_the_oracles_in_any_order_of_access(weights: list[float], looks: list[int]) -> None:
    order = oracle_interleave(weights, 3000)
    before = np.cumsum([[source == s for s in range(len(weights))] for source in [-1, *order]], axis=0)
    interleave = _indexed.Interleave(integer_weights(weights))
    for i in looks:
        assert interleave.at(i) == (order[i], before[i][order[i]])
        assert interleave.counts(i) == before[i].tolist()


def test_no_source_strays_from_its_share() -> None:
    weights = [0.5, *[0.005] * 60, *[0.2 / 7] * 7]
    exact = np.array(weights) / sum(weights)
    interleave = _indexed.Interleave(integer_weights(weights))
    strays = [np.abs(np.array(interleave.counts(i)) - i * exact).max() for i in range(0, 20_000, 7)]
    assert max(strays) < 1.5


def test_counters_have_no_small_limit() -> None:
    """Far beyond int16 sources' counters and where float32 counts fail."""
    interleave = _indexed.Interleave(integer_weights([3.0, 1.0]))
    assert interleave.counts(20_000_000) == [15_000_000, 5_000_000]


@pytest.fixture
def sources(write: Callable[..., str]) -> list[Source]:
    rng = np.random.default_rng(0)
    prefixes = [
        write([(rng.integers(1, 1000, n) + 1000 * k).tolist() for n in rng.integers(1, 40, 50)], name=f"d{k}")
        for k in range(4)
    ]
    return [
        Source("web", (prefixes[0], prefixes[1]), 0.7),
        Source("books", (prefixes[2],), 0.2),
        Source("questions", (prefixes[3],), 0.1, "documents"),
    ]


def same(a: Sample, b: Sample) -> bool:
    return a.source == b.source and all(
        np.array_equal(x, y) for x, y in ((a.tokens, b.tokens), (a.starts, b.starts), (a.loss_mask, b.loss_mask))
    )


def test_a_sample_is_a_pure_function_of_its_number(sources: list[Source]) -> None:
    forward = [sample for sample in Mix(sources, 16, 500, 1, 0)]
    mix = Mix(sources, 16, 500, 1, 0)
    assert all(same(mix[i], forward[i]) for i in reversed(range(500)))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(mix.__getitem__, range(500)))
    assert all(map(same, together, forward))
    other_seed = Mix(sources, 16, 500, 2, 0)
    assert not any(same(other_seed[i], forward[i]) for i in range(20))


def test_samples_have_the_promised_shapes(sources: list[Source]) -> None:
    sample = Mix(sources, 16, 5, 1, 0)[3]
    assert (sample.tokens.dtype, sample.tokens.shape) == (np.int64, (17,))
    assert (sample.starts.dtype, sample.starts.shape) == (np.int32, (16,))
    assert (sample.loss_mask.dtype, sample.loss_mask.shape) == (np.bool_, (16,))


def test_counts_are_those_of_the_samples(sources: list[Source]) -> None:
    mix = Mix(sources, 16, 300, 1, 0)
    drawn = Counter(sources[sample.source].name for sample in mix)
    assert mix.counts(300) == drawn
    assert mix.counts(0) == {"web": 0, "books": 0, "questions": 0}
    assert drawn["web"] == 210


def test_documents_lead_back_to_the_tokens(sources: list[Source]) -> None:
    mix = Mix(sources, 16, 300, 1, 0)
    held = {s.name: [d.tolist() for path in s.paths for d in IndexedDataset(path)] for s in sources}
    for i in range(300):
        sample = mix[i]
        begins = sorted(set(sample.starts.tolist()))
        for (name, document), begin in zip(mix.documents(i), begins, strict=False):
            length = int(np.sum(sample.starts == begin))
            run = sample.tokens[begin : begin + length].tolist()
            whole = held[name][document]
            assert any(whole[at : at + length] == run for at in range(len(whole) - length + 1))


def test_a_source_gives_the_same_samples_whatever_the_others(sources: list[Source]) -> None:
    alone = Mix([sources[1]], 16, 60, 1, 0)
    among = [sample for sample in Mix(sources, 16, 300, 1, 0) if sample.source == 1]
    assert len(among) == 60
    assert all(np.array_equal(alone[i].tokens, sample.tokens) for i, sample in enumerate(among))


def test_bad_arguments_are_refused_in_one_line(sources: list[Source], write: Callable[..., str]) -> None:
    web = sources[0]
    empty = write([], name="empty")
    a, b = write([[1]], name="a", tokenizer="aa"), write([[1]], name="b", tokenizer="bb")
    good = {"sources": sources, "sequence_length": 16, "samples": 5, "seed": 1, "pad_id": 0}
    for changed, words in (
        ({"sources": []}, "no sources"),
        ({"sequence_length": 0}, "sequence_length=0"),
        ({"samples": -1}, "samples=-1"),
        ({"pad_id": -1}, "pad_id=-1"),
        ({"sources": [web, web]}, "'web' is given 2 times"),
        ({"sources": [Source("x", ())]}, "no paths"),
        ({"sources": [Source("x", web.paths, 0.0)]}, "weight=0.0"),
        ({"sources": [Source("x", web.paths, float("nan"))]}, "weight=nan"),
        ({"sources": [Source("x", web.paths, 1.0, "loose")]}, "packing='loose'; use stream or documents"),
        ({"sources": [Source("x", (empty,))]}, f"'x' \\({empty}\\): it holds no token"),
        ({"sources": [Source("x", (empty,), 1.0, "documents")]}, "no document of two tokens"),
        ({"sources": [Source("x", (a,)), Source("y", (b,))]}, "built with another tokenizer"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            Mix(**(good | changed))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Mix([Source("x", (os.fspath("nowhere"),))], 16, 5, 1, 0)


def test_samples_outside_are_refused(sources: list[Source]) -> None:
    mix = Mix(sources, 16, 5, 1, 0)
    assert len(mix) == 5
    for outside in (-1, 5):
        with pytest.raises(IndexError, match="0 to 4"):
            mix[outside]
    with pytest.raises(IndexError, match="upto=6"):
        mix.counts(6)


def test_a_row_of_one_prediction(write: Callable[..., str]) -> None:
    mix = Mix([Source("x", (write([[1, 2], [3, 4]]),))], 1, 4, 1, 0)
    assert sum(int(sample.loss_mask[0]) for sample in mix) == 2


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_prompts_are_not_predicted_where_that_is_asked_for(
    tmp_path_factory: pytest.TempPathFactory, packing: str
) -> None:
    folder = tmp_path_factory.mktemp("p")
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 30, 60)
    prompts = (lengths * rng.random(60)).astype(int)
    # Ids tell document and position: 30 d + t + 1; 0 is padding.
    ids = [30 * d + t + 1 for d, n in enumerate(lengths) for t in range(n)]
    for name, part in (("a", slice(0, 25)), ("b", slice(25, 60))):
        skipped = int(lengths[: part.start].sum())
        with IndexedDatasetWriter(folder / name, 60_000) as out:
            out.add(ids[skipped : skipped + int(lengths[part].sum())], lengths[part], prompts[part])
    paths = (str(folder / "a"), str(folder / "b"))
    whole = Mix([Source("x", paths, packing=packing)], 16, 80, 1, 0)
    answers = Mix([Source("x", paths, packing=packing, prompt_loss=False)], 16, 80, 1, 0)
    hidden = 0
    for i in range(80):
        document, position = np.divmod(whole[i].tokens[1:] - 1, 30)
        expected = whole[i].loss_mask & (position >= prompts[document])
        assert answers[i].loss_mask.tolist() == expected.tolist()
        hidden += int(whole[i].loss_mask.sum() - expected.sum())
    assert hidden > 100
    with pytest.raises(ValueError, match=r"prompt_loss=false, but no prompts are marked in .*plain; build it with"):
        Mix([Source("x", (_plain(folder),), prompt_loss=False)], 16, 8, 1, 0)


def _plain(folder: Path) -> str:
    with IndexedDatasetWriter(folder / "plain", 10) as out:
        out.add([1, 2], [2])
    return str(folder / "plain")


def test_origins_lead_to_the_dataset(sources: list[Source]) -> None:
    mix = Mix(sources, 16, 300, 1, 0)
    for i in range(300):
        tokens = []
        for origin in mix.origins(i):
            assert origin.path in sources[mix[i].source].paths
            tokens += IndexedDataset(origin.path)[origin.document][origin.first :][: origin.tokens].tolist()
        assert mix[i].tokens[: len(tokens)].tolist() == tokens


def test_a_mix_of_version_1_never_changes(tmp_path: Path) -> None:
    """Pinned: a run that goes on after an update must see the same samples."""
    for name, begin in (("a", 0), ("b", 5000)):
        with IndexedDatasetWriter(tmp_path / name, 60_000) as out:
            out.add(np.arange(400) + begin, [7, 33] * 10)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    mix = Mix([Source("one", (a,), 0.7), Source("two", (b, a), 0.3, "documents")], 32, 200, 1234, 0)
    digest = hashlib.blake2b(digest_size=8)
    for sample in mix:
        for array in (sample.tokens, sample.starts, sample.loss_mask, np.array(sample.source)):
            digest.update(array.tobytes())
    assert digest.hexdigest() == GOLDEN_MIX
