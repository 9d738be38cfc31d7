import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_ziya import config
from ziya_data.indexed.history import continued
from ziya_data.indexed.mix import Mix, Source
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.trace import Plan, load, trace


@pytest.fixture
def run(write: Callable[..., str], tmp_path: Path) -> Path:
    a, b = (write([[100 * k + d] * (d + 2) for d in range(40)], name=f"d{k}") for k in range(2))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.toml").write_text(
        f"""
[run]
steps = 20
seed = 9
[data]
sequence_length = 16
global_batch_size = 4
[[data.sources]]
name = "a"
paths = ["{a}"]
weight = 3.0
[[data.sources]]
name = "b"
paths = ["{b}"]
packing = "documents"
""",
        encoding="utf-8",
    )
    return folder


def tokens_of(rows: list) -> list[list[int]]:
    return [
        [int(t) for o in row for t in IndexedDataset(o.path)[o.document][o.first : o.first + o.tokens]] for row in rows
    ]


def test_a_trace_is_the_rows_of_the_step(run: Path) -> None:
    plan, _ = load(run)
    mix = Mix(plan.sources, 16, 80, 9, 0)
    for step in (1, 7, 20):
        samples = [mix[i] for i in range(4 * (step - 1), 4 * step)]
        rows = trace(run, step)
        assert [row[0].source for row in rows] == [plan.sources[sample.source].name for sample in samples]
        for found, sample in zip(tokens_of(rows), samples, strict=True):
            assert sample.tokens[: len(found)].tolist() == found
            assert np.all(sample.tokens[len(found) :] == 0)
    assert trace(run / "recipe.toml", 7) == trace(run, 7)


def test_a_changed_mix_is_traced_by_the_checkpoints_history(run: Path) -> None:
    plan, _ = load(run)
    options = (16, 80, 9, 0)
    history = continued([], 0, plan.sources[:1], *options).history
    mix = continued(history, 30, plan.sources, *options)
    history = mix.history
    for step, known in ((5, history[:1]), (12, history)):  # the newest counts
        folder = run / "checkpoints" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"mix": known}))
    (run / "checkpoints" / "step_13.tmp").mkdir()
    before = trace(run, 8)  # samples 28 to 31: two of each mix
    assert [row[0].source for row in before][:2] == ["a", "a"]
    first = Mix(plan.sources[:1], *options)
    rows = [*(first[i] for i in (28, 29)), *(mix[i] for i in (30, 31))]
    for found, sample in zip(tokens_of(before), rows, strict=True):
        assert sample.tokens[: len(found)].tolist() == found


def test_what_cannot_be_traced_is_told(run: Path, tmp_path: Path) -> None:
    for step in (0, 21):
        with pytest.raises(ValueError, match="it has steps 1 to 20"):
            trace(run, step)
    with pytest.raises(FileNotFoundError, match="give a run directory or a recipe"):
        trace(tmp_path / "nowhere", 1)
    bad = tmp_path / "bad.toml"
    bad.write_text("[[data.sources]]\nname = 'a'\nwieght = 3")
    with pytest.raises(ValueError, match="unknown key wieght"):
        load(bad)
    bad.write_text("[")
    with pytest.raises(ValueError, match="not valid TOML"):
        load(bad)


def test_the_defaults_are_the_trainers() -> None:
    """ziya_data never imports the trainer, so the defaults stand twice."""
    plan, recipe = Plan(()), config.Recipe()
    told = dataclasses.asdict(plan)
    for name in set(told) - {"sources", "steps", "seed"}:
        assert told[name] == getattr(recipe.data, name)
    assert (plan.steps, plan.seed) == (recipe.run.steps, recipe.run.seed)
    for ramp in ((0, 0, 0), (2, 0, 5), (4, 2, 7), (2, 6, 3)):
        knobs = dict(zip(("ramp_up_start", "ramp_up_increment", "ramp_up_steps"), ramp, strict=True))
        for step in range(12):
            ours, data = Plan((), global_batch_size=8, **knobs), config.Data(global_batch_size=8, **knobs)
            assert (ours.rows(step), ours.rows_before(step)) == (data.rows(step), data.rows_before(step))


def test_the_knobs_of_a_source_are_the_trainers() -> None:
    ours = {field.name: field.default for field in dataclasses.fields(Source)}
    for field in dataclasses.fields(config.Source):
        assert field.name in ours
        if field.name not in ("name", "paths"):
            assert ours[field.name] == field.default
