"""A traced run beside its prediction. Times of a shared machine prove nothing, so only what cannot move is asserted."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks, run_recipe

from megatron_ziya import config
from megatron_ziya.config import Checkpoint, Data, Log, Model, Optimizer, Parallel, Precision, Recipe, Run, Source
from megatron_ziya.parallel.slices import Times
from megatron_ziya.parallel.verify import planned, verify
from megatron_ziya.plan import commands
from megatron_ziya.plan.drawing import spans
from megatron_ziya.plan.trace import compare
from ziya_data.indexed.writer import IndexedDatasetWriter

MODEL = Model(vocabulary_size=96, hidden_size=32, intermediate_size=48, layers=4, heads=4, max_positions=16)
V = Parallel(pipeline=2, virtual=2, schedule="zb-v", layout=(1.5, 1.0, 1.0, 0.5), spread_head=True)


def recipe(directory: Path, parallel: Parallel, steps: int, paths: tuple[str, ...] = ()) -> Recipe:
    return Recipe(
        run=Run(directory=str(directory), steps=steps, device="cpu"),
        model=MODEL,
        parallel=parallel,
        data=Data(sequence_length=16, global_batch_size=6, sources=(Source("random", paths),)),
        optimizer=Optimizer(learning_rate=1e-3, schedule="constant", warmup=0.0),
        precision=Precision(weights="fp32"),
        checkpoint=Checkpoint(),
        log=Log(tensorboard=False, report=False, peak_tflops=1.0, trace=True),
    )


def test_a_run_is_traced_predicted_and_goes_on_in_another_layout(tmp_path, capsys):
    draw = np.random.default_rng(0)
    with IndexedDatasetWriter(tmp_path / "data", vocabulary_size=96) as writer:
        writer.add(draw.integers(3, 96, size=2000), np.full(100, 20))
    run = tmp_path / "run"
    first = recipe(run, V, 2, (str(tmp_path / "data"),))
    run_ranks(2, run_recipe, first)
    found = compare(run, first, MODEL.architecture())
    assert found.live == found.verdict.live  # what the executor held is what the verifier says
    assert [len(stage) for stage in found.measured] == [48, 48]  # F, B, W of two slices, S and T, six times
    assert all(a[1] <= b[0] for stage in found.measured for a, b in itertools.pairwise(stage))
    assert commands.plan(["--trace", str(run)]) == 0
    assert "equal" in capsys.readouterr().out and (run / "trace.png").read_bytes().startswith(b"\x89PNG")

    # a cut between attention and MLP leaves no mark on the checkpoint
    run_ranks(1, run_recipe, recipe(run, Parallel(), 4, (str(tmp_path / "data"),)))
    whole = tmp_path / "whole"
    run_ranks(1, run_recipe, recipe(whole, Parallel(), 4, (str(tmp_path / "data"),)))
    lines = [[json.loads(line)["loss"] for line in (r / "metrics.jsonl").open()] for r in (run, whole)]
    assert lines[0] == pytest.approx(lines[1], rel=1e-4) and len(lines[0]) == 4  # FP32 over four steps


@pytest.mark.parametrize("spread_head", [False, True])
@pytest.mark.parametrize(("name", "virtual"), [("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zb-v", 2)])
def test_times_and_delay_are_found_again_in_a_run_that_keeps_to_them(tmp_path, name, virtual, spread_head):
    """A trace made by the verifier itself with times nobody told `compare`."""
    parallel = Parallel(pipeline=2, virtual=virtual, schedule=name, spread_head=spread_head)
    r, a = recipe(tmp_path, parallel, 2), MODEL.architecture()
    schedule, _, _ = planned(parallel, a, 16, 6)
    slices = 2 * virtual
    weight = 0.7 if schedule.split else 0.0
    times = Times(tuple(1.0 + 0.1 * i for i in range(slices)), (1.3,) * slices, (weight,) * slices)
    if spread_head:
        times = times._replace(scores=(0.2, 0.3), scores_gradient=(0.5, 0.4))
    verdict = verify(schedule, times, delay=0.05)
    live = [0, 0]
    with (tmp_path / "trace.jsonl").open("w") as file:
        for stage, ended in enumerate(spans(schedule, times, verdict.starts)):
            for action, (start, end) in zip(schedule.actions[stage], ended, strict=True):
                live[stage] += {"F": 1, "B": 0 if schedule.split else -1, "W": -1}.get(action.kind, 0)
                row = {"rank": stage, "stage": stage, "start": start, "end": end, "live": live[stage]}
                file.write(json.dumps(row | action._asdict()) + "\n")
    found = compare(tmp_path, r, a)
    assert found.delay == pytest.approx(0.05)
    assert found.seconds[1] == pytest.approx(found.seconds[0])
    assert found.largest()[0] == pytest.approx(0.0, abs=1e-9)
    other = dataclasses.replace(r, parallel=Parallel(pipeline=2, schedule="gpipe"))
    with pytest.raises(ValueError, match="other actions"):
        compare(tmp_path, other, a)


def test_a_missing_trace_says_how_to_get_one(tmp_path):
    (tmp_path / "recipe.toml").write_text(config.to_toml(recipe(tmp_path, V, 2)))
    with pytest.raises(FileNotFoundError, match=r"log\.trace"):
        commands.plan(["--trace", str(tmp_path)])
    with pytest.raises(ValueError, match="which recipe"):
        commands.plan([])
