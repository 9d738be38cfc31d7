"""Play a schedule through before it runs: prove that it can run, and predict its time and what it holds.

How messages travel is part of the proof. Each stage keeps receives posted for the next `ahead` messages of every line
(a line is one stage sending to another), in the order in which they are sent, and posts a further one each time it
takes one. With NCCL a send may block until its receive is posted; `verify` looks for the smallest `ahead` with which
the schedule runs to its end even if every send stops its whole stage until then, and the executor posts that many.

A spread head (`spread.py`) has one collective a micro-batch: `S` starts to gather three numbers a token from all stages
and `T` waits for them. Collectives match by order alone, so every stage must run its `S` in one order.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

from megatron_ziya.config import Architecture, Parallel
from megatron_ziya.parallel.schedule import Action, Message, Schedule, duration, make
from megatron_ziya.parallel.slices import Times, flops, halves
from megatron_ziya.parallel.spread import spread

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
    times = flops(a, sequence, halves(p, a.layers), p.recompute == "full", p.pipeline if p.spread_head else 0)
    schedule = (spread if p.spread_head else make)(p.schedule, p.pipeline, micro_batches, p.virtual, times)
    return schedule, times, verify(schedule, times)


def most_held(schedule: Schedule, sizes: Sequence[float] = ()) -> list[float]:
    """Most that each stage holds at once, `sizes` being what one micro-batch leaves in each slice (default: 1)."""
    most = []
    for stage, actions in enumerate(schedule.actions):
        held = highest = 0.0
        for action in actions:
            size = sizes[schedule.placement[stage][action.chunk]] if sizes else 1
            held += {"F": size, "B": 0 if schedule.split else -size, "W": -size}.get(action.kind, 0)
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
        self.finished: dict[tuple[int, Action], float] = {}
        self.sent: dict[Message, float] = {}
        self.under_way: list[deque[Message]] = [deque() for _ in stages]  # what each stage has made, not sent off yet
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
        todo, before = self.schedule.actions[stage], self._progress(stage)
        while self._send(stage) and len(self.starts[stage]) < len(todo):
            action = todo[len(self.starts[stage])]
            begin = self._ready(stage, action)
            if begin is None:
                break
            self._perform(stage, action, begin)
        return self._progress(stage) != before

    def _progress(self, stage: int) -> tuple[int, ...]:
        return len(self.starts[stage]), len(self.posted), len(self.sent)

    def _send(self, stage: int) -> bool:
        """Send off what this stage has made, one message after the other; False while one blocks."""
        queue = self.under_way[stage]
        while queue:
            self.sent.setdefault(queue[0], self.clock[stage])
            if self.blocking and queue[0] in self.number:
                if queue[0] not in self.posted:
                    return False
                self.clock[stage] = max(self.clock[stage], self.posted[queue[0]])
            queue.popleft()
        return True

    def _ready(self, stage: int, action: Action) -> float | None:
        """When an action can start; None while that cannot be told."""
        needs: list[float | None] = [self.clock[stage]]
        if action.kind in "BW":
            needs.append(self.finished.get((stage, action._replace(kind="F" if action.kind == "B" else "B"))))
        if action.kind == "T":
            for other in range(self.schedule.stages):
                ended = self.finished.get((other, action._replace(kind="S")))
                needs.append(ended if ended is None or other == stage else ended + self.delay)
        for message in self.schedule.takes(stage, action):
            sent = self.sent.get(message)
            if message in self.number:
                line, k = self.number[message]
                self._post(line, k + 1, self.clock[stage])
                sent = None if sent is None else max(sent, self.posted[message]) + self.delay
            needs.append(sent)
        return None if None in needs else max(t for t in needs if t is not None)

    def _perform(self, stage: int, action: Action, begin: float) -> None:
        self.starts[stage].append(begin)
        self.clock[stage] = begin + duration(self.schedule, self.times, stage, action)
        self.finished[stage, action] = self.clock[stage]
        for message in self.schedule.takes(stage, action):
            if message in self.number:
                line, _ = self.number[message]
                self.taken[line] += 1
                self._post(line, self.taken[line] + self.ahead, begin)
        self.under_way[stage].extend(self.schedule.sends(stage, action))

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
    head = {Action(kind, m) for kind in "ST" for m in range(micro_batches)} if schedule.spread_head else set()
    for stage, todo in enumerate(schedule.actions):
        chunks = range(len(schedule.placement[stage]))
        wanted = {Action(kind, m, c) for kind in kinds for m in range(micro_batches) for c in chunks} | head
        if len(todo) != len(wanted) or set(todo) != wanted:
            odd = sorted(map(str, wanted.symmetric_difference(todo))) or ["an action twice"]
            told = kinds + ("ST" if head else "")
            raise ValueError(f"stage {stage} must run each of {told} once for every micro-batch: {', '.join(odd)}")
    orders = {tuple(action.micro_batch for action in todo if action.kind == "S") for todo in schedule.actions}
    if len(orders) > 1:
        raise ValueError("every stage must run S in the same order of micro-batches: what S gathers matches by order")
