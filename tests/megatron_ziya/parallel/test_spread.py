"""Schedules with the head spread over the stages: proven and timed without any process."""

import itertools

import pytest

from megatron_ziya import checks
from megatron_ziya.config import Architecture, Data, Parallel, Recipe, Source
from megatron_ziya.parallel.schedule import Action, Schedule, make
from megatron_ziya.parallel.slices import Times
from megatron_ziya.parallel.spread import shift, spread
from megatron_ziya.parallel.verify import planned, verify

LLAMA2_13B = Architecture(hidden_size=5120, intermediate_size=13824, layers=40, heads=40, vocabulary_size=39424)
ALL = (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zb-v", 2))


def of_13b(stages: int, name: str, virtual: int):
    """640 sequences on 80 GPUs."""
    p = Parallel(pipeline=stages, virtual=virtual, schedule=name, spread_head=True)
    return planned(p, LLAMA2_13B, 4096, 640 // (80 // stages))


PEERS = [  # share of time lost, in percent: a simulation that is not ours, weighted by FLOPs, without communication
    (2, "1f1b", 1, 5.9), (2, "interleaved", 4, 1.5),
    (4, "1f1b", 1, 8.6), (4, "interleaved", 5, 1.8),
    (8, "1f1b", 1, 9.9), (8, "interleaved", 5, 2.1),
]  # fmt: skip


@pytest.mark.parametrize(("stages", "name", "virtual", "expected"), PEERS)
def test_bubbles_of_llama2_13b_with_the_head_spread(stages, name, virtual, expected):
    """Theirs for 1F1B is (p - 1) / (m + p - 1), as if the head's shares were part of the slices. Here they are actions
    of their own that the first and last micro-batches do not wait for on the way through the stages, so the bubble
    is (p - 1) (F + B) beside a step of m (F + B + head): shorter by the head's share of the work, 0.6 / 40 = 1.5 %."""
    found = 100 * of_13b(stages, name, virtual)[2].bubble
    assert expected * (1 - 0.015) - 0.05 <= found <= expected + 0.05  # theirs are rounded to 0.1


@pytest.mark.parametrize(("stages", "name", "virtual", "expected"), [
    (2, "zb-h1", 1, 2.26), (2, "zb-v", 2, 1.08), (4, "zb-h1", 1, 3.35), (4, "zb-v", 2, 1.55), (8, "zb-h1", 1, 3.88),
])  # fmt: skip
def test_bubbles_that_no_peer_states(stages, name, virtual, expected):
    """zb-h1: (p - 1) (F + B - W), F and B longer than W by attention. zb-v is found by search: held where it is."""
    assert 100 * of_13b(stages, name, virtual)[2].bubble == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("stages", "name", "virtual"), [(2, "1f1b", 1), (4, "1f1b", 1), (8, "1f1b", 1),
                                                         (4, "zb-h1", 1), (8, "zb-h1", 1)])  # fmt: skip
def test_it_costs_one_or_two_micro_batches_and_one_share_of_the_scores(stages, name, virtual):
    schedule, _, verdict = of_13b(stages, name, virtual)
    assert stages < max(verdict.live) <= stages + 2
    for actions in schedule.actions:
        held = itertools.accumulate({"S": 1, "T": -1}.get(action.kind, 0) for action in actions)
        assert max(held) == 1


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 7])
def test_every_schedule_runs_with_few_and_odd_micro_batches_and_uneven_slices(stages, micro_batches):
    for name, virtual in ALL:
        if name == "interleaved" and micro_batches % stages:
            continue
        slices = stages * virtual
        uneven = Times(tuple(1.0 + 0.3 * (i % 3) for i in range(slices)), (1.4,) * slices, (0.2,) * slices,
                       (0.3,) * stages, (0.6,) * stages)  # fmt: skip
        schedule = spread(name, stages, micro_batches, virtual, uneven)
        work = (sum(map(sum, uneven[:3])) / stages + 0.9) * micro_batches
        assert verify(schedule, uneven, delay=0.1).length >= work - 1e-9
        assert verify(schedule).ahead >= 1  # whatever the times are, it runs: order alone decides


def test_one_micro_batch_on_two_stages_by_hand():
    """F F | S S | T T | B B with a message between each: nothing can overlap."""
    times = Times.equal(2)._replace(scores=(0.5, 0.5), scores_gradient=(1.0, 1.0))
    verdict = verify(spread("1f1b", 2, 1, 1, times), times, delay=0.25)
    forward, head, backward = 1 + 0.25 + 1, 0.25 + 0.5 + 0.25 + 1.0, 2 + 0.25 + 2
    assert verdict.length == pytest.approx(forward + head + backward)


def test_forwards_move_to_the_front():
    assert [*map(str, shift(make("1f1b", 2, 4).actions[1], 1))] == ["F0", "F1", "B0", "F2", "B1", "F3", "B2", "B3"]
    assert [*map(str, shift(make("1f1b", 2, 2).actions[1], 5))] == ["F0", "F1", "B0", "B1"]


def test_a_line_carries_each_message_once():
    for name, virtual in ALL:
        lists = spread(name, 4, 8, virtual, Times.equal(4 * virtual))
        sent = [m for a in range(4) for b in range(4) if a != b for m in lists.line(a, b)]
        crossing = sum(lists.stage_of[s] != lists.stage_of[s + 1] for s in range(lists.slices - 1))
        assert len(sent) == len(set(sent)) == 2 * 8 * (crossing + 3)


# --- What the verifier must refuse ---------------------------------------------------------------------------------


def written(*stages: str, spread_head: bool = True) -> Schedule:
    """`"F0 S0 T0 B0"` a stage."""
    lists = [[Action(word[0], int(word[1:])) for word in stage.split()] for stage in stages]
    return Schedule(lists, [[s] for s in range(len(lists))], spread_head=spread_head)


GOOD = "F0 S0 T0 B0"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (written(GOOD, "F0 S0 B0 T0"), "deadlock: stage 0 at B0, stage 1 at B0"),
        (written(GOOD, "S0 F0 T0 B0"), "deadlock: stage 0 at S0, stage 1 at S0"),
        (written(GOOD, "F0 T0 S0 B0"), "deadlock: stage 0 at T0, stage 1 at T0"),
        (written("F0 B0 S0 T0", GOOD), "deadlock: stage 0 at B0, stage 1 at T0"),
        (written(GOOD, "F0 S0 B0"), "must run each of FBST once for every micro-batch: T0"),
        (written(GOOD, "F0 S0 S0 T0 B0"), "twice"),
        (written(GOOD, GOOD, spread_head=False), "must run each of FB once for every micro-batch: S0, T0"),
        (written("F0 F1 S1 S0 T0 T1 B0 B1", "F0 F1 S0 S1 T0 T1 B0 B1"), "S in the same order of micro-batches"),
    ],
)
def test_verifier_rejects(schedule, message):
    with pytest.raises(ValueError, match=message):
        verify(schedule)


def test_verifier_proves_what_blocking_sends_need():
    """Stage 1 sends the hidden states of two micro-batches before it takes a `T`, and stage 0 sends a further F to it:
    with one receive posted a line, both wait."""
    lists = spread("1f1b", 2, 4, 1, Times.equal(2))
    with pytest.raises(ValueError, match="sends block until received, 1 receives"):
        verify(lists, ahead=1)
    assert verify(lists).ahead == 2


@pytest.mark.parametrize(
    ("parallel", "tied", "message"),
    [
        ({"pipeline": 1}, False, "spread_head with pipeline=1"),
        ({"pipeline": 2}, True, "spread_head with a tied embedding"),
        ({"pipeline": 2, "invariant": True}, False, r"spread_head with parallel\.invariant"),
    ],
)
def test_what_it_does_not_go_with(parallel, tied, message):
    recipe = Recipe(parallel=Parallel(spread_head=True, **parallel), data=Data(sources=(Source("a", ("x",)),)))
    architecture = Architecture(hidden_size=64, intermediate_size=96, layers=4, heads=4, tied=tied)
    with pytest.raises(ValueError, match=message):
        checks.check(recipe, architecture, parallel["pipeline"])
