"""Pipeline schedules as data: pure functions that return, for each stage, the list of its actions in order.

A model cut into `stages * virtual` slices puts slice `chunk * stages + stage` on `stage` as its `chunk`. `F` runs a
slice forward on one micro-batch, `B` runs it backward. `verify` plays the lists through before anything runs.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Action(NamedTuple):
    kind: str
    """`F` forward, `B` backward."""
    micro_batch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}" + (f".{self.chunk}" if self.chunk else "")


Schedule = list[list[Action]]
"""The actions of each stage."""


class Verdict(NamedTuple):
    """What `verify` found: times in the units it was given, live activations in micro-batches times slices."""

    length: float
    bubble: float
    """Share of the stages' time in which they wait."""
    live: list[int]
    """Most activations held at once, per stage."""
    starts: list[list[float]]
    """Start of each action, per stage."""


def make(name: str, stages: int, micro_batches: int, virtual: int = 1) -> Schedule:
    """The schedule called `name`. Raises ValueError when the numbers do not fit it."""
    if name == "gpipe":
        return gpipe(stages, micro_batches)
    if name == "1f1b":
        return one_f_one_b(stages, micro_batches)
    if name == "interleaved":
        return interleaved(stages, micro_batches, virtual)
    raise ValueError(f"parallel.schedule={name!r} is not known; use gpipe, 1f1b or interleaved")


def gpipe(stages: int, micro_batches: int) -> Schedule:
    """All forward, then all backward (arXiv 1811.06965): simple, and holds every micro-batch's activations."""
    forward = [Action("F", m) for m in range(micro_batches)]
    backward = [Action("B", m) for m in range(micro_batches)]
    return [forward + backward for _ in range(stages)]


def one_f_one_b(stages: int, micro_batches: int) -> Schedule:
    """One forward, one backward in turn (arXiv 2006.09503): stage s holds at most `stages - s` activations."""
    lists = []
    for stage in range(stages):
        ahead = min(stages - stage - 1, micro_batches)
        lists.append(_weave([Action("F", m) for m in range(micro_batches)],
                            [Action("B", m) for m in range(micro_batches)], ahead))  # fmt: skip
    return lists


def interleaved(stages: int, micro_batches: int, virtual: int) -> Schedule:
    """1F1B over `virtual` slices a stage (arXiv 2104.04473, section 2.2): the bubble shrinks by `virtual`."""
    if micro_batches % stages:
        raise ValueError(f"{micro_batches} micro-batches: the interleaved schedule needs multiples of {stages} stages")
    groups, within = range(0, micro_batches, stages), range(stages)
    order = [(group + m, chunk) for group in groups for chunk in range(virtual) for m in within]
    forward = [Action("F", m, chunk) for m, chunk in order]
    backward = [Action("B", m, virtual - 1 - chunk) for m, chunk in order]
    return [
        _weave(forward, backward, min((stages - stage - 1) * 2 + (virtual - 1) * stages, len(forward)))
        for stage in range(stages)
    ]


def _weave(forward: Sequence[Action], backward: Sequence[Action], ahead: int) -> list[Action]:
    """`ahead` forwards, then one forward and one backward in turn, then the remaining backwards."""
    steady = [action for pair in zip(forward[ahead:], backward, strict=False) for action in pair]
    return [*forward[:ahead], *steady, *backward[len(forward) - ahead :]]


def verify(schedule: Schedule, virtual: int = 1, forward: float = 1.0, backward: float = 2.0) -> Verdict:
    """Play a schedule through with the given times of one slice and prove that it can run.

    Raises ValueError when an action is missing or doubled, when a backward comes before its forward, when the stages
    would wait for each other for ever, or when messages between two stages would be taken in another order than sent.
    """
    stages, slices = len(schedule), len(schedule) * virtual
    _complete(schedule, virtual)
    finished: dict[tuple[str, int, int], float] = {}
    starts: list[list[float]] = [[] for _ in schedule]
    clock, live, most = [0.0] * stages, [0] * stages, [0] * stages
    while any(len(done) < len(todo) for done, todo in zip(starts, schedule, strict=True)):
        progress = False
        for stage, todo in enumerate(schedule):
            while len(starts[stage]) < len(todo):
                action = todo[len(starts[stage])]
                slice_ = action.chunk * stages + stage
                ready = [finished.get(need) for need in _needs(action, slice_, slices)]
                if any(time is None for time in ready):
                    break
                begin = max([clock[stage], *(time for time in ready if time is not None)])
                clock[stage] = begin + (forward if action.kind == "F" else backward)
                finished[action.kind, action.micro_batch, slice_] = clock[stage]
                starts[stage].append(begin)
                live[stage] += 1 if action.kind == "F" else -1
                most[stage] = max(most[stage], live[stage])
                progress = True
        if not progress:
            stuck = [(len(done), todo) for done, todo in zip(starts, schedule, strict=True)]
            waiting = [str(todo[done]) for done, todo in stuck if done < len(todo)]
            raise ValueError(f"deadlock: the stages wait for each other at {', '.join(waiting)}")
    _messages_in_order(schedule, virtual)
    length = max(clock)
    busy = sum(forward if action.kind == "F" else backward for todo in schedule for action in todo)
    return Verdict(length, 1 - busy / (length * stages), most, starts)


def _needs(action: Action, slice_: int, slices: int) -> list[tuple[str, int, int]]:
    """What must be finished before an action: `(kind, micro_batch, slice)`."""
    if action.kind == "F":
        return [("F", action.micro_batch, slice_ - 1)] if slice_ else []
    after = [("B", action.micro_batch, slice_ + 1)] if slice_ + 1 < slices else []
    return [("F", action.micro_batch, slice_), *after]


def _complete(schedule: Schedule, virtual: int) -> None:
    micro_batches = 1 + max(action.micro_batch for todo in schedule for action in todo)
    wanted = {Action(kind, m, c) for kind in "FB" for m in range(micro_batches) for c in range(virtual)}
    for stage, todo in enumerate(schedule):
        if len(todo) != len(wanted) or set(todo) != wanted:
            odd = sorted(map(str, wanted.symmetric_difference(todo))) or ["an action twice"]
            raise ValueError(f"stage {stage} must run every micro-batch forward and backward once: {', '.join(odd)}")


def _messages_in_order(schedule: Schedule, virtual: int) -> None:
    """Two stages exchange messages of one direction in one order, so the receiver must take them as they are sent."""
    stages, slices = len(schedule), len(schedule) * virtual
    for kind, step in (("F", 1), ("B", -1)):
        for stage, todo in enumerate(schedule):
            target = (stage + step) % stages
            sent = [(a.micro_batch, a.chunk * stages + stage + step) for a in todo if a.kind == kind]
            sent = [(m, s) for m, s in sent if 0 <= s < slices]
            taken = [(a.micro_batch, a.chunk * stages + target) for a in schedule[target] if a.kind == kind]
            taken = [item for item in taken if item in set(sent)]
            if sent != taken:
                raise ValueError(f"stage {target} takes {kind} messages in another order than stage {stage} sends them")
