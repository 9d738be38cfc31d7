"""Recomputation, ramp-up, invariant and debug mode against one process, in FP64 (bounds: test_parity.py)."""

import dataclasses

import pytest
import torch
from ranks import run_ranks, train_few_steps

from megatron_ziya.config import Data, Model, Optimizer, Parallel, Precision, Recipe, Run

STEPS = 3
SMALL = Model(
    vocabulary_size=100, hidden_size=32, intermediate_size=48, layers=4, heads=4, kv_heads=2, max_positions=16
)
RAMP = {"ramp_up_start": 4, "ramp_up_increment": 4, "ramp_up_steps": 2, "global_batch_size": 12}
WIDE = {"vocabulary_size": 300}  # shares are multiples of 128 rows

CELLS = {
    "pp2 selective": (2, {"pipeline": 2, "recompute": "selective"}, {}),
    "pp2 full, first layer": (2, {"pipeline": 2, "recompute": "full", "recompute_layers": 1}, {}),
    "tp2 selective, first layer": (2, {"tensor": 2, "recompute": "selective", "recompute_layers": 1}, {}),
    "dp2 ramp-up": (2, {}, {"data": RAMP}),
    "pp2 dp2 ramp-up": (4, {"pipeline": 2}, {"data": RAMP}),
    "pp2 dp2 spread head, ramp-up, debug": (
        4, {"pipeline": 2, "spread_head": True}, {"data": RAMP, "run": {"debug": True}, "model": WIDE}),
    "tp2 pp2 spread head, zb-v, ramp-up, selective": (
        4, {"tensor": 2, "pipeline": 2, "virtual": 2, "schedule": "zb-v", "spread_head": True,
            "recompute": "selective"}, {"data": RAMP, "model": WIDE}),
    "dp3 invariant": (3, {"invariant": True}, {}),
    "tp2 dp2 invariant": (4, {"tensor": 2, "invariant": True}, {}),
    "pp2 dp2 invariant": (4, {"pipeline": 2, "invariant": True}, {}),
    "dp4 debug": (4, {}, {"run": {"debug": True}}),
    "pp2 dp2 debug, recompute": (4, {"pipeline": 2, "recompute": "full"}, {"run": {"debug": True}}),
    "dp2 wsd": (2, {}, {"optimizer": {"schedule": "wsd", "decay": 0.67}}),
}  # fmt: skip


def recipe(parallel, sections) -> Recipe:
    base = Recipe(
        run=Run(steps=STEPS, device="cpu"),
        model=SMALL,
        parallel=Parallel(bucket_mib=0.02, **parallel),
        data=Data(sequence_length=16, global_batch_size=12),
        optimizer=Optimizer(learning_rate=1e-2, warmup=0.0, clip=0.5),
        precision=Precision(weights="fp64"),
    )
    new = {name: dataclasses.replace(getattr(base, name), **knobs) for name, knobs in sections.items()}
    return dataclasses.replace(base, **new)


@pytest.mark.parametrize("cell", CELLS)
def test_layout_equals_one_process(cell):
    ranks, parallel, sections = CELLS[cell]
    alone = run_ranks(1, train_few_steps, recipe({}, sections), STEPS)[0]
    found = run_ranks(ranks, train_few_steps, recipe(parallel, sections), STEPS)[0]
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-12)
    assert found["norm"] == pytest.approx(alone["norm"], rel=1e-12)
    for what in ("gradients", "weights"):
        assert found[what].keys() == alone[what].keys()
        for name, expected in alone[what].items():
            torch.testing.assert_close(found[what][name], expected, rtol=1e-11, atol=1e-13, msg=f"{what} {name}")
