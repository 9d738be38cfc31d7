"""Play a schedule through before it runs: prove that it can run, and predict its time and what it holds.

How messages travel is part of the proof. Each stage keeps receives posted for the next `ahead` messages of every line
(a line is one stage sending to another), in the order in which they are sent, and posts a further one each time it
takes one. With NCCL a send may block until its receive is posted; `verify` looks for the smallest `ahead` with which
the schedule runs to its end even if every send stops its whole stage until then, and the executor posts that many.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from megatron_ziya.config import Architecture, Parallel
from megatron_ziya.parallel.schedule import Action, Message, Schedule, make
from megatron_ziya.parallel.slices import Times, flops, halves

Line = tuple[int, int]
"""(sending stage, taking stage)."""


class Verdict(NamedTuple):
    """What `verify` found, in the units of the times it was given."""

    length: float
    bubble: float
    """Share of the stages' time in which they wait."""
    live: list[int]
    """Most activations held at once, per stage, in micro-batches of a slice. Held from F to B, or to W if split."""
    starts: list[list[float]]
    """Start of each action, per stage."""
    ahead: int
    """Receives to keep posted per line."""


def verify(schedule: Schedule, times: Times | None = None, delay: float = 0.0, ahead: int | None = None) -> Verdict:
    """Prove a schedule and predict it with the given times of each slice (default: all 1) and delay of a message.

    Raises ValueError when an action is missing or doubled, when a backward comes before its forward or W before B,
    and when the stages would wait for each other for ever: with sends that return at once, or, `ahead` receives
    posted, with sends that block until received. `ahead=None` finds the smallest number that does not deadlock.
    """
    _complete(schedule)
    times = times or Times.equal(schedule.slices)
    everything = max(map(len, schedule.actions))
    _Play(schedule, times, delay, everything, blocking=False).run()  # the needs alone, before any sending is looked at
    for posted in range(1, everything + 1) if ahead is None else [ahead]:
        try:
            _Play(schedule, times, delay, posted, blocking=True).run()
        except ValueError:
            if posted in (everything, ahead):
                raise
        else:
            return _verdict(schedule, times, _Play(schedule, times, delay, posted, blocking=False))
    raise AssertionError("with everything posted no send blocks")


def planned(p: Parallel, a: Architecture, sequence: int, micro_batches: int) -> tuple[Schedule, Times, Verdict]:
    """The schedule of a recipe, with the FLOPs of its slices (`slices.flops`) as times, and the proof that it runs."""
    times = flops(a, sequence, halves(p, a.layers), p.recompute == "full")
    schedule = make(p.schedule, p.pipeline, micro_batches, p.virtual, times)
    return schedule, times, verify(schedule, times)


def duration(schedule: Schedule, times: Times, stage: int, action: Action) -> float:
    """Time of one action."""
    number = schedule.placement[stage][action.chunk]
    if action.kind == "B":
        return times.backward[number] + (0.0 if schedule.split else times.weight[number])
    return (times.forward if action.kind == "F" else times.weight)[number]


def most_held(schedule: Schedule, sizes: Sequence[float] = ()) -> list[float]:
    """Most that each stage holds at once, `sizes` being what one micro-batch leaves in each slice (default: 1)."""
    most = []
    for stage, actions in enumerate(schedule.actions):
        held = highest = 0.0
        for action in actions:
            size = sizes[schedule.placement[stage][action.chunk]] if sizes else 1
            held += {"F": size, "B": 0 if schedule.split else -size, "W": -size}[action.kind]
            highest = max(highest, held)
        most.append(highest)
    return most


def _verdict(schedule: Schedule, times: Times, play: "_Play") -> Verdict:
    play.run()
    length = max(play.clock)
    busy = sum(
        duration(schedule, times, stage, action) for stage, todo in enumerate(schedule.actions) for action in todo
    )
    bubble = 1 - busy / (length * schedule.stages)
    return Verdict(length, bubble, [round(most) for most in most_held(schedule)], play.starts, play.ahead)


class _Play:
    """One run through a schedule. Order alone decides whether it ends, times only how long it takes."""

    def __init__(self, schedule: Schedule, times: Times, delay: float, ahead: int, blocking: bool) -> None:
        self.schedule, self.times, self.delay, self.ahead, self.blocking = schedule, times, delay, ahead, blocking
        stages = range(schedule.stages)
        self.clock = [0.0] * schedule.stages
        self.starts: list[list[float]] = [[] for _ in stages]
        self.finished: dict[Message, float] = {}  # what is worked out, by the action and slice that did it
        self.sent: dict[Message, float] = {}
        self.under_way: list[Message | None] = [None] * schedule.stages  # the last send of each stage
        self.lines = {(a, b): schedule.line(a, b) for a in stages for b in stages if a != b}
        self.number = {message: (line, k) for line, sent in self.lines.items() for k, message in enumerate(sent)}
        self.taken: dict[Line, int] = defaultdict(int)
        self.posted: dict[Message, float] = {}
        self.posts: dict[Line, int] = defaultdict(int)
        for line in self.lines:
            self._post(line, ahead, 0.0)

    def run(self) -> None:
        """Raises ValueError when it does not come to its end."""
        while any(len(done) < len(todo) for done, todo in zip(self.starts, self.schedule.actions, strict=True)):
            if not any([self._advance(stage) for stage in range(self.schedule.stages)]):
                left = zip(self.starts, self.schedule.actions, strict=True)
                waiting = [f"stage {s} at {t[len(d)]}" for s, (d, t) in enumerate(left) if len(d) < len(t)]
                how = f" (sends block until received, {self.ahead} receives posted ahead)" if self.blocking else ""
                raise ValueError(f"deadlock: {', '.join(waiting)} wait for each other{how}")

    def _advance(self, stage: int) -> bool:
        """Run what this stage can run; False if that is nothing."""
        todo, before = self.schedule.actions[stage], (len(self.starts[stage]), len(self.posted))
        while len(self.starts[stage]) < len(todo):
            action = todo[len(self.starts[stage])]
            begin = self._ready(stage, action)
            if begin is None:
                break
            self._perform(stage, action, begin)
        return (len(self.starts[stage]), len(self.posted)) != before

    def _ready(self, stage: int, action: Action) -> float | None:
        """When an action can start; None while that cannot be told."""
        needs: list[float | None] = [self.clock[stage]]
        last = self.under_way[stage]
        if self.blocking and last is not None:
            if last not in self.posted:
                return None
            needs.append(self.posted[last])
        number = self.schedule.placement[stage][action.chunk]
        if action.kind != "F":
            needs.append(self.finished.get(Message("F" if action.kind == "B" else "B", action.micro_batch, number)))
        message = self.schedule.takes(stage, action)
        if message is not None and message in self.number:
            line, k = self.number[message]
            self._post(line, k + 1, self.clock[stage])
            sent = self.sent.get(message)
            needs.append(None if sent is None else max(sent, self.posted[message]) + self.delay)
        elif message is not None:
            step = -1 if action.kind == "F" else 1
            needs.append(self.finished.get(message._replace(slice=number + step)))
        return None if None in needs else max(t for t in needs if t is not None)

    def _perform(self, stage: int, action: Action, begin: float) -> None:
        self.starts[stage].append(begin)
        self.clock[stage] = begin + duration(self.schedule, self.times, stage, action)
        number = self.schedule.placement[stage][action.chunk]
        self.finished[Message(action.kind, action.micro_batch, number)] = self.clock[stage]
        message = self.schedule.takes(stage, action)
        if message is not None and message in self.number:
            line, _ = self.number[message]
            self.taken[line] += 1
            self._post(line, self.taken[line] + self.ahead, begin)
        message = self.schedule.sends(stage, action)
        self.under_way[stage] = None
        if message is not None and message in self.number:
            self.sent[message] = self.clock[stage]
            self.under_way[stage] = message

    def _post(self, line: Line, upto: int, time: float) -> None:
        for message in self.lines[line][self.posts[line] : upto]:
            self.posted[message] = time
            self.posts[line] += 1


def _complete(schedule: Schedule) -> None:
    held = sorted(number for numbers in schedule.placement for number in numbers)
    if held != list(range(len(held))) or len(schedule.actions) != schedule.stages:
        raise ValueError(f"every slice must lie on one stage; the stages hold {schedule.placement}")
    micro_batches = 1 + max(action.micro_batch for todo in schedule.actions for action in todo)
    kinds = "FBW" if schedule.split else "FB"
    for stage, todo in enumerate(schedule.actions):
        chunks = range(len(schedule.placement[stage]))
        wanted = {Action(kind, m, c) for kind in kinds for m in range(micro_batches) for c in chunks}
        if len(todo) != len(wanted) or set(todo) != wanted:
            odd = sorted(map(str, wanted.symmetric_difference(todo))) or ["an action twice"]
            raise ValueError(f"stage {stage} must run each of {kinds} once for every micro-batch: {', '.join(odd)}")
