"""Which documents were in step N: from a run directory or a recipe, without the model.

A batch is a pure function of (recipe, seed, step), so the recipe and the datasets are enough. If the mix was changed on
the way, the newest checkpoint's history tells which mix gave the step.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .history import History, mix_at
from .mix import Mix, Origin, Source


@dataclass(frozen=True)
class Plan:
    """What a training recipe says about its data. The defaults are those of the recipe."""

    sources: tuple[Source, ...]
    sequence_length: int = 4096
    global_batch_size: int = 256
    pad_id: int = 0
    steps: int = 100
    seed: int = 1234
    cache: str = ""
    ramp_up_start: int = 0
    ramp_up_increment: int = 0
    ramp_up_steps: int = 0

    def rows(self, step: int) -> int:
        """Sequences of `step` (from 0): the batch may grow in equal increments over the first steps."""
        if step >= self.ramp_up_steps or not self.ramp_up_start:
            return self.global_batch_size
        increment = self.ramp_up_increment or self.ramp_up_start
        increments = (self.global_batch_size - self.ramp_up_start) // increment
        return self.ramp_up_start + increment * (step * increments // self.ramp_up_steps)

    def rows_before(self, step: int) -> int:
        """Sequences of all steps before `step`: the number of its first sample."""
        ramp = min(step, self.ramp_up_steps) if self.ramp_up_start else 0
        return sum(map(self.rows, range(ramp))) + self.global_batch_size * (step - ramp)

    def mix(self, cache: str = "") -> Mix:
        """Raises what Mix raises."""
        samples = self.rows_before(self.steps)
        folder = cache or self.cache or None
        return Mix(self.sources, self.sequence_length, samples, self.seed, self.pad_id, cache=folder)


def plan_of(recipe: Mapping[str, Any]) -> Plan:
    """The data's part of a recipe's tables. Raises ValueError for a source that Mix would not understand."""
    data, run = recipe.get("data", {}), recipe.get("run", {})
    known = {field.name for field in dataclasses.fields(Source)}
    sources = []
    for given in data.get("sources", ()):
        if unknown := sorted(set(given) - known):
            raise ValueError(f"data.sources has an unknown key {unknown[0]}; known keys: {', '.join(sorted(known))}")
        paths = given.get("paths", ())
        named = {"name": "", **given, "paths": (paths,) if isinstance(paths, str) else tuple(paths)}
        sources.append(Source(**named))
    ours = {field.name for field in dataclasses.fields(Plan)} - {"sources"}
    numbers = {name: value for table in (data, run) for name, value in table.items() if name in ours}
    return Plan(tuple(sources), **numbers)


def load(path: Path) -> tuple[Plan, History]:
    """Of a recipe, or of a run directory with the history in its newest checkpoint ([] if there is none).

    Raises FileNotFoundError, or ValueError for a file that is no TOML.
    """
    recipe = path / "recipe.toml" if path.is_dir() else path
    if not recipe.is_file():
        raise FileNotFoundError(f"{recipe} not found; give a run directory or a recipe")
    try:
        plan = plan_of(tomllib.loads(recipe.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{recipe} is not valid TOML: {error}") from error
    manifests = path.glob("checkpoints/step_*/manifest.json") if path.is_dir() else ()
    by_step = {int(m.parent.name.removeprefix("step_")): m for m in manifests if m.parent.name[5:].isdigit()}
    history = json.loads(by_step[max(by_step)].read_bytes()).get("mix", []) if by_step else []
    return plan, history


def trace(path: Path, step: int) -> list[list[Origin]]:
    """Where the tokens of each row of step `step` (from 1, as the metrics count) come from.

    Raises ValueError for a step outside the run, and what `load` and Mix raise.
    """
    plan, history = load(path)
    if not 1 <= step <= plan.steps:
        raise ValueError(f"step={step} is not in the run; it has steps 1 to {plan.steps}")
    first = plan.rows_before(step - 1)
    mixes: dict[int, Mix] = {}
    rows = []
    for sample in range(first, first + plan.rows(step - 1)):
        entry = sum(change["first"] <= sample for change in history)
        if entry not in mixes:
            mixes[entry] = mix_at(history, sample, plan.pad_id) if history else plan.mix()
        rows.append(mixes[entry].origins(sample))
    return rows
