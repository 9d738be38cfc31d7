"""The parity grid (tests/support/grid.py): every layout gives one process's losses, gradients, norms and weights.

`pytest -m grid` runs all of it; what is not marked here is a part of it that has each knob and each pair of axes once.
"""

import pytest
from grid import Cell, cells, layouts, rounding, run, too_far
from pool import Pool

FEW = [
    Cell(tensor=2, clip=0.5),
    Cell(tensor=2, sequence=False, tied=True),
    Cell(tensor=4, kv_heads=4, documents=False),
    Cell(tensor=4, recompute="full"),
    Cell(pipeline=2, schedule="gpipe", kv_heads=4),
    Cell(pipeline=3, micro=2, clip=0.5),
    Cell(pipeline=2, schedule="interleaved", virtual=2, tied=True, recompute="full"),
    Cell(data=5, kv_heads=4, clip=0.5),
    Cell(data=7),
    Cell(tensor=2, pipeline=2, kv_heads=4, tied=True, clip=0.5),
    Cell(tensor=2, data=2, sequence=False, micro=2, clip=0.5),
    Cell(pipeline=2, data=3, schedule="interleaved", virtual=2, documents=False),
    Cell(tensor=2, pipeline=2, data=2, schedule="zb-v", virtual=2, kv_heads=4, recompute="first layer", halves=True),
    Cell(tensor=2, pipeline=2, data=2, schedule="zb-h1", recompute="selective", invariant=True, clip=0.5),
    Cell(pipeline=3, spread_head=True, micro=2, clip=0.5, documents=False),
    Cell(tensor=2, pipeline=4, schedule="zb-h1", kv_heads=4, recompute="full", halves=True, spread_head=True),
    Cell(tensor=2, pipeline=2, data=2, schedule="zb-v", virtual=2, sequence=False, spread_head=True),
    Cell(pipeline=2, data=2, schedule="interleaved", virtual=2, recompute="first layer", spread_head=True),
]


@pytest.fixture(scope="module")
def pool():
    with Pool() as workers:
        yield workers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("truths")


@pytest.mark.parametrize("cell", FEW, ids=str)
def test_cell(cell, pool, folder):
    assert not too_far(run(pool, [cell], folder))


NARROW = [
    Cell(tensor=2, pipeline=2, kv_heads=4),
    Cell(tensor=2, data=2),
    Cell(tensor=2, pipeline=2, spread_head=True),
]


@pytest.mark.parametrize("layout", NARROW, ids=str)
@pytest.mark.parametrize(("weights", "unit"), [("fp32", 2**-24), ("bf16", 2**-9)])
def test_narrow_types_round_no_more_than_one_process(layout, weights, unit, pool):
    """FlashAttention's rule, on every gradient: the error against FP64 is at most twice that of one process.

    A norm is off by no more than its gradients are (triangle inequality). The loss is a mean of FP32 numbers over
    some hundred tokens, whose rounding partly cancels: under half a unit in the last place of the type.
    """
    errors = pool.run(4, rounding, layout, weights)[0]
    (loss, _), (norm, _) = errors.pop("loss"), errors.pop("norm")
    assert {name: e for name, e in errors.items() if e[0] > 2 * e[1]} == {}
    assert loss < unit
    assert norm < 2 * max(one for _, one in errors.values())


@pytest.mark.grid
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("layout", list(layouts()), ids="tp{0[0]}-pp{0[1]}-dp{0[2]}".format)
def test_layout(layout, pool, folder):
    chosen = cells(layout)
    assert chosen, "checks.check refuses every cell of this layout"
    wrong = too_far(run(pool, chosen, folder))
    assert not wrong, f"{len(wrong)} of {len(chosen)} cells:\n" + "\n".join(wrong)
