"""The fixed tree, the order-free norm, and one SHA-256 of the weights for every layout."""

import hashlib
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks, run_recipe

from megatron_ziya.checkpoint.distributed import Reader
from megatron_ziya.config import Checkpoint, Data, Log, Model, Optimizer, Parallel, Precision, Recipe, Run, Source
from megatron_ziya.parallel.invariant import Node, push, square_sum
from megatron_ziya.parallel.mesh import Mesh
from ziya_data.indexed.writer import IndexedDatasetWriter

MODEL = Model(vocabulary_size=96, hidden_size=32, intermediate_size=48, layers=4, heads=4, kv_heads=2, max_positions=16)


def tree(values):
    """The same tree written the other way round: level by level over all rows at once."""
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = [a[0] + a[1] if len(a) == 2 else a[0] for a in pairs]
    return values[0]


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_any_cut_of_the_rows_gives_the_same_tree(rows, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, rows), max_size=5)) | {0, rows})
    values = [torch.tensor([2.0**-r + r * 1e7], dtype=torch.float32) for r in range(rows)]
    leftovers: list[Node] = []
    for first, last in pairwise(cuts):
        mine: list[Node] = []
        for row in range(first, last):
            push(mine, Node(row, 1, values[row].clone()), rows)
        leftovers += mine
    root: list[Node] = []
    for node in leftovers:
        push(root, node, rows)
    assert [(n.first, n.span >= rows) for n in root] == [(0, True)]
    assert torch.equal(root[0].value, tree(values))


@given(
    st.lists(st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False), min_size=1, max_size=60),
    st.randoms(),
    st.integers(1, 5),
)
def test_the_square_sum_does_not_depend_on_order_and_is_right(values, random, cut):
    truth = math.fsum(v * v for v in values)
    shuffled = random.sample(values, len(values))
    parts = [p for p in torch.tensor(shuffled, dtype=torch.float32).split(cut)]
    found = square_sum([torch.tensor(values, dtype=torch.float32)], Mesh())
    assert found == square_sum(parts, Mesh())
    assert found == pytest.approx(truth, rel=1e-12)


def test_a_nan_is_not_lost_in_the_square_sum():
    assert square_sum([torch.tensor([1.0, math.nan])], Mesh()) == math.inf


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    prefix = tmp_path_factory.mktemp("index") / "random"
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 40, size=200)
    with IndexedDatasetWriter(prefix, vocabulary_size=96) as writer:
        writer.add(draw.integers(3, 96, size=int(lengths.sum())), lengths)
    return str(prefix)


def recipe(directory: Path, dataset: str, steps: int, weights: str, micro: int = 1, **parallel) -> Recipe:
    return Recipe(
        run=Run(directory=str(directory), steps=steps, device="cpu", check_replicas_every=5),
        model=MODEL,
        parallel=Parallel(**({"bucket_mib": 0.01, "invariant": True} | parallel)),
        data=Data(
            sequence_length=16, global_batch_size=12, micro_batch_size=micro, sources=(Source("random", (dataset,)),)
        ),
        optimizer=Optimizer(learning_rate=1e-2, schedule="constant", clip=0.5),
        precision=Precision(weights=weights),
        checkpoint=Checkpoint(every=0),
        log=Log(tensorboard=False, report=False, peak_tflops=1.0),
    )


def digest(directory: Path) -> str:
    """SHA-256 of weights, masters and moments under their logical names."""
    reader = Reader(max((directory / "checkpoints").iterdir()))
    whole = hashlib.sha256()
    for kind, name in sorted(reader.segments):
        whole.update(f"{kind} {name}".encode())
        whole.update(reader.read(name, kind).contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


LAYOUTS = [
    (2, {}),
    (3, {"bucket_mib": 25.0}),
    (4, {"micro": 3}),
    (4, {"pipeline": 2, "virtual": 2, "schedule": "interleaved"}),
]
MORE = [
    (2, {"pipeline": 2, "schedule": "gpipe"}),
    (2, {"pipeline": 2, "schedule": "zb-h1"}),
    (4, {"pipeline": 2, "virtual": 2, "schedule": "zb-v"}),
    (2, {"pipeline": 2, "layout": (2.5, 1.5)}),
    (1, {"recompute": "full"}),
    (6, {}),
]


def compare(tmp_path, dataset, weights, layouts):
    run_ranks(1, run_recipe, recipe(tmp_path / "alone", dataset, 20, weights))
    truth = digest(tmp_path / "alone")
    for number, (ranks, layout) in enumerate(layouts):
        run_ranks(ranks, run_recipe, recipe(tmp_path / str(number), dataset, 20, weights, **layout))
        assert digest(tmp_path / str(number)) == truth, (ranks, layout)


def test_one_sha_for_every_layout(tmp_path, dataset):
    compare(tmp_path, dataset, "bf16", LAYOUTS)


@pytest.mark.slow
def test_one_sha_for_more_layouts(tmp_path, dataset):
    compare(tmp_path, dataset, "fp32", [*LAYOUTS, *MORE])


def test_one_sha_across_restarts_on_other_layouts(tmp_path, dataset):
    run_ranks(1, run_recipe, recipe(tmp_path / "alone", dataset, 20, "bf16"))
    for steps, (ranks, layout) in zip((3, 7, 12, 20), LAYOUTS, strict=False):
        run_ranks(ranks, run_recipe, recipe(tmp_path / "moving", dataset, steps, "bf16", **layout))
    assert digest(tmp_path / "moving") == digest(tmp_path / "alone")


def test_without_the_mode_layouts_differ_in_bits(tmp_path, dataset):
    """Else the tests above would prove nothing."""
    for ranks in (1, 3):
        run_ranks(ranks, run_recipe, recipe(tmp_path / str(ranks), dataset, 5, "fp32", invariant=False))
    assert digest(tmp_path / "1") != digest(tmp_path / "3")
