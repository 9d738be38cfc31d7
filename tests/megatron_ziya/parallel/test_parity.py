"""Every layout gives the losses, gradients, norms and weights of one process.

In FP64, differences come only from the order of sums: about 1e-15 a sum, over some hundred terms and three steps well
under 1e-12. Anything wrong by design (a sum missing, a norm counted twice, a scale) is off by 1e-3 or more.
"""

import dataclasses

import pytest
import torch
from ranks import run_ranks, train_few_steps

from megatron_ziya.config import Data, Model, Optimizer, Parallel, Precision, Recipe, Run

STEPS = 3
SMALL = Model(
    vocabulary_size=100, hidden_size=32, intermediate_size=48, layers=4, heads=4, kv_heads=2, max_positions=16
)


def recipe(tied: bool = False, micro: int = 1, documents: bool = True, clip: float = 0.5, **parallel) -> Recipe:
    return Recipe(
        run=Run(steps=STEPS, device="cpu"),
        model=dataclasses.replace(SMALL, tied=tied),
        parallel=Parallel(bucket_mib=0.02, **parallel),
        data=Data(sequence_length=16, global_batch_size=12, micro_batch_size=micro, document_mask=documents),
        optimizer=Optimizer(learning_rate=1e-2, warmup=0.0, clip=clip),
        precision=Precision(weights="fp64"),
    )


CELLS = {
    "tp2": (2, {"tensor": 2}),
    "tp2 no sequence": (2, {"tensor": 2, "sequence": False}),
    "pp2": (2, {"pipeline": 2}),
    "pp2 gpipe recompute": (2, {"pipeline": 2, "schedule": "gpipe", "recompute": "full"}),
    "pp2 interleaved": (2, {"pipeline": 2, "virtual": 2, "schedule": "interleaved"}),
    "pp4": (4, {"pipeline": 4}),
    "dp2 micro 3": (2, {"micro": 3}),
    "dp3": (3, {}),
    "tp2 pp2 tied": (4, {"tensor": 2, "pipeline": 2, "tied": True}),
    "tp2 pp2 dp2": (8, {"tensor": 2, "pipeline": 2, "micro": 2}),
    "tp2 dp2 no clip, no documents": (4, {"tensor": 2, "clip": 0.0, "documents": False}),
}


@pytest.fixture(scope="module")
def truth():
    known = {}

    def of(**knobs):
        key = tuple(sorted(knobs.items()))
        if key not in known:
            known[key] = run_ranks(1, train_few_steps, recipe(**knobs), STEPS)[0]
        return known[key]

    return of


@pytest.mark.parametrize("cell", CELLS)
def test_layout_equals_one_process(cell, truth):
    ranks, knobs = CELLS[cell]
    alone = truth(**{k: v for k, v in knobs.items() if k in ("tied", "documents", "clip")})
    found = run_ranks(ranks, train_few_steps, recipe(**knobs), STEPS)[0]
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-12)
    assert found["norm"] == pytest.approx(alone["norm"], rel=1e-12)
    for what in ("gradients", "weights"):
        assert found[what].keys() == alone[what].keys()
        for name, expected in alone[what].items():
            torch.testing.assert_close(found[what][name], expected, rtol=1e-11, atol=1e-13, msg=f"{what} {name}")
