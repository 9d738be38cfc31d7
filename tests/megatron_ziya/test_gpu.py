"""Training on a GPU is training on the CPU but for rounding; the same tests run on the CPU alone where they can."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import RandomMix

from megatron_ziya import batches
from megatron_ziya.config import Data, Model, Optimizer, Precision, Recipe, Run
from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.trainer import setup, train_step
from ziya_data.indexed.writer import IndexedDatasetWriter

STEPS, LENGTH = 5, 48
MODEL = Model(
    vocabulary_size=131, hidden_size=64, intermediate_size=104, layers=2, heads=2, kv_heads=1, max_positions=LENGTH
)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def losses_and_norms(device: str, weights: str, kernels: str) -> tuple[list[float], list[float]]:
    recipe = Recipe(
        run=Run(steps=STEPS, device="cpu" if device == "cpu" else "cuda"),
        model=MODEL,
        data=Data(sequence_length=LENGTH, global_batch_size=4, micro_batch_size=2),
        optimizer=Optimizer(learning_rate=1e-3, schedule="constant"),
        precision=Precision(weights=weights, kernels=kernels),
    )
    mesh = Mesh(device=torch.device(device))
    trainer, mix = setup(recipe, mesh, MODEL.architecture()), RandomMix(MODEL.vocabulary_size, LENGTH)
    rows = [train_step(trainer, *batches.read_step(mix, step, recipe.data, mesh)) for step in range(STEPS)]
    return [row["loss"] for row in rows], [row["grad_norm"] for row in rows]


@pytest.mark.parametrize(
    ("device", "kernels"),
    [
        pytest.param("cpu", "torch", id="cpu"),
        pytest.param("cuda:0", "torch", id="gpu-torch", marks=[pytest.mark.gpu, NO_GPU]),
        pytest.param("cuda:0", "triton", id="gpu-triton", marks=[pytest.mark.gpu, NO_GPU]),
    ],
)
@pytest.mark.parametrize(
    ("weights", "bound"),
    [
        ("fp32", 1e-4),  # hundreds of roundings of 2^-24 a step, which Adam makes larger where gradients are small
        ("bf16", 2e-2),  # tens of roundings of 2^-9
    ],
)
def test_a_few_steps_are_those_of_the_cpu(weights, bound, device, kernels):
    """Random documents and positions that do not count, grouped heads, several micro-batches."""
    want_losses, want_norms = losses_and_norms("cpu", "fp32", "torch")
    losses, norms = losses_and_norms(device, weights, kernels)
    assert losses == pytest.approx(want_losses, rel=bound)
    assert norms == pytest.approx(want_norms, rel=5 * bound)


def run(folder: Path, name: str, processes: int, *words: str) -> list[float]:
    """Losses of a run of the command line, on `processes` processes."""
    command = [sys.executable, "-m", "megatron_ziya.cli", "train", str(folder / "recipe.toml")]
    command += ["--processes", str(processes), "--run.directory", str(folder / name), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU]),
    ],
)
def test_all_gpus_train_as_one_process_does(device, tmp_path):
    """Over NCCL: tensor, then pipeline, then data parallel, as many as there are GPUs; one GPU trains alone."""
    gpus = torch.cuda.device_count() if device == "cuda" else 4
    processes = max(size for size in (1, 2, 4, 8) if size <= gpus)
    tensor, pipeline = min(processes, 2), 2 if processes >= 4 else 1
    with IndexedDatasetWriter(tmp_path / "data", vocabulary_size=128) as writer:
        writer.add(np.random.default_rng(0).integers(3, 128, size=4000), np.full(200, 20))
    (tmp_path / "recipe.toml").write_text(f"""
        run = {{ steps = 4 }}
        optimizer = {{ learning_rate = 1e-3, schedule = "constant" }}
        precision = {{ weights = "fp32" }}
        log = {{ tensorboard = false, report = false }}
        [model]
        vocabulary_size = 128
        hidden_size = 128
        intermediate_size = 160
        layers = 2
        heads = 4
        kv_heads = 2
        max_positions = 32
        [data]
        sequence_length = 32
        global_batch_size = 8
        sources = [{{ name = "a", paths = ["{tmp_path}/data"] }}]
        """)
    layout = ["--parallel.tensor", str(tensor), "--parallel.pipeline", str(pipeline)]
    one = run(tmp_path, "one", 1, "--run.device", "cpu")
    many = run(tmp_path, "many", processes, "--run.device", device, *layout)
    assert many == pytest.approx(one, rel=1e-4)
