"""Schedules are data: no process is needed to prove them."""

import pytest

from megatron_ziya.parallel import schedule
from megatron_ziya.parallel.schedule import Action

LAYOUTS = [(name, p, m, v) for p in (1, 2, 3, 4, 8) for m in (p, 2 * p, 5 * p) for name, v in
           (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3)) if p > 1 or v == 1]  # fmt: skip


@pytest.mark.parametrize(("name", "stages", "micro_batches", "virtual"), LAYOUTS)
def test_schedules_run_and_wait_as_the_papers_say(name, stages, micro_batches, virtual):
    lists = schedule.make(name, stages, micro_batches, virtual)
    verdict = schedule.verify(lists, virtual, forward=1 / virtual, backward=2 / virtual)
    # arXiv 2104.04473, section 2.2: bubble time (p - 1)(f + b) / v beside the ideal m (f + b)
    expected = (stages - 1) * 3 / virtual
    assert verdict.length == pytest.approx(micro_batches * 3 + expected)


def test_1f1b_holds_few_activations_and_gpipe_all():
    assert schedule.verify(schedule.one_f_one_b(4, 16)).live == [4, 3, 2, 1]
    assert schedule.verify(schedule.gpipe(4, 16)).live == [16] * 4


def test_fewer_micro_batches_than_stages_still_run():
    schedule.verify(schedule.one_f_one_b(8, 3))


def test_interleaved_needs_multiples():
    with pytest.raises(ValueError, match="multiples of 4 stages"):
        schedule.make("interleaved", 4, 6, 2)


def F(m: int, c: int = 0) -> Action:
    return Action("F", m, c)


def B(m: int, c: int = 0) -> Action:
    return Action("B", m, c)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[F(0), B(0), F(1), B(1)], [F(1), B(1), F(0), B(0)]], "deadlock"),
        ([[B(0), F(0)]], "deadlock"),
        ([[F(0), F(1), B(0)], [F(0), B(0), F(1), B(1)]], "once: B1"),
        ([[F(0), F(0), B(0), B(0)]], "twice"),
        ([[F(0), F(1), B(0), B(1)], [F(1), F(0), B(0), B(1)]], "another order"),
    ],
)
def test_verifier_rejects(lists, message):
    with pytest.raises(ValueError, match=message):
        schedule.verify(lists)
