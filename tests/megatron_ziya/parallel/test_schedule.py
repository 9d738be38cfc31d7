"""Schedules are data: no process is needed to prove them."""

import pytest

from megatron_ziya.parallel import schedule
from megatron_ziya.parallel.schedule import Action, Schedule
from megatron_ziya.parallel.slices import Times
from megatron_ziya.parallel.verify import verify

WHOLE = [(name, p, m, v) for p in (1, 2, 3, 4, 8) for m in (p, 2 * p, 5 * p) for name, v in
         (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3)) if p > 1 or v == 1]  # fmt: skip


def proven(name: str, stages: int, micro_batches: int, virtual: int = 1):
    """Verdict with a stage's F, B and W of one micro-batch 1 unit each."""
    part = 1 / virtual
    return verify(schedule.make(name, stages, micro_batches, virtual), Times.equal(stages * virtual, part, part, part))


@pytest.mark.parametrize(("name", "stages", "micro_batches", "virtual"), WHOLE)
def test_schedules_run_and_wait_as_the_papers_say(name, stages, micro_batches, virtual):
    # arXiv 2104.04473, section 2.2: bubble time (p - 1)(f + b) / v beside the ideal m (f + b)
    expected = (stages - 1) * 3 / virtual
    assert proven(name, stages, micro_batches, virtual).length == pytest.approx(micro_batches * 3 + expected)


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("times", [(1, 1, 1), (1.0, 1.2, 0.7)])
def test_zb_h1_waits_as_its_paper_says_in_the_memory_of_1f1b(stages, times):
    """arXiv 2401.10241, table 1: bubble (p - 1)(F + B - W), activations p."""
    forward, backward, weight = times
    m = 4 * stages
    verdict = verify(schedule.make("zb-h1", stages, m), Times.equal(stages, *times))
    assert verdict.length == pytest.approx(m * sum(times) + (stages - 1) * (forward + backward - weight))
    assert verdict.live == [stages] * stages


@pytest.mark.parametrize("micro_batches", [16, 32])
@pytest.mark.parametrize(("stages", "expected"), [(2, 1.0), (4, 1.0), (8, 1.35)])
def test_zb_v_waits_for_little_but_the_first_micro_batch(stages, micro_batches, expected):
    """The last stage's first work arrives after p - 1 half forwards: that is the least any V can wait. The scheduler
    reaches it with 2 and 4 stages; with 8 it loses some more in 1F1B's memory (2 p half activations)."""
    verdict = proven("zb-v", stages, micro_batches, 2)
    least = 3 * micro_batches + (stages - 1) / 2
    assert least - 1e-9 <= verdict.length <= 3 * micro_batches + expected * (stages - 1) / 2 + 1e-9
    assert max(verdict.live) <= 2 * stages


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 7])
def test_every_schedule_runs_with_few_and_odd_micro_batches_and_uneven_slices(stages, micro_batches):
    for name, virtual in (("gpipe", 1), ("1f1b", 1), ("zb-h1", 1), ("zb-v", 2)):
        slices = stages * virtual
        uneven = Times(tuple(1.0 + 0.3 * (i % 3) for i in range(slices)), (1.4,) * slices, (0.2,) * slices)
        lists = schedule.make(name, stages, micro_batches, virtual, uneven)
        assert verify(lists, uneven, delay=0.1).length >= sum(map(sum, uneven)) / stages * micro_batches - 1e-9


def test_the_v_scheduler_keeps_to_its_memory():
    for most in (2, 3, 5, 8):
        found = schedule.zero_bubble_v(4, 12, Times.equal(8), most)
        assert max(verify(found).live) <= most


def test_1f1b_holds_few_activations_and_gpipe_all():
    assert proven("1f1b", 4, 16).live == [4, 3, 2, 1]
    assert proven("gpipe", 4, 16).live == [16] * 4


def test_interleaved_needs_multiples():
    with pytest.raises(ValueError, match="multiples of 4 stages"):
        schedule.make("interleaved", 4, 6, 2)


def test_wrong_numbers_of_slices():
    with pytest.raises(ValueError, match="two slices a stage"):
        schedule.make("zb-v", 4, 8, 1)
    with pytest.raises(ValueError, match="one slice a stage"):
        schedule.make("zb-h1", 4, 8, 2)


def test_a_message_takes_its_time():
    # two stages, one micro-batch: F, message, F, B, message, B
    assert verify(schedule.make("1f1b", 2, 1), Times.equal(2), delay=0.25).length == pytest.approx(1 + 1 + 2 + 2 + 0.5)


# --- What the verifier must refuse ---------------------------------------------------------------------------------


def F(m: int, c: int = 0) -> Action:
    return Action("F", m, c)


def B(m: int, c: int = 0) -> Action:
    return Action("B", m, c)


def W(m: int, c: int = 0) -> Action:
    return Action("W", m, c)


def linear(lists: list[list[Action]], split: bool = False) -> Schedule:
    return Schedule(lists, schedule.placement("1f1b", len(lists), 1), split)


@pytest.mark.parametrize(
    ("lists", "split", "message"),
    [
        ([[F(0), B(0), F(1), B(1)], [F(1), B(1), F(0), B(0)]], False, "deadlock: stage 0 at B0, stage 1 at F1"),
        ([[B(0), F(0)]], False, "deadlock: stage 0 at B0"),
        ([[F(0), F(1), B(0)], [F(0), B(0), F(1), B(1)]], False, "once for every micro-batch: B1"),
        ([[F(0), F(0), B(0), B(0)]], False, "twice"),
        ([[F(0), W(0), B(0)]], True, "deadlock: stage 0 at W0"),
        ([[F(0), B(0)]], True, "once for every micro-batch: W0"),
        ([[F(0), B(0), W(0), W(0)]], True, "twice"),
        ([[F(0), B(0), W(0)]], False, "must run each of FB once"),
    ],
)
def test_verifier_rejects(lists, split, message):
    with pytest.raises(ValueError, match=message):
        verify(linear(lists, split))


def test_verifier_rejects_a_slice_without_a_stage():
    with pytest.raises(ValueError, match="every slice must lie on one stage"):
        verify(Schedule([[F(0), B(0)], [F(0), B(0)]], [[0], [0]]))


def test_1f1b_without_posted_receives_deadlocks_when_sends_block():
    """The classic: stage 0 sends an activation while stage 1 sends a gradient, and neither receives."""
    with pytest.raises(ValueError, match=r"deadlock: .*sends block until received, 0 receives"):
        verify(schedule.make("1f1b", 2, 4), ahead=0)
    assert verify(schedule.make("1f1b", 2, 4)).ahead == 1


def test_a_stage_whose_own_send_is_not_taken_cannot_make_what_the_other_waits_for():
    """Two chunks a stage: with one receive posted, interleaved on two stages stops; the verifier asks for two."""
    lists = schedule.make("interleaved", 2, 4, 2)
    with pytest.raises(ValueError, match="sends block until received, 1 receives"):
        verify(lists, ahead=1)
    assert verify(lists).ahead == 2


def test_messages_taken_in_another_order_than_sent_are_held_until_they_are_wanted():
    """Receives are posted in the order of the sends, so nothing is mixed up and nothing hangs."""
    verdict = verify(linear([[F(0), F(1), B(0), B(1)], [F(1), F(0), B(0), B(1)]]))
    assert verdict.starts[1][0] == 2.0


def test_a_line_between_two_stages_carries_one_direction():
    """In every schedule a pair of stages has its own line each way, and every message is on exactly one line."""
    for name, virtual in (("interleaved", 3), ("zb-v", 2), ("zb-h1", 1)):
        lists = schedule.make(name, 4, 8, virtual)
        sent = [m for a in range(4) for b in range(4) if a != b for m in lists.line(a, b)]
        assert len(sent) == len(set(sent))
        crossing = sum(lists.stage_of[s] != lists.stage_of[s + 1] for s in range(lists.slices - 1))
        assert len(sent) == 2 * 8 * crossing
