"""Weights gathered while the next forward pass runs, and the debug mode that proves nobody reads them early."""

import pytest
import torch
from ranks import RandomMix, run_ranks

from megatron_ziya import batches
from megatron_ziya.config import Data, Model, Optimizer, Parallel, Precision, Recipe, Run
from megatron_ziya.parallel import mesh as meshes
from megatron_ziya.parallel.data import DataParallel
from megatron_ziya.trainer import setup, train_step

RECIPE = Recipe(
    run=Run(steps=3, device="cpu", debug=True),
    model=Model(vocabulary_size=100, hidden_size=32, intermediate_size=48, layers=2, heads=4, max_positions=16),
    parallel=Parallel(bucket_mib=0.001),
    data=Data(sequence_length=16, global_batch_size=4),
    optimizer=Optimizer(learning_rate=1e-2),
    precision=Precision(weights="fp32"),
)


def _steps(forgets: str) -> dict:
    mesh = meshes.build(1, 1, torch.device("cpu"))
    trainer = setup(RECIPE, mesh, RECIPE.model.architecture())
    if forgets:
        for name, module in trainer.chunks[0].named_modules():
            if name == forgets:
                module._forward_pre_hooks.clear()
    order: list[int] = []
    arrive = type(trainer.data.buckets[0]).arrive
    for number, bucket in enumerate(trainer.data.forward_order):
        bucket.arrive = lambda b=bucket, n=number: (order.append(n) if b.gathering else None, arrive(b))
    mix = RandomMix(100, 16)
    try:
        for step in range(2):
            train_step(trainer, *batches.read_step(mix, step, RECIPE.data, mesh))
    except AssertionError as error:
        trainer.data.arrive()
        return {"error": str(error), "order": order}
    under_way = sum(bucket.gathering is not None for bucket in trainer.data.buckets)
    trainer.data.arrive()
    return {"error": "", "order": order, "under_way": under_way, "buckets": len(trainer.data.buckets)}


def test_buckets_travel_beside_the_forward_pass_in_the_order_it_needs_them():
    for found in run_ranks(2, _steps, ""):
        assert not found["error"]
        assert found["under_way"] == found["buckets"] > 4, "the step returned before its weights had arrived"
        first = found["order"][: found["buckets"]]
        assert first == sorted(first), "waited for in the order in which they were sent"


@pytest.mark.parametrize("module", ["layers.0.attention.qkv", "layers.0.attention_norm", "head", "embedding"])
def test_debug_mode_names_who_does_not_wait(module):
    assert all("reads stale weights" in found["error"] for found in run_ranks(2, _steps, module)), module


def test_one_process_needs_no_hooks():
    trainer = setup(RECIPE, meshes.build(1, 1, torch.device("cpu")), RECIPE.model.architecture())
    assert isinstance(trainer.data, DataParallel)
    assert not any(module._forward_pre_hooks for module in trainer.chunks[0].modules())
