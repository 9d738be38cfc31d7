"""Whole runs: FP16 with its loss scale, a run that breaks down, the batch ramp-up, and what resume keeps of each."""

import dataclasses
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks, run_recipe

from megatron_ziya import batches, config, faults, train
from megatron_ziya.checkpoint.distributed import Reader
from megatron_ziya.config import Checkpoint, Data, Log, Model, Optimizer, Parallel, Precision, Recipe, Run, Source
from megatron_ziya.parallel.mesh import Mesh
from ziya_data.indexed.writer import IndexedDatasetWriter

MODEL = Model(vocabulary_size=96, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2, max_positions=16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    prefix = tmp_path_factory.mktemp("index") / "random"
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 40, size=200)
    with IndexedDatasetWriter(prefix, vocabulary_size=96) as writer:
        writer.add(draw.integers(3, 96, size=int(lengths.sum())), lengths)
    return str(prefix)


def recipe(directory: Path, dataset: str, steps: int, **sections) -> Recipe:
    base = Recipe(
        run=Run(directory=str(directory), steps=steps, device="cpu"),
        model=MODEL,
        parallel=Parallel(bucket_mib=0.01),
        data=Data(sequence_length=16, global_batch_size=12, sources=(Source("random", (dataset,)),)),
        optimizer=Optimizer(learning_rate=1e-2, schedule="constant"),
        precision=Precision(weights="fp32"),
        checkpoint=Checkpoint(every=0),
        log=Log(tensorboard=False, report=False, peak_tflops=1.0),
    )
    new = {name: dataclasses.replace(getattr(base, name), **knobs) for name, knobs in sections.items()}
    return dataclasses.replace(base, **new)


def rows(directory: Path, key: str) -> list[float]:
    return [json.loads(line)[key] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_fp16_finds_its_scale_and_resumes_to_the_bit(tmp_path, dataset):
    fp16 = {"weights": "fp16", "loss_scale": 2.0**28, "loss_scale_window": 3}
    layout = {"tensor": 2}
    run_ranks(4, run_recipe, recipe(tmp_path / "whole", dataset, 16, precision=fp16, parallel=layout))
    for steps in (2, 9, 16):  # the first stop is amid the overflows
        run_ranks(4, run_recipe, recipe(tmp_path / "parts", dataset, steps, precision=fp16, parallel=layout))
    for key in ("loss", "loss_scale", "skipped"):
        assert rows(tmp_path / "parts", key) == rows(tmp_path / "whole", key)
    scales, skipped = rows(tmp_path / "whole", "loss_scale"), rows(tmp_path / "whole", "skipped")
    assert skipped[1] == 2 and scales[1] == 2.0**26, "two overflows, two halvings"
    assert any(b == 2 * a for a, b in pairwise(scales)), "doubled after good steps"
    one, two = Reader(tmp_path / "whole/checkpoints/step_000016"), Reader(tmp_path / "parts/checkpoints/step_000016")
    for kind, name in one.segments:
        assert torch.equal(one.read(name, kind), two.read(name, kind)), (kind, name)


def test_fp16_follows_fp32(tmp_path, dataset):
    run_ranks(1, run_recipe, recipe(tmp_path / "fp32", dataset, 10))
    run_ranks(
        1, run_recipe, recipe(tmp_path / "fp16", dataset, 10, precision={"weights": "fp16", "loss_scale": 1024.0})
    )
    assert rows(tmp_path / "fp16", "skipped")[-1] == 0
    # 11 bits a rounding, some tens of roundings a step
    assert rows(tmp_path / "fp16", "loss") == pytest.approx(rows(tmp_path / "fp32", "loss"), rel=3e-3)


def test_a_run_that_breaks_down_skips_counts_and_stops(tmp_path, dataset, capsys):
    broken = recipe(
        tmp_path / "run", dataset, 50, run={"stop_after": 3}, optimizer={"learning_rate": 1e38, "minimum": 0.0}
    )
    (tmp_path / "recipe.toml").write_text(config.to_toml(broken))
    assert train.main([str(tmp_path / "recipe.toml")]) == faults.EXIT_LOST
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "train: error: 3 steps in a row had a loss or gradient that is not finite; "
        "lower optimizer.learning_rate or go back to an earlier checkpoint"
    ]
    assert "loss nan, update skipped (2 in all)" in said.out or "update skipped (2 in all)" in said.out


RAMP = {"ramp_up_start": 4, "ramp_up_increment": 4, "ramp_up_steps": 5}


def test_ramp_up_is_a_pure_function_of_the_step(tmp_path, dataset):
    data = recipe(tmp_path, dataset, 9, data=RAMP).data
    sizes = [data.rows(step) for step in range(9)]
    assert sizes == [4, 4, 4, 8, 8, 12, 12, 12, 12]
    assert [data.rows_before(step) for step in range(10)] == [sum(sizes[:step]) for step in range(10)]
    whole = recipe(tmp_path, dataset, 9, data=RAMP)
    mix = batches.open_mix(whole, MODEL.architecture())
    assert len(mix) == sum(sizes)
    seen = [batch.tokens for step in range(9) for batch in batches.read_step(mix, step, data, Mesh())[0]]
    assert len(seen) == len(mix), "no sample is left out or read twice"
    for number, tokens in enumerate(seen):
        assert tokens[0].tolist() == mix[number].tokens[:-1].tolist()


def test_ramp_up_resumes_to_the_bit(tmp_path, dataset):
    for directory, stops in (("whole", (7,)), ("parts", (2, 4, 7))):
        for steps in stops:
            run_ranks(2, run_recipe, recipe(tmp_path / directory, dataset, steps, data=RAMP, parallel={"pipeline": 2}))
    assert rows(tmp_path / "parts", "loss") == rows(tmp_path / "whole", "loss")
    assert rows(tmp_path / "whole", "tokens") == [16 * n for n in (4, 8, 12, 20, 28, 40, 52)]


MISTAKES = [
    ({"data": {"ramp_up_start": 4}}, "go together; set both or neither"),
    ({"data": {"ramp_up_start": 5, "ramp_up_steps": 3}}, "use an increment that divides 7"),
    ({"parallel": {"recompute_layers": 1}}, "does nothing with parallel.recompute=none"),
    ({"parallel": {"invariant": True}, "run": {"threads": 2}}, "use threads=1"),
    ({"optimizer": {"warmup": 0.5, "decay": 0.6}}, "must be 1 or less"),
    ({"precision": {"loss_scale": 0.5}}, "must be 1 or more"),
    ({"run": {"stop_after": 0}}, "must be 1 or more"),
]


@pytest.mark.parametrize(("sections", "told"), MISTAKES)
def test_mistakes_are_told(tmp_path, dataset, sections, told):
    with pytest.raises(ValueError, match=told):
        train.check(recipe(tmp_path, dataset, 3, **sections), 1)


def test_a_used_directory_is_not_overwritten(tmp_path, dataset):
    done = recipe(tmp_path, dataset, 1)
    run_ranks(1, run_recipe, done)
    anew = dataclasses.replace(done, checkpoint=Checkpoint(resume=False))
    with pytest.raises(ValueError, match=r"step_000001 is there and checkpoint.resume=false would overwrite it"):
        train.check(anew, 1)


def test_a_stopped_run_saves_its_step_and_goes_on_to_the_bit(tmp_path, dataset):
    """SIGTERM to `ziya train`, on two processes: the step that runs is finished and saved, no process is left."""
    whole, parts = recipe(tmp_path / "whole", dataset, 60), recipe(tmp_path / "parts", dataset, 60)
    run_ranks(2, run_recipe, whole)
    (tmp_path / "recipe.toml").write_text(config.to_toml(parts))
    command = [sys.executable, "-m", "megatron_ziya.cli", "train", str(tmp_path / "recipe.toml"), "--processes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if " step  3/60" in line:
                process.terminate()
                break
        printed = process.stdout.read()
        assert process.wait(60) == train.EXIT_STOPPED
    assert "the same command goes on from there" in printed
    assert "Traceback" not in printed
    stopped = len(rows(tmp_path / "parts", "loss"))
    assert 3 <= stopped < 60
    assert Reader(tmp_path / f"parts/checkpoints/step_{stopped:06d}").step == stopped
    run_ranks(2, run_recipe, parts)
    assert rows(tmp_path / "parts", "loss") == rows(tmp_path / "whole", "loss")


def test_a_deterministic_run_repeats_to_the_bit(tmp_path, dataset, monkeypatch):
    """The knob is in force while steps run, no operation of ours lacks a deterministic form, and bits repeat."""
    step, seen = train.train_step, []

    def watched(*arguments):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return step(*arguments)

    monkeypatch.setattr(train, "train_step", watched)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        for name in ("one", "two"):
            wanted = recipe(tmp_path / name, dataset, 3, run={"deterministic": True}, precision={"weights": "bf16"})
            (tmp_path / "recipe.toml").write_text(config.to_toml(wanted))
            assert train.main([str(tmp_path / "recipe.toml")]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [True] * 6
    one, two = (Reader(tmp_path / name / "checkpoints/step_000003") for name in ("one", "two"))
    for kind, name in one.segments:
        assert torch.equal(one.read(name, kind), two.read(name, kind)), (kind, name)


@pytest.mark.slow
def test_compiled_kernels_train_like_plain_ones_in_every_layout(tmp_path, dataset):
    """The ranks compile at once and share inductor's cache; differences are those of FP32 sums over four steps."""
    compiled = pytest.importorskip("ziya_kernels.compiled")
    try:
        compiled.require()
    except ValueError as error:
        pytest.skip(str(error))
    for name, ranks, parallel in (("tp", 2, {"tensor": 2}), ("pp", 2, {"pipeline": 2}), ("dp", 2, {})):
        for kernels in ("torch", "compiled"):
            knobs = {"weights": "fp32", "kernels": kernels}
            wanted = recipe(tmp_path / name / kernels, dataset, 4, parallel=parallel, precision=knobs)
            run_ranks(ranks, run_recipe, wanted, timeout=300)
        plain, made = (rows(tmp_path / name / kernels, "loss") for kernels in ("torch", "compiled"))
        assert made == pytest.approx(plain, rel=1e-5)
    assert "kernels in" in (tmp_path / "tp/compiled/logs/rank_1.log").read_text()
