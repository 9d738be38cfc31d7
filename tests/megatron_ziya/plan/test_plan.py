"""What `ziya plan` says against numbers that others state, and against real allocations."""

import dataclasses
from pathlib import Path

import pytest
import torch

import ziya_kernels
from megatron_ziya import config
from megatron_ziya.config import Architecture, Data, Parallel, Precision, Recipe
from megatron_ziya.model import parallelize
from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.parallel.schedule import make
from megatron_ziya.parallel.slices import Times, flops, halves
from megatron_ziya.parallel.verify import verify
from megatron_ziya.plan import commands
from megatron_ziya.plan.estimate import estimate

EXAMPLES = Path(__file__).resolve().parents[3] / "examples/ziya2-13b"
LLAMA2_13B = Architecture(hidden_size=5120, intermediate_size=13824, layers=40, heads=40, vocabulary_size=39424)


def recipe(**parallel) -> Recipe:
    return Recipe(parallel=Parallel(**parallel), data=Data(global_batch_size=640))


def test_bubble_of_equal_stages():
    # (p - 1) / (m + p - 1) of arXiv 2104.04473 with p = 2, m = 640 / 40, when the head weighs nothing
    headless = dataclasses.replace(LLAMA2_13B, vocabulary_size=1)
    assert estimate(recipe(pipeline=2), headless, 80).bubble == pytest.approx(1 / 17, rel=1e-4)


def test_bubble_of_ziya2s_layout():
    # the head is 0.6 of a layer on one of two stages with 20 each
    assert estimate(recipe(pipeline=2), LLAMA2_13B, 80).bubble == pytest.approx(0.071, abs=5e-4)


def test_half_layers_balance_the_head():
    """20.5 and 19.5 layers: the stages are 0.4 of a layer apart instead of 0.6, so less is lost."""
    even = estimate(recipe(pipeline=2), LLAMA2_13B, 80).bubble
    assert estimate(recipe(pipeline=2, layout=(20.5, 19.5)), LLAMA2_13B, 80).bubble < even


PEERS = [  # share of time lost, in percent: a simulation that is not ours, weighted by FLOPs, without communication
    (2, "1f1b", 1, 7.1), (2, "interleaved", 4, 2.9), (2, "zb-h1", 1, 3.6), (2, "zb-v", 2, 1.4),
    (4, "1f1b", 1, 12.0), (4, "interleaved", 5, 5.9), (4, "zb-h1", 1, 7.1), (4, "zb-v", 2, 5.0),
    (8, "1f1b", 1, 17.3), (8, "interleaved", 5, 11.0), (8, "zb-h1", 1, 12.1),
]  # fmt: skip


@pytest.mark.parametrize(("stages", "name", "virtual", "expected"), PEERS)
def test_bubbles_of_llama2_13b_on_80_gpus(stages, name, virtual, expected):
    """640 sequences; the head counts as 0.6 of a layer in each of F, B and W, and so do we here, where our own head
    works out all three in its forward pass."""
    cuts = halves(Parallel(pipeline=stages, virtual=virtual, schedule=name), 40)
    plain = flops(dataclasses.replace(LLAMA2_13B, vocabulary_size=1), 4096, cuts)
    head = 2.0 * 5120 * 39424
    times = Times(*((*part[:-1], part[-1] + head) for part in plain[:3]))
    lists = make(name, stages, 640 // (80 // stages), virtual, times)
    found = 100 * verify(lists, times).bubble
    if name == "zb-v":  # found by search, so another list than theirs: at least as good
        assert found <= expected + 0.06
    else:  # theirs are rounded to 0.1
        assert found == pytest.approx(expected, abs=0.11)


def test_time_of_ziya2s_run_without_the_bubble():
    """6 N D gives 48.5 days for 700 B tokens on 80 GPUs at 163 TFLOP/s; attention's FLOPs come on top."""
    e = estimate(recipe(pipeline=2), LLAMA2_13B, 80)
    matrices = dataclasses.replace(e, bubble=0.0, flops_per_token=6.0 * e.parameters)
    assert matrices.seconds(700e9, 80, 163e12) / 86400 == pytest.approx(48.5, abs=0.5)
    attention = 6 * 40 * 5120 * 4096
    embedding = 6 * 39424 * 5120  # a look-up, not a product
    assert e.flops_per_token == pytest.approx(6 * e.parameters - embedding + attention)


@pytest.mark.parametrize(("weights", "expected"), [("bf16", 2 + 4 + 12), ("fp32", 4 + 4 + 8)])
def test_bytes_a_weight(weights, expected):
    r = dataclasses.replace(recipe(), precision=Precision(weights=weights))
    e = estimate(r, LLAMA2_13B, 1)
    total = e.memory.weights + e.memory.gradients + e.memory.optimizer
    assert total / LLAMA2_13B.parameters() == pytest.approx(expected, rel=1e-3)


def test_weights_of_a_stage_are_what_is_allocated():
    a = Architecture(vocabulary_size=512, hidden_size=64, intermediate_size=96, layers=6, heads=4)
    kernels = ziya_kernels.select("torch", torch.device("cpu"))
    chunks = parallelize.build(a, Parallel(), Mesh(), kernels, torch.float32)
    assert sum(w.numel() for chunk in chunks for w in chunk.parameters()) == a.parameters()


def test_the_command_draws(tmp_path, capsys):
    path = tmp_path / "schedule.png"
    arguments = [str(EXAMPLES / "base.toml"), "--parallel.pipeline", "4", "--draw-schedule", str(path)]
    arguments += ["--data.global_batch_size", "16"]
    assert commands.plan(arguments) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "bubble" in capsys.readouterr().out
    with pytest.raises(ValueError, match="do not fit"):
        commands.plan([*arguments, "--ranks", "6"])


def test_shipped_stages_say_how_many_tokens():
    """Steps of the recipes against the paper's figure 6: 650 B, 58 B (29 + as much replay), 3 B."""
    for stage, tokens in ("stage1", 650e9), ("stage2", 58e9), ("stage3", 3e9):
        r = config.load(EXAMPLES / f"{stage}.toml")
        told = r.run.steps * r.data.global_batch_size * r.data.sequence_length
        assert told == pytest.approx(tokens, rel=1e-3)
