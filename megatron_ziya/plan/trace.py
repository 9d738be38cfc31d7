"""A real step beside its prediction: what `trace.jsonl` says, and what the verifier says with the times measured in it.

The prediction knows the mean time of each kind of action in each slice, the time a message takes, and the pause of the
program between two actions. Which action runs when, who waits for whom and what is held at once, it works out.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatron_ziya.config import Architecture, Recipe
from megatron_ziya.parallel.schedule import Action, Message, Schedule
from megatron_ziya.parallel.slices import Times
from megatron_ziya.parallel.verify import Verdict, planned, verify
from megatron_ziya.plan.drawing import draw_beside, spans

FILE = "trace.jsonl"


class Comparison(NamedTuple):
    """Times in seconds."""

    schedule: Schedule
    times: Times
    """Mean of each slice, measured; `weight` is 0 where the backward pass is not split."""
    delay: float
    """Of a message, median of those that were waited for."""
    measured: list[list[tuple[float, float]]]
    predicted: list[list[tuple[float, float]]]
    live: list[int]
    verdict: Verdict

    @property
    def seconds(self) -> tuple[float, float]:
        """Length of the step's pipeline: measured, predicted."""
        return max(end for stage in self.measured for _, end in stage), self.verdict.length

    def largest(self) -> tuple[float, str]:
        """Largest difference between the measured and the predicted start of an action, and which action."""
        found = [
            (abs(m[0] - p[0]), f"{self.schedule.actions[stage][k]} of stage {stage}")
            for stage in range(self.schedule.stages)
            for k, (m, p) in enumerate(zip(self.measured[stage], self.predicted[stage], strict=True))
        ]
        return max(found)

    def draw(self, path: Path) -> None:
        """Measured above, predicted below."""
        draw_beside(self.schedule, self.measured, self.predicted, path)


def compare(directory: Path, recipe: Recipe, a: Architecture) -> Comparison:
    """Lay the prediction over the trace of a run. Raises FileNotFoundError without a trace, ValueError for another's.

    Of several tensor- or data-parallel ranks the first of each stage counts.
    """
    path = directory / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; train with --log.trace true first")
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        rows[row["rank"]].append(row)
    by_stage = {}
    for rank in sorted(rows, reverse=True):
        by_stage[rows[rank][0]["stage"]] = rows[rank]
    micro_batches = 1 + max(row["micro_batch"] for row in by_stage[0])
    schedule, _, _ = planned(recipe.parallel, a, recipe.data.sequence_length, micro_batches)
    ran = [[Action(r["kind"], r["micro_batch"], r["chunk"]) for r in by_stage[stage]] for stage in sorted(by_stage)]
    if ran != [list(actions) for actions in schedule.actions]:
        raise ValueError(f"{path} has other actions than the schedule of {directory / 'recipe.toml'}; trace it again")
    measured = [[(r["start"], r["end"]) for r in by_stage[stage]] for stage in sorted(by_stage)]
    delay, pause = _between(schedule, measured)
    times = _times(schedule, measured, pause)
    verdict = verify(schedule, times, delay)
    live = [max(r["live"] for r in by_stage[stage]) for stage in sorted(by_stage)]
    return Comparison(schedule, times, delay, measured, spans(schedule, times, verdict.starts), live, verdict)


def _times(schedule: Schedule, measured: Sequence[Sequence[tuple[float, float]]], pause: float) -> Times:
    """Mean time of each kind in each slice, and the pause after it."""
    found: dict[tuple[str, int], list[float]] = defaultdict(lambda: [])
    for stage, actions in enumerate(schedule.actions):
        for action, (start, end) in zip(actions, measured[stage], strict=True):
            where = stage if action.kind in "ST" else schedule.placement[stage][action.chunk]
            found[action.kind, where].append(end - start + pause)
    means = {key: statistics.fmean(values) for key, values in found.items()}
    slices, stages = range(schedule.slices), range(schedule.stages if schedule.spread_head else 0)
    return Times(*(tuple(means.get((kind, number), 0.0) for number in slices) for kind in "FBW"),
                 *(tuple(means[kind, stage] for stage in stages) for kind in "ST"))  # fmt: skip


def _between(schedule: Schedule, measured: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Time of a message that was waited for, and of the program between two actions when nothing was waited for."""
    made: dict[Message, float] = {}
    gathered: dict[int, float] = defaultdict(float)  # micro-batch -> end of the last stage's S
    for stage, actions in enumerate(schedule.actions):
        for action, (_, end) in zip(actions, measured[stage], strict=True):
            made |= dict.fromkeys(schedule.sends(stage, action), end)
            if action.kind == "S":
                gathered[action.micro_batch] = max(gathered[action.micro_batch], end)
    waits, pauses = [], []
    for stage, actions in enumerate(schedule.actions):
        free = 0.0
        for action, (start, end) in zip(actions, measured[stage], strict=True):
            needs = [made[m] for m in schedule.takes(stage, action) if schedule.source(m) != stage]
            needs += [gathered[action.micro_batch]] if action.kind == "T" else []
            if max(needs, default=0.0) > free:
                waits.append(max(0.0, start - max(needs)))
            else:
                pauses.append(start - free)
            free = end
    return statistics.median(waits or [0.0]), statistics.median(pauses or [0.0])
