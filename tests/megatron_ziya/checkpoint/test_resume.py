"""A run that is stopped and goes on: to the bit on the same layout, to rounding on any other."""

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks, run_recipe

from megatron_ziya import config, train
from megatron_ziya.checkpoint import distributed as checkpoint
from megatron_ziya.checkpoint.distributed import Reader
from megatron_ziya.config import Checkpoint, Data, Log, Model, Optimizer, Parallel, Precision, Recipe, Run, Source
from ziya_data.indexed.writer import IndexedDatasetWriter

MODEL = Model(
    vocabulary_size=300, hidden_size=32, intermediate_size=48, layers=4, heads=4, kv_heads=2, max_positions=16
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    prefix = tmp_path_factory.mktemp("index") / "random"
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 40, size=200)
    with IndexedDatasetWriter(prefix, vocabulary_size=96) as writer:
        writer.add(draw.integers(3, 96, size=int(lengths.sum())), lengths)
    return str(prefix)


def recipe(directory: Path, dataset: str, steps: int, weights: str, every: int = 0, **parallel) -> Recipe:
    return Recipe(
        run=Run(directory=str(directory), steps=steps, device="cpu"),
        model=MODEL,
        parallel=Parallel(bucket_mib=0.01, **parallel),
        data=Data(sequence_length=16, global_batch_size=12, sources=(Source("random", (dataset,)),)),
        optimizer=Optimizer(learning_rate=1e-2, schedule="constant"),
        precision=Precision(weights=weights),
        checkpoint=Checkpoint(every=every),
        log=Log(tensorboard=False, report=False, peak_tflops=1.0),
    )


def losses(directory: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_the_same_layout_goes_on_to_the_bit(tmp_path, dataset, weights):
    layout = {"tensor": 2, "pipeline": 2}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run_ranks(4, run_recipe, recipe(whole, dataset, 6, weights, **layout))
    run_ranks(4, run_recipe, recipe(halves, dataset, 3, weights, **layout))
    # a run killed after its checkpoint has lines that the resumed one trains again
    with (halves / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 0.0}\n{"step": 5, "lo')
    run_ranks(4, run_recipe, recipe(halves, dataset, 6, weights, **layout))
    assert losses(halves) == losses(whole)
    one, two = Reader(whole / "checkpoints/step_000006"), Reader(halves / "checkpoints/step_000006")
    for kind, name in one.segments:
        assert torch.equal(one.read(name, kind), two.read(name, kind)), (kind, name)


LAYOUTS = [
    (1, {}),
    (3, {}),
    (2, {"tensor": 2, "sequence": False}),
    (4, {"tensor": 2, "pipeline": 2, "spread_head": True}),
    (4, {"pipeline": 2}),
    (3, {"pipeline": 3, "spread_head": True}),
    (8, {"tensor": 2, "pipeline": 2}),
]


def test_any_layout_goes_on_from_any_other(tmp_path, dataset):
    """One layout a step; FP64 so that nothing but a mistake can show."""
    alone = tmp_path / "alone"
    run_ranks(1, run_recipe, recipe(alone, dataset, len(LAYOUTS), "fp64"))
    for step, (ranks, layout) in enumerate(LAYOUTS, 1):
        run_ranks(ranks, run_recipe, recipe(tmp_path / "moving", dataset, step, "fp64", **layout))
    assert losses(tmp_path / "moving") == pytest.approx(losses(alone), rel=1e-12)
    one, two = (Reader(tmp_path / name / f"checkpoints/step_{len(LAYOUTS):06d}") for name in ("alone", "moving"))
    for kind, name in one.segments:
        torch.testing.assert_close(two.read(name, kind), one.read(name, kind), rtol=1e-10, atol=1e-14)


def test_bf16_masters_survive_a_change_of_layout(tmp_path, dataset):
    directory = tmp_path / "run"
    run_ranks(2, run_recipe, recipe(directory, dataset, 2, "bf16", every=2, tensor=2))
    before = Reader(directory / "checkpoints/step_000002")
    assert before.kinds() == {"weight", "master", "exp_avg", "exp_avg_sq"}
    # a step of learning rate zero changes no weight: what comes out is what went in, through another layout
    still = recipe(directory, dataset, 3, "bf16", pipeline=2)
    still = dataclasses.replace(still, optimizer=Optimizer(learning_rate=0.0, minimum=0.0, schedule="constant"))
    run_ranks(4, run_recipe, still)
    after = Reader(directory / "checkpoints/step_000003")
    for kind, name in before.segments:
        if kind in ("weight", "master"):
            assert torch.equal(before.read(name, kind), after.read(name, kind)), (kind, name)


def test_old_checkpoints_go_and_the_newest_stay(tmp_path, dataset):
    directory = tmp_path / "run"
    every = recipe(directory, dataset, 5, "fp32", every=1)
    run_ranks(1, run_recipe, dataclasses.replace(every, checkpoint=Checkpoint(every=1, keep_every=2)))
    names = ["latest", "step_000002", "step_000004", "step_000005"]
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == names
    assert (directory / "checkpoints/latest").read_text() == "step_000005\n"


def hashed_by(recipe: Recipe) -> list[str]:
    """Go on with a run; which segments this rank has compared with their checksums, of those that it reads."""
    from megatron_ziya.checkpoint import format

    found, original = [], format.File._check

    def noted(file, key):
        if key in file._unchecked:
            found.append(f"{file.path.name} {key}")
        original(file, key)

    format.File._check = noted
    run_recipe(recipe)
    format.File._check = original
    return found


def test_a_rank_checks_the_segments_alone_that_it_needs(tmp_path, dataset):
    directory = tmp_path / "run"
    run_ranks(2, run_recipe, recipe(directory, dataset, 1, "bf16", pipeline=2))
    there = [
        f"{f.path.name} {s.key()}" for f in Reader(directory / "checkpoints/step_000001").files for s in f.segments
    ]
    same = run_ranks(2, hashed_by, recipe(directory, dataset, 2, "bf16", pipeline=2))
    for rank in (0, 1):
        assert sorted(same[rank]) == sorted(key for key in there if key.startswith(f"rank_0000{rank}"))
    (one,) = run_ranks(1, hashed_by, recipe(directory, dataset, 3, "bf16"))
    assert sorted(one) == sorted(there)


def flip(file: Path, where: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * where)] ^= 4
    file.write_bytes(content)


def warnings(directory: Path) -> list[str]:
    lines = (directory / "logs/rank_0.log").read_text().splitlines()
    return [line.split("WARNING ")[1] for line in lines if "WARNING" in line]


def test_the_previous_step_is_used_when_any_rank_refuses_the_newest(tmp_path, dataset):
    """Rank 1 alone reads the damaged segment, and both go back; then a header; then nothing is left."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    keep = {"checkpoint": Checkpoint(every=1, keep=0)}
    layout = {"tensor": 2, "pipeline": 1}
    run_ranks(2, run_recipe, recipe(whole, dataset, 4, "bf16", **layout))
    run_ranks(2, run_recipe, dataclasses.replace(recipe(broken, dataset, 3, "bf16", **layout), **keep))
    checkpoints = broken / "checkpoints"
    flip(checkpoints / "step_000003/rank_00001.safetensors", 0.9)
    flip(checkpoints / "step_000002/manifest.json", 0.5)
    run_ranks(2, run_recipe, dataclasses.replace(recipe(broken, dataset, 4, "bf16", **layout), **keep))
    (line,) = warnings(broken)
    assert "step_000003/rank_00001.safetensors: " in line and "does not have its checksum" in line
    assert "step_000002/manifest.json" in line
    assert line.endswith(f"going on from {checkpoints}/step_000001 instead")
    assert losses(broken) == losses(whole)
    for step in (2, 3):
        Reader(checkpoints / f"step_00000{step}").check()  # what was damaged has been written anew
    one, two = Reader(whole / "checkpoints/step_000004"), Reader(checkpoints / "step_000004")
    assert one.run != two.run == Reader(checkpoints / "step_000001").run
    for kind, name in one.segments:
        assert torch.equal(one.read(name, kind), two.read(name, kind)), (kind, name)


def test_a_run_with_no_good_checkpoint_says_so_in_a_line(tmp_path, dataset, capsys):
    directory = tmp_path / "run"
    ours = recipe(directory, dataset, 2, "fp32", every=1)
    run_ranks(1, run_recipe, ours)
    for step in (1, 2):
        flip(directory / f"checkpoints/step_00000{step}/rank_00000.safetensors", 0.9)
    (tmp_path / "recipe.toml").write_text(config.to_toml(ours))
    assert train.main([str(tmp_path / "recipe.toml"), "--run.steps", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: error: none of the 2 checkpoints in ") and line.count("its checksum") == 2
    for step in (1, 2):
        (directory / f"checkpoints/step_00000{step}/rank_00000.safetensors").unlink()
    assert train.main([str(tmp_path / "recipe.toml"), "--run.steps", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: error: none of the 2 checkpoints in ") and line.count("is missing") == 2


def killed_at(recipe: Recipe, rank: int, name: str, point: int) -> None:
    """A run whose `rank` dies at the `point`-th thing it does to a file of the checkpoint `name`."""
    left = itertools.count(point, -1)

    def at(event: str, arguments: tuple) -> None:
        if (event == "open" or event.startswith("os.")) and name in str(arguments) and next(left) == 0:
            os._exit(9)

    if torch.distributed.get_rank() == rank:
        sys.addaudithook(at)
    run_recipe(recipe)


def test_a_run_killed_while_it_saves_goes_on_to_the_bit(tmp_path, dataset):
    whole, parts = (recipe(tmp_path / name, dataset, 4, "bf16", every=1, tensor=2) for name in ("whole", "parts"))
    run_ranks(2, run_recipe, whole)
    newest = []
    for rank, step, point in ((1, 2, 1), (0, 3, 7)):
        with pytest.raises((TimeoutError, AssertionError), match=r"exit codes .*9|[Cc]onnection"):
            run_ranks(2, killed_at, parts, rank, f"step_{step:06d}", point)
        newest.append(checkpoint.steps(tmp_path / "parts/checkpoints")[-1].name)
    assert newest == ["step_000001", "step_000002"]
    run_ranks(2, run_recipe, parts)
    left = sorted(path.name for path in (tmp_path / "parts/checkpoints").iterdir())
    assert left == ["latest", "step_000003", "step_000004"]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    one, two = (Reader(tmp_path / name / "checkpoints/step_000004") for name in ("whole", "parts"))
    for kind, name in one.segments:
        assert torch.equal(one.read(name, kind), two.read(name, kind)), (kind, name)


def test_two_runs_in_a_directory_and_keep_every_from_the_command_line(tmp_path, dataset, capsys):
    directory = tmp_path / "run"
    (tmp_path / "recipe.toml").write_text(config.to_toml(recipe(directory, dataset, 1, "fp32", every=1)))
    command = [str(tmp_path / "recipe.toml"), "--checkpoint.keep_every", "3", "--checkpoint.keep", "1"]
    with checkpoint.locked(directory):
        assert train.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"train: error: {directory} is used by process {os.getpid()} on ")
    assert not directory.exists() or not list(directory.iterdir())
    for steps in ("4", "5"):
        assert train.main([*command, "--run.steps", steps]) == 0
    assert [path.name for path in checkpoint.steps(directory / "checkpoints")] == ["step_000003", "step_000005"]
    assert not (directory / "lock").exists()
    held = [str(descriptor.resolve()) for descriptor in Path("/proc/self/fd").iterdir()]
    assert not [name for name in held if name.startswith(str(directory / "lock")) or "checkpoints" in name]
    assert train.main([*command, "--checkpoint.keep_every", "-1"]) == 2
    assert "checkpoint.keep_every=-1 must be 0 (none) or more" in capsys.readouterr().err


def test_a_run_goes_on_without_the_model_it_began_with(tmp_path, dataset, capsys):
    """Its own checkpoints have all: weights, shape, and the files that travel with the model."""
    run_ranks(1, run_recipe, recipe(tmp_path / "before", dataset, 1, "bf16"))
    model = tmp_path / "model"
    (tmp_path / "before/checkpoints/step_000001").rename(model)
    (model / "huggingface").mkdir()
    (model / "huggingface/generation_config.json").write_text("{}")
    for name in ("whole", "parts"):
        ours = dataclasses.replace(recipe(tmp_path / name, dataset, 3, "bf16", every=1), model=Model(load=str(model)))
        (tmp_path / f"{name}.toml").write_text(config.to_toml(ours))
    assert train.main([str(tmp_path / "whole.toml")]) == 0
    assert train.main([str(tmp_path / "parts.toml"), "--run.steps", "2"]) == 0
    model.rename(tmp_path / "elsewhere")
    assert train.main([str(tmp_path / "parts.toml")]) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert (tmp_path / "parts/checkpoints/step_000003/huggingface/generation_config.json").is_file()
    assert train.main([str(tmp_path / "parts.toml"), "--run.directory", str(tmp_path / "new")]) == 2
    assert "model is neither a checkpoint nor a run directory" in capsys.readouterr().err


def test_five_ranks_go_on_from_seven(tmp_path, dataset):
    """Shares that divide no weight, and a world that shrank."""
    for name, sizes in (("alone", (1, 1)), ("moving", (7, 5))):
        for step, ranks in enumerate(sizes, 1):
            ours = recipe(tmp_path / name, dataset, step, "fp64")
            data = dataclasses.replace(ours.data, global_batch_size=35)
            run_ranks(ranks, run_recipe, dataclasses.replace(ours, data=data))
    assert losses(tmp_path / "moving") == pytest.approx(losses(tmp_path / "alone"), rel=1e-12)
    one, two = (Reader(tmp_path / name / "checkpoints/step_000002") for name in ("alone", "moving"))
    for kind, name in one.segments:
        torch.testing.assert_close(two.read(name, kind), one.read(name, kind), rtol=1e-10, atol=1e-14)


def test_what_was_changed_is_told_and_a_run_with_nothing_to_do_changes_nothing(tmp_path, dataset, capsys):
    directory = tmp_path / "run"
    (tmp_path / "recipe.toml").write_text(config.to_toml(recipe(directory, dataset, 1, "fp32")))
    command = [str(tmp_path / "recipe.toml"), "--optimizer.learning_rate"]
    assert train.main([*command, "0.001"]) == 0
    kept = (directory / "recipe.toml").read_bytes()
    assert train.main([*command, "0.002"]) == 0
    assert "finished already: step 1 of 1" in capsys.readouterr().out
    assert (directory / "recipe.toml").read_bytes() == kept
    assert train.main([*command, "0.002", "--run.steps", "2"]) == 0
    told = "changed since step_000001 was saved: optimizer.learning_rate: 0.001 -> 0.002\n"
    assert told in capsys.readouterr().out
    assert b"learning_rate = 0.002" in (directory / "recipe.toml").read_bytes()
    assert train.main([*command, "0.002", "--run.steps", "3"]) == 0
    assert "changed since" not in capsys.readouterr().out
