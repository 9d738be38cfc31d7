"""Changing the mix on the way: every source goes on at its counter, whatever happens around it."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data.indexed.history import History, continued, mix_at
from ziya_data.indexed.mix import Mix, Source
from ziya_data.indexed.writer import IndexedDatasetWriter

S, SAMPLES = 8, 400


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("h")
    names = [str(folder / name) for name in "abc"]
    for k, prefix in enumerate(names):
        with IndexedDatasetWriter(prefix, 60_000) as out:
            out.add(np.arange(600) + 1000 * k, [20] * 30)
    return names


change = st.tuples(
    st.integers(0, 60), st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 10)), min_size=1, max_size=3)
)


@settings(max_examples=40, deadline=None)
@given(changes=st.lists(change, min_size=1, max_size=5))
def test_no_sample_is_repeated_or_lost(prefixes: list[str], changes: list) -> None:
    alone = {name: Mix([Source(name, (prefixes["abc".index(name)],))], S, SAMPLES, 1, 0) for name in "abc"}
    consumed = dict.fromkeys("abc", 0)
    history: History = []
    at = 0
    for more, weights in changes:
        sources = [Source(name, (prefixes["abc".index(name)],), weight) for name, weight in dict(weights).items()]
        mix = continued(json.loads(json.dumps(history)), at, sources, S, SAMPLES, 1, 0)
        history = mix.history
        for i in range(at, at + more):
            sample = mix[i]
            name = sources[sample.source].name
            assert sample.tokens.tolist() == alone[name][consumed[name]].tokens.tolist()
            consumed[name] += 1
            assert mix.counts(i + 1)[name] == consumed[name]
        at += more
    for i in range(0, at, 7):  # and the history still tells every sample of the past
        assert mix_at(history, i, 0)[i].tokens.size == S + 1


def test_an_unchanged_mix_stays_the_same_wherever_it_stops(prefixes: list[str]) -> None:
    sources = [Source("a", (prefixes[0],), 2.0), Source("b", (prefixes[1],), 1.0)]
    mix = continued([], 0, sources, S, SAMPLES, 1, 0)
    history = mix.history
    later = continued(history, 123, sources, S, SAMPLES, 1, 0)
    assert later.history == history
    longer = continued(history, 123, sources, S, 2 * SAMPLES, 1, 0)
    for i in range(123, 180):
        assert mix[i].tokens.tolist() == later[i].tokens.tolist() == longer[i].tokens.tolist()


def test_a_run_that_goes_back_forgets_what_came_later(prefixes: list[str]) -> None:
    a, b = Source("a", (prefixes[0],)), Source("b", (prefixes[1],))
    history = continued([], 0, [a], S, SAMPLES, 1, 0).history
    changed = continued(history, 200, [a, b], S, SAMPLES, 1, 0).history
    assert [entry["first"] for entry in changed] == [0, 200]
    back = continued(changed, 100, [a, b], S, SAMPLES, 1, 0).history
    assert [(entry["first"], entry["counters"]) for entry in back] == [(0, {}), (100, {"a": 100})]


def test_what_would_repeat_samples_is_refused(prefixes: list[str], write: Callable[..., str]) -> None:
    a, b = Source("a", (prefixes[0],)), Source("b", (prefixes[1],))
    history = continued([], 0, [a], S, SAMPLES, 1, 0).history
    with pytest.raises(ValueError, match="sequence_length=9, the run began with 8"):
        continued(history, 10, [a], 9, SAMPLES, 1, 0)
    with pytest.raises(ValueError, match="seed=2, the run began with 1"):
        continued(history, 10, [a], S, SAMPLES, 2, 0)
    with pytest.raises(ValueError, match="source 'a' has another content than when the run drew 10"):
        continued(history, 10, [Source("a", tuple(prefixes))], S, SAMPLES, 1, 0)
    with pytest.raises(ValueError, match="another packing"):
        continued(history, 10, [Source("a", (prefixes[0],), packing="documents"), b], S, SAMPLES, 1, 0)
    whole = Source("a", (prefixes[0],), order="megatron")
    theirs = continued([], 0, [whole], S, SAMPLES, 1, 0).history
    continued(theirs, 10, [whole], S, SAMPLES, 1, 0)
    with pytest.raises(ValueError, match="Megatron's order is of the whole run"):
        continued(theirs, 10, [whole, b], S, SAMPLES, 1, 0)


def test_data_built_again_is_not_traced(write: Callable[..., str]) -> None:
    prefix = write([[1, 2, 3]] * 9)
    history = continued([], 0, [Source("a", (prefix,))], 4, 20, 1, 0).history
    write([[4, 5, 6]] * 9)
    with pytest.raises(ValueError, match="'a' holds other data"):
        mix_at(history, 3, 0)


def test_a_changed_budget_goes_on(prefixes: list[str]) -> None:
    history = continued([], 0, [Source("a", (prefixes[0],)), Source("b", (prefixes[1],))], S, 100, 1, 0).history
    # In the 60 samples that are left 10 are b's; it had 20 of its 75 an epoch before.
    sources = [Source("a", (prefixes[0],)), Source("b", (prefixes[1],), tokens=80)]
    mix = continued(history, 40, sources, S, 100, 1, 0)
    assert mix.counts(100) == {"a": 70, "b": 30}
