"""Pipeline schedules as data: pure functions that return, for each stage, the list of its actions in order.

The model is cut into slices, and a stage holds one or more of them, its chunks; which ones is part of the schedule.
`F` runs a slice forward on one micro-batch, `B` runs it backward. A schedule that splits the backward pass (zero
bubble, arXiv 2401.10241) has `B` work out the gradient of the input alone, which the stage before waits for, and `W`
the gradients of the weights, which nobody waits for. A schedule whose head is spread over the stages (`spread.py`) has
`S` and `T` on every stage: scores of the stage's share of the vocabulary, and what their gradients lead to. `verify.py`
plays a schedule through before anything runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from megatron_ziya.parallel.slices import Times


class Action(NamedTuple):
    kind: str
    """`F` forward, `B` backward, `W` gradients of the weights; `S` scores of the spread head, `T` their gradients."""
    micro_batch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}" + (f".{self.chunk}" if self.chunk else "")


class Message(NamedTuple):
    """A hidden state (`F`, `S`) or its gradient (`B`, `T`)."""

    kind: str
    micro_batch: int
    place: int
    """The slice whose `F` or `B` takes it, the stage whose `S` takes it, the stage whose `T` made it."""


@dataclass(frozen=True)
class Schedule:
    """The actions of each stage, and which slices it holds."""

    actions: Sequence[Sequence[Action]]
    placement: Sequence[Sequence[int]]
    """`placement[stage][chunk]` is a slice."""
    split: bool = False
    """The backward pass is split into `B` and `W`."""
    spread_head: bool = False
    """Each stage has a share of the head: `S` and `T` for every micro-batch."""

    @property
    def stages(self) -> int:
        return len(self.placement)

    @property
    def slices(self) -> int:
        return sum(map(len, self.placement))

    @cached_property
    def stage_of(self) -> dict[int, int]:
        """Slice -> the stage that holds it."""
        return {number: stage for stage, held in enumerate(self.placement) for number in held}

    def sends(self, stage: int, action: Action) -> list[Message]:
        """What an action makes for others; the last slice's hidden states go to every stage's share of the head."""
        kind, m = action.kind, action.micro_batch
        if kind == "T":
            return [Message("T", m, stage)]
        if kind in "SW":
            return []
        number = self.placement[stage][action.chunk]
        if kind == "F" and number == self.slices - 1:
            return [Message("S", m, other) for other in range(self.stages)] if self.spread_head else []
        taker = number + (1 if kind == "F" else -1)
        return [Message(kind, m, taker)] if taker >= 0 else []

    def takes(self, stage: int, action: Action) -> list[Message]:
        """What an action needs from others; the last slice's backward needs the share of every stage."""
        kind, m = action.kind, action.micro_batch
        if kind == "S":
            return [Message("S", m, stage)]
        if kind in "TW":
            return []
        number = self.placement[stage][action.chunk]
        if kind == "B" and number == self.slices - 1:
            return [Message("T", m, other) for other in range(self.stages)] if self.spread_head else []
        return [Message(kind, m, number)] if kind == "B" or number else []

    def source(self, message: Message) -> int:
        """The stage that a message comes from."""
        if message.kind in "ST":
            return message.place if message.kind == "T" else self.stage_of[self.slices - 1]
        return self.stage_of[message.place + (-1 if message.kind == "F" else 1)]

    def target(self, message: Message) -> int:
        """The stage that a message goes to."""
        if message.kind in "ST":
            return message.place if message.kind == "S" else self.stage_of[self.slices - 1]
        return self.stage_of[message.place]

    def line(self, source: int, target: int) -> list[Message]:
        """The messages from one stage to another, in the order in which they are sent."""
        made = [message for action in self.actions[source] for message in self.sends(source, action)]
        return [message for message in made if self.target(message) == target]


def duration(schedule: Schedule, times: Times, stage: int, action: Action) -> float:
    """Time of one action."""
    if action.kind in "ST":
        share = times.scores if action.kind == "S" else times.scores_gradient
        return share[stage] if share else 0.0
    number = schedule.placement[stage][action.chunk]
    if action.kind == "B":
        return times.backward[number] + (0.0 if schedule.split else times.weight[number])
    return (times.forward if action.kind == "F" else times.weight)[number]


def placement(name: str, stages: int, virtual: int) -> list[list[int]]:
    """The slices of each stage: one after another, round after round; or down and up again for `zb-v`."""
    if name == "zb-v":
        return [[stage, 2 * stages - 1 - stage] for stage in range(stages)]
    return [[chunk * stages + stage for chunk in range(virtual)] for stage in range(stages)]


def make(name: str, stages: int, micro_batches: int, virtual: int = 1, times: Times | None = None) -> Schedule:
    """The schedule called `name`; `times` of the slices guide the ones that are searched for (default: all equal).

    Raises ValueError when the numbers do not fit the schedule.
    """
    simple: dict[str, Callable[[int, int], list[list[Action]]]] = {
        "gpipe": gpipe, "1f1b": one_f_one_b, "zb-h1": zero_bubble_h1,
    }  # fmt: skip
    if name in simple:
        if virtual != 1:
            raise ValueError(f"parallel.schedule={name} with virtual={virtual}: it has one slice a stage; use 1")
        return Schedule(simple[name](stages, micro_batches), placement(name, stages, 1), split=name == "zb-h1")
    if name == "interleaved":
        return Schedule(interleaved(stages, micro_batches, virtual), placement(name, stages, virtual))
    if name == "zb-v":
        if virtual != 2:
            raise ValueError(f"parallel.schedule=zb-v with virtual={virtual}: it has two slices a stage; use 2")
        return zero_bubble_v(stages, micro_batches, times or Times.equal(2 * stages), 2 * stages)
    raise ValueError(f"parallel.schedule={name!r} is not known; use gpipe, 1f1b, interleaved, zb-h1 or zb-v")


def gpipe(stages: int, micro_batches: int) -> list[list[Action]]:
    """All forward, then all backward (arXiv 1811.06965): simple, and holds every micro-batch's activations."""
    forward = [Action("F", m) for m in range(micro_batches)]
    backward = [Action("B", m) for m in range(micro_batches)]
    return [forward + backward for _ in range(stages)]


def one_f_one_b(stages: int, micro_batches: int) -> list[list[Action]]:
    """One forward, one backward in turn (arXiv 2006.09503): stage s holds at most `stages - s` activations."""
    forward = [Action("F", m) for m in range(micro_batches)]
    backward = [Action("B", m) for m in range(micro_batches)]
    return [_weave(forward, backward, min(stages - stage - 1, micro_batches)) for stage in range(stages)]


def interleaved(stages: int, micro_batches: int, virtual: int) -> list[list[Action]]:
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


def zero_bubble_h1(stages: int, micro_batches: int) -> list[list[Action]]:
    """1F1B with stage s running `W` s micro-batches late (arXiv 2401.10241, section 2.2, ZB-H1).

    Every stage holds as much as 1F1B's first one, and the bubble is (p - 1)(F + B - W) instead of (p - 1)(F + B + W).
    """
    lists = []
    for stage, actions in enumerate(one_f_one_b(stages, micro_batches)):
        listed: list[Action] = []
        for action in actions:
            listed.append(action)
            if action.kind == "B" and action.micro_batch >= stage:
                listed.append(Action("W", action.micro_batch - stage))
        lists.append(listed + [Action("W", m) for m in range(max(0, micro_batches - stage), micro_batches)])
    return lists


def _weave(forward: Sequence[Action], backward: Sequence[Action], ahead: int) -> list[Action]:
    """`ahead` forwards, then one forward and one backward in turn, then the remaining backwards."""
    steady = [action for pair in zip(forward[ahead:], backward, strict=False) for action in pair]
    return [*forward[:ahead], *steady, *backward[len(forward) - ahead :]]


# --- V-shaped zero bubble: found by list scheduling -------------------------------------------------------------------


def zero_bubble_v(stages: int, micro_batches: int, times: Times, most_live: int, head_time: float = 0.0) -> Schedule:
    """Two slices a stage, down and up again (arXiv 2401.10241, section 6, ZB-V), in `most_live` activations a stage.

    The paper draws it for equal times; here a list scheduler plays the stages through with the times given and always
    takes what can start first. Which rule breaks its ties is tried out, the shortest result is taken; all of it is a
    pure function. `most_live` counts slices: `2 * stages` is what 1F1B holds on its first stage. Needs 2 or more.
    `head_time` passes between forward and backward of the last slice, while the stage does other things.
    """
    if most_live < 2:
        raise ValueError(f"zb-v needs room for 2 activations, not {most_live}")
    tried = [
        _VSearch(stages, micro_batches, times, most_live, head_time, late, patience).run()
        for late in (False, True)
        for patience in (0.01, 0.1, 0.25, 0.5)
    ]
    return min(tried, key=lambda found: found[0])[1]


class _VSearch:
    """One run of the list scheduler."""

    def __init__(
        self,
        stages: int,
        micro_batches: int,
        times: Times,
        most_live: int,
        head_time: float,
        late_first: bool,
        patience: float,
    ) -> None:
        """`late_first`: forwards of the second slice go before backwards. `patience`: share of a W's time that a stage
        waits for something better than a W."""
        self.micro_batches, self.most_live, self.patience = micro_batches, most_live, patience
        self.head_time = head_time
        self.times = {"F": times.forward, "B": times.backward, "W": times.weight}
        self.placement = placement("zb-v", stages, 2)
        self.slices = 2 * stages
        f1, b1, b0 = ("F", 1), ("B", 1), ("B", 0)
        self.order = [*([f1, b1, b0] if late_first else [b1, b0, f1]), ("F", 0)]
        self.next = [dict.fromkeys(self.order, 0) for _ in range(stages)]
        self.waiting: list[list[Action]] = [[] for _ in range(stages)]  # W that could run
        self.finished: dict[Message, float] = {}
        self.clock, self.live = [0.0] * stages, [0] * stages
        self.actions: list[list[Action]] = [[] for _ in range(stages)]

    def run(self) -> tuple[float, Schedule]:
        """Returns the length and the schedule."""
        stages = len(self.clock)
        choices = {stage: self._best(stage) for stage in range(stages)}
        for _ in range(3 * self.slices * self.micro_batches):
            known = [(choice[0], stage, choice[1]) for stage, choice in choices.items() if choice is not None]
            assert known, "one free place is kept for the second slice, so the oldest micro-batch always moves on"
            begin, stage, action = min(known, key=lambda c: c[:2])
            self._take(begin, stage, action)
            for touched in range(max(0, stage - 1), min(stages, stage + 2)):  # itself and its neighbours of the V
                choices[touched] = self._best(touched)
        return max(self.clock), Schedule(self.actions, self.placement, split=True)

    def _best(self, stage: int) -> tuple[float, Action] | None:
        """What this stage would do next, and when."""
        found: tuple[float, Action] | None = None
        for kind, chunk in self.order:
            action = Action(kind, self.next[stage][kind, chunk], chunk)
            ready = self._ready(stage, action)
            if ready is not None and (found is None or max(ready, self.clock[stage]) < found[0]):
                found = max(ready, self.clock[stage]), action
        if self.waiting[stage]:
            weight = self.waiting[stage][0]
            spare = self.patience * self.times["W"][self.placement[stage][weight.chunk]]
            if found is None or found[0] - self.clock[stage] >= spare:
                return self.clock[stage], weight
        return found

    def _ready(self, stage: int, action: Action) -> float | None:
        """When an action's needs are met; None when that is not known yet, or there is no room."""
        if action.micro_batch == self.micro_batches:
            return None
        number = self.placement[stage][action.chunk]
        if action.kind == "F":
            room = self.live[stage] + (2 if action.chunk == 0 else 1) <= self.most_live
            needs = [Message("F", action.micro_batch, number - 1)] if number else []
            if not room:
                return None
        else:
            needs = [Message("F", action.micro_batch, number)]
            needs += [Message("B", action.micro_batch, number + 1)] if number + 1 < self.slices else []
        times = [self.finished.get(need) for need in needs]
        pause = self.head_time if action.kind == "B" and number == self.slices - 1 else 0.0
        return None if None in times else max((t for t in times if t is not None), default=0.0) + pause

    def _take(self, begin: float, stage: int, action: Action) -> None:
        number = self.placement[stage][action.chunk]
        self.clock[stage] = begin + self.times[action.kind][number]
        self.actions[stage].append(action)
        if action.kind == "W":
            self.waiting[stage].pop(0)
            self.live[stage] -= 1
            return
        self.finished[Message(action.kind, action.micro_batch, number)] = self.clock[stage]
        self.next[stage][action.kind, action.chunk] += 1
        if action.kind == "F":
            self.live[stage] += 1
        else:
            self.waiting[stage].append(Action("W", action.micro_batch, action.chunk))
