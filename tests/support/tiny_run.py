"""Recipes of runs that take a second, and what their checkpoints hold."""

from pathlib import Path

import torch

from megatron_ziya.checkpoint.distributed import Reader
from megatron_ziya.config import Checkpoint, Data, Log, Model, Optimizer, Parallel, Precision, Recipe, Run, Source

MODEL = Model(
    vocabulary_size=100, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2, max_positions=16
)
ALL = {"every": 1, "keep": 0}


def recipe(directory: Path, dataset: str, steps: int, tensor: int = 1, **checkpoint) -> Recipe:
    return Recipe(
        run=Run(directory=str(directory), steps=steps, device="cpu"),
        model=MODEL,
        parallel=Parallel(bucket_mib=0.01, tensor=tensor),
        data=Data(sequence_length=16, global_batch_size=4, sources=(Source("random", (dataset,)),)),
        optimizer=Optimizer(learning_rate=1e-2, schedule="constant"),
        precision=Precision(weights="bf16"),
        checkpoint=Checkpoint(**ALL | checkpoint),
        log=Log(tensorboard=False, report=False, peak_tflops=1.0),
    )


def everything(path: Path) -> dict[tuple[str, str], torch.Tensor]:
    reader = Reader(path)
    return {(kind, name): reader.read(name, kind) for kind, name in reader.segments}
