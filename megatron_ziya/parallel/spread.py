"""Schedules whose head is spread over all stages (vocabulary parallelism, arXiv 2411.05288).

The head is one matrix that lies on one stage and keeps it longer than the others, and no cut into whole layers mends
that: at 13B it costs 0.6 of a layer. Spread, each stage has a share of the vocabulary, and for every micro-batch two
more actions: `S`, once the last slice has sent its hidden states to all stages, and `T`, once all stages have finished
`S`. The last slice's `B` needs the `T` of all stages. No stage waits for that round trip: forwards run some positions
earlier, so that other micro-batches fill the time; each position costs the activations of one more micro-batch.
"""

from collections.abc import Iterator, Sequence

from megatron_ziya.parallel.schedule import Action, Message, Schedule, duration, make, zero_bubble_v
from megatron_ziya.parallel.slices import Times

EARLIER = (0, 1, 2)
"""Positions by which forwards are moved (arXiv 2411.05288 needs 1 or 2, one for each time the stages meet)."""
WORTH = 0.001
"""Share of the step that must be gained for another micro-batch's activations."""


def spread(name: str, stages: int, micro_batches: int, virtual: int, times: Times) -> Schedule:
    """The schedule called `name` with `S` and `T` in it, and forwards moved by as many of `EARLIER` as are `WORTH` it.

    Raises ValueError when the numbers do not fit the schedule.
    """
    tried = []
    for earlier in EARLIER:
        plays = [
            _Play(base, times, micro_batches).run()
            for base in _bases(name, stages, micro_batches, virtual, times, earlier)
        ]
        tried.append(min(plays, key=lambda found: found[0]))
    shortest = min(length for length, _ in tried)
    return next(schedule for length, schedule in tried if length <= (1 + WORTH) * shortest)


def _bases(name: str, stages: int, micro_batches: int, virtual: int, times: Times, earlier: int) -> Iterator[Schedule]:
    """The schedule without `S` and `T`, its forwards moved."""
    if name == "zb-v":  # a search that is told how long the round trip takes: one or two forwards
        for pause in (times.forward[0], 2 * times.forward[0]):
            yield zero_bubble_v(stages, micro_batches, times, 2 * (stages + earlier), pause)
    else:
        base = make(name, stages, micro_batches, virtual, times)
        yield Schedule([shift(todo, earlier) for todo in base.actions], base.placement, base.split)


def shift(actions: Sequence[Action], earlier: int) -> list[Action]:
    """Each forward takes the place of the one `earlier` positions before it, the first ones go to the front."""
    forward = [action for action in actions if action.kind == "F"]
    later = iter(forward[earlier:])
    moved = (next(later, None) if action.kind == "F" else action for action in actions)
    return forward[:earlier] + [action for action in moved if action is not None]


class _Play:
    """List scheduling: a stage that is free runs the first of `T`, `S` and its next base action that can start."""

    def __init__(self, base: Schedule, times: Times, micro_batches: int) -> None:
        self.base, self.times, self.micro_batches = base, times, micro_batches
        self.actions: list[list[Action]] = [[] for _ in range(base.stages)]
        self.spread = Schedule(self.actions, base.placement, base.split, spread_head=True)
        self.hub = base.stage_of[base.slices - 1]
        self.order = [a.micro_batch for a in base.actions[self.hub]
                      if a.kind == "F" and base.placement[self.hub][a.chunk] == base.slices - 1]  # fmt: skip
        self.clock = [0.0] * base.stages
        self.done = [dict.fromkeys("ST", 0) | {"": 0} for _ in range(base.stages)]  # how many of each; "" is base
        self.made: dict[Message, float] = {}
        self.ended: list[list[float]] = [[] for _ in self.order]  # of the k-th S

    def run(self) -> tuple[float, Schedule]:
        """Returns the length and the schedule. Raises ValueError when the base cannot run."""
        stages = range(self.base.stages)
        total = sum(map(len, self.base.actions)) + 2 * self.base.stages * self.micro_batches
        choices = {stage: self._best(stage) for stage in stages}
        for _ in range(total):
            known = [(*choice[:2], stage, choice[2]) for stage, choice in choices.items() if choice is not None]
            if not known:
                raise ValueError("deadlock: no stage can run its next action")
            begin, _, stage, action = min(known, key=lambda found: found[:3])
            touched = self._take(begin, stage, action)
            choices |= {other: self._best(other) for other in (stages if len(touched) > 1 else {stage, *touched})}
        return max(self.clock), self.spread

    def _best(self, stage: int) -> tuple[float, int, Action] | None:
        """What a stage runs next: when, the rank of its kind, the action."""
        found = []
        for rank, kind in enumerate(("T", "S", "")):
            number, todo = self.done[stage][kind], self.base.actions[stage]
            if number == (len(self.order) if kind else len(todo)):
                continue
            action = Action(kind, self.order[number]) if kind else todo[number]
            needs = [self.made.get(message) for message in self.spread.takes(stage, action)]
            if kind == "T":
                ended = self.ended[number]
                needs = [max(ended) if len(ended) == self.base.stages else None]
            if None not in needs:
                found.append((max([self.clock[stage], *(t for t in needs if t is not None)]), rank, action))
        return min(found, key=lambda choice: choice[:2], default=None)

    def _take(self, begin: float, stage: int, action: Action) -> set[int]:
        """Run it. Returns the stages that may have something to do now."""
        self.actions[stage].append(action)
        kind = action.kind if action.kind in "ST" else ""
        number = self.done[stage][kind]
        self.done[stage][kind] += 1
        self.clock[stage] = begin + duration(self.base, self.times, stage, action)
        sent = self.spread.sends(stage, action)
        self.made |= dict.fromkeys(sent, self.clock[stage])
        if kind == "S":
            self.ended[number].append(self.clock[stage])
            if len(self.ended[number]) == self.base.stages:
                return set(range(self.base.stages))
        return {self.spread.target(message) for message in sent}
