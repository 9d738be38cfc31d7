"""Shares, budgets, caps and replay: the properties they promise, counted on the samples that a mix hands out."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data.indexed.mix import Mix, Source
from ziya_data.indexed.source import Size, shares

S = 16
SIZES = [Size(1600, 16.0), Size(160, 16.0), Size(800, 8.0)]  # 100, 10 and 100 samples an epoch


def source(name: str, **knobs: object) -> Source:
    return Source(name, (name,), **knobs)  # type: ignore[arg-type]


def drawn(sources: list[Source], samples: int) -> list[Fraction]:
    return [share * samples for share in shares(sources, SIZES[: len(sources)], samples)]


def test_weights_alone_are_shares() -> None:
    assert drawn([source("a", weight=3.0), source("b")], 100) == [75, 25]


def test_budgets_come_first_and_weights_share_the_rest() -> None:
    assert drawn([source("a", tokens=640), source("b", weight=1.0), source("c", weight=2.0)], 100) == [40, 20, 40]
    with pytest.raises(ValueError, match="take 140 samples, the run has 100"):
        drawn([source("a", tokens=2240), source("b")], 100)


def test_budgets_alone_are_proportions_and_bounds() -> None:
    budgets = [source("a", tokens=1600), source("b", tokens=800)]
    assert drawn(budgets, 150) == [100, 50]
    assert drawn(budgets, 30) == [20, 10]
    with pytest.raises(ValueError, match="used up after 150 samples, the run has 151"):
        drawn(budgets, 151)


def test_replay_is_as_many_tokens_as_the_new_data() -> None:
    """The third source has 8 tokens a sample where the first has 16: as many tokens are twice the samples."""
    new, replay = source("new"), source("old", replay=1.0)
    assert drawn([new, source("more", weight=3.0), replay], 120) == [10, 30, 80]
    assert drawn([new, source("more", tokens=160), replay], 120) == [30, 10, 80]
    assert drawn([source("new", tokens=160), source("old", replay=0.5)], 15) == [10, 5]


def test_caps_bound_a_source_and_the_others_take_over() -> None:
    capped = source("b", weight=9.0, max_epochs=2.0)
    assert drawn([source("a"), capped], 100) == [80, 20]
    assert drawn([source("a"), source("b", weight=9.0, max_epochs=2.0, start=15)], 100) == [95, 5]
    assert drawn([source("a", weight=1.0, max_epochs=0.5), capped, source("c", weight=1.0)], 100) == [40, 20, 40]
    with pytest.raises(ValueError, match=r"leaves only 120 of 300 samples \(a, b\)"):
        drawn([source("a", max_epochs=1.0), capped], 300)


knobs = st.fixed_dictionaries(
    {"weight": st.floats(0.01, 100)},
    optional={"tokens": st.integers(0, 3000), "replay": st.floats(0, 3), "max_epochs": st.floats(0, 5)},
)


@settings(max_examples=300, deadline=None)
@given(given=st.lists(knobs, min_size=1, max_size=3), samples=st.integers(1, 400))
def test_shares_add_up_and_keep_every_bound(given: list[dict[str, float]], samples: int) -> None:
    sources = [source("abc"[i], **knob) for i, knob in enumerate(given)]
    if all(s.replay for s in sources) or any(s.tokens and s.replay for s in sources):
        return
    try:
        taken = drawn(sources, samples)
    except ValueError:
        return
    assert sum(taken) == samples
    for one, size, count in zip(sources, SIZES, taken, strict=False):
        assert count >= 0
        if one.max_epochs:
            assert count <= Fraction(one.max_epochs) * size.samples
        if one.tokens and not any(other.max_epochs for other in sources):
            # Budgets alone fill the last sample, shared by all, to the end.
            assert count * Fraction(size.tokens_a_sample) < one.tokens + size.tokens_a_sample


def test_a_mix_hands_out_what_the_recipe_says(write: Callable[..., str]) -> None:
    old, new, questions = (write([[k + 1] * 20] * 40, name=f"d{k}") for k in range(3))
    sources = [
        Source("new", (new,)),
        Source("questions", (questions,), tokens=400, packing="documents"),  # a row of S + 1 = 41 holds two documents
        Source("old", (old,), replay=1.0),
    ]
    mix = Mix(sources, 40, 70, 1, 0)
    tokens = Counter({"new": 0, "questions": 0, "old": 0})
    for sample in mix:
        tokens[sources[sample.source].name] += 40
    assert tokens["questions"] == 400
    assert tokens["old"] == tokens["new"] + tokens["questions"] == 1400


@pytest.mark.parametrize(
    ("knob", "words"),
    [
        ({"order": "random"}, "order='random'; use ziya or megatron"),
        ({"order": "megatron", "packing": "documents"}, "no packing='documents'"),
        ({"tokens": -1}, "tokens=-1"),
        ({"replay": float("inf")}, "replay=inf"),
        ({"max_epochs": -0.5}, "max_epochs=-0.5"),
        ({"start": -3}, "start=-3"),
        ({"tokens": 5, "replay": 1.0}, "both tokens and replay"),
        ({"replay": 1.0}, "every source is replay"),
    ],
)
def test_impossible_sources_are_refused_in_one_line(
    write: Callable[..., str], knob: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Mix([Source("a", (write([[1, 2]]),), **knob)], 4, 4, 1, 0)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
