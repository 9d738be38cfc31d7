"""The sum over the weights' bits: NumPy's, one number for every layout, and another for anything that changed."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import small
from ranks import run_ranks, run_recipe
from tiny_run import recipe

from megatron_ziya.checkpoint import commands
from megatron_ziya.checkpoint.distributed import Reader, write_weights
from megatron_ziya.checkpoint.format import Segment, in_words, read_manifest, weights_sum, write_manifest
from megatron_ziya.model import parallelize
from megatron_ziya.model.weights import shapes


def by_numpy(name: str, values: torch.Tensor) -> int:
    bits = values.flatten().view({2: torch.uint16, 4: torch.uint32}[values.element_size()]).numpy().astype(np.uint64)
    salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    places = np.uint64(salt) + np.arange(len(bits), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return int((bits * ((places ^ (places >> np.uint64(32))) | np.uint64(1))).sum())


@given(st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 1), st.integers(0, 2**32), st.data())
def test_parts_of_any_box_sum_to_what_numpy_says(dtype, dim, seed, data):
    name, shape = "layers.0.mlp.down.weight", (6, 10)
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    cut = data.draw(st.integers(0, shape[dim]))
    total = 0
    for start, size in ((0, cut), (cut, shape[dim] - cut)):
        flat = whole.narrow(dim, start, size).reshape(-1)
        middle = data.draw(st.integers(0, len(flat)))
        for first, last in ((0, middle), (middle, len(flat))):
            total += weights_sum(Segment("weight", name, dim, start, size, first, last), flat[first:last], shape)
    assert total % 2**64 == by_numpy(name, whole)


def test_anything_that_changes_changes_it(tmp_path):
    a = small()
    state = {name: torch.randn(shape) for name, shape in shapes(a).items()}

    def found(changed):
        write_weights(tmp_path / "out", a, (state | changed).items())
        assert Reader(tmp_path / "out").sum_weights() == Reader(tmp_path / "out").weights_sum
        return Reader(tmp_path / "out").weights_sum

    name, other = "layers.0.mlp.up.weight", "layers.0.mlp.gate.weight"
    flipped, swapped = state[name].clone(), state[name].clone()
    flipped.view(torch.int32)[3, 4] ^= 1
    swapped[[0, 1]] = swapped[[1, 0]]
    sums = [
        found(changed) for changed in ({}, {name: flipped}, {name: swapped}, {name: state[other], other: state[name]})
    ]
    assert len(set(sums)) == 4
    assert int(sums[0], 16) == sum(by_numpy(*item) for item in state.items()) % 2**64


def test_every_layout_writes_one_sum_and_reads_it(tmp_path, tiny_dataset):
    """A step of learning rate zero changes nothing; each start compares what it has read with what was saved."""
    sums = set()
    for steps, ranks, layout in (
        (1, 1, {}), (2, 3, {}), (3, 2, {"tensor": 2}), (4, 4, {"tensor": 2, "pipeline": 2, "spread_head": True}),
        (5, 2, {"pipeline": 2}),
    ):  # fmt: skip
        settings = recipe(tmp_path / "run", tiny_dataset, steps)
        still = dataclasses.replace(settings.optimizer, learning_rate=0.0, minimum=0.0)
        parallel = dataclasses.replace(settings.parallel, **layout)
        data = dataclasses.replace(settings.data, global_batch_size=12)
        run_ranks(ranks, run_recipe, dataclasses.replace(settings, optimizer=still, parallel=parallel, data=data))
        reader = Reader(tmp_path / f"run/checkpoints/step_{steps:06d}")
        sums.add(reader.weights_sum)
        assert reader.sum_weights() == reader.weights_sum
    assert len(sums) == 1 and len(sums.pop()) == 16
    assert "sum of the weights" in (tmp_path / "run/logs/rank_0.log").read_text()


def misread(settings):
    """A layout that puts a piece of a weight into another's place, with good bytes."""
    original = parallelize.fill_pieces

    def wrong(model, mesh, read):
        def swapped(piece):
            return read(dataclasses.replace(piece, name=piece.name.replace("mlp.gate", "mlp.up")))

        original(model, mesh, swapped)

    parallelize.fill_pieces = wrong
    run_recipe(settings)


def test_weights_that_the_forward_pass_would_not_see_as_they_were_saved_are_refused(tmp_path, tiny_dataset):
    run_ranks(1, run_recipe, recipe(tmp_path / "run", tiny_dataset, 1))
    with pytest.raises(AssertionError, match=r"was saved with weights whose sum is \w{16}, what replica 0 has read"):
        run_ranks(2, misread, recipe(tmp_path / "run", tiny_dataset, 2, tensor=2))


def test_verify_and_info_tell_it(tmp_path, capsys):
    a = small()
    write_weights(tmp_path / "out", a, ((name, torch.randn(shape)) for name, shape in shapes(a).items()))
    said = Reader(tmp_path / "out").weights_sum
    assert commands.verify([str(tmp_path / "out")]) == 0
    assert f"sum of the weights: {said}, as it was when they were saved" in capsys.readouterr().out
    assert commands.info([str(tmp_path / "out")]) == 0
    assert f"sum of the weights  {said}" in capsys.readouterr().out
    manifest = read_manifest(Path(tmp_path / "out"))
    write_manifest(tmp_path / "out", manifest | {"weights_sum": in_words(int(said, 16) + 1)})
    with pytest.raises(ValueError, match=rf"the weights sum to {said}, the run saved \w{{16}}"):
        commands.verify([str(tmp_path / "out")])
