"""A run that is stopped and goes on: to the bit on the same layout, to rounding on any other."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks, run_recipe

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
    run_ranks(1, run_recipe, recipe(directory, dataset, 5, "fp32", every=1))
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == ["step_000004", "step_000005"]


def hashed_by(recipe: Recipe) -> list[str]:
    """Go on with a run; which files this rank has compared with the manifest."""
    from megatron_ziya.checkpoint import reader

    found, original = [], reader.sha256
    reader.sha256 = lambda file: found.append(file.name) or original(file)
    run_recipe(recipe)
    reader.sha256 = original
    return found


def test_a_rank_checks_the_files_alone_that_it_needs(tmp_path, dataset):
    directory = tmp_path / "run"
    run_ranks(2, run_recipe, recipe(directory, dataset, 1, "bf16", pipeline=2))
    same = run_ranks(2, hashed_by, recipe(directory, dataset, 2, "bf16", pipeline=2))
    assert same == [["rank_00000.safetensors"], ["rank_00001.safetensors"]]
    (one,) = run_ranks(1, hashed_by, recipe(directory, dataset, 3, "bf16"))
    assert sorted(one) == ["rank_00000.safetensors", "rank_00001.safetensors"]


def test_damage_is_seen(tmp_path, dataset):
    directory = tmp_path / "run"
    run_ranks(1, run_recipe, recipe(directory, dataset, 1, "fp32"))
    checkpoint = directory / "checkpoints/step_000001"
    file = checkpoint / "rank_00000.safetensors"
    original = file.read_bytes()
    file.write_bytes(original[:-5] + bytes([original[-5] ^ 1]) + original[-4:])
    with pytest.raises(ValueError, match="does not have the SHA-256 of its manifest"):
        Reader(checkpoint).read("norm.weight")
    with pytest.raises(AssertionError, match="does not have the SHA-256 of its manifest"):
        run_ranks(1, run_recipe, recipe(directory, dataset, 2, "fp32"))
    file.unlink()
    with pytest.raises(FileNotFoundError, match="safetensors is missing"):
        Reader(checkpoint)
    manifest = checkpoint / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="format 9, this program reads 1"):
        Reader(checkpoint)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match="is not a checkpoint"):
        Reader(checkpoint)
