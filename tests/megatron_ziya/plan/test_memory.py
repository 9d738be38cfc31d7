"""What `ziya plan` says of memory against what real ranks hold, and against a count by hand."""

import dataclasses
import sys
from pathlib import Path

import pytest
from ranks import run_ranks

from megatron_ziya.config import Architecture, Data, Parallel, Precision, Recipe
from megatron_ziya.plan.memory import Sizes, of_stages

sys.path.append(str(Path(__file__).resolve().parents[3] / "tools"))
from measure_memory import LAYOUTS, compare, measure, recipe_of, within

LLAMA2_13B = Architecture(hidden_size=5120, intermediate_size=13824, layers=40, heads=40, vocabulary_size=39424)


def test_a_layer_of_13b_keeps_what_the_paper_says():
    """arXiv 2205.05198, section 4.1: 34 bytes x T x H of a GPT layer with 4 H inside, dropout masks (2 + 1) and GELU.

    Of ours, in 16 bits: input of each norm and of the matrix after it 4 x 2, query, key, value and result of attention
    4 x 2, gate, up and their product 3 x 2 x 2.7; FP32 statistics are under a thousandth.
    """
    recipe = Recipe(parallel=Parallel(pipeline=2), data=Data(global_batch_size=640))
    first = of_stages(recipe, LLAMA2_13B, 80)[0]
    tokens, hidden = 4096, 5120
    layer = tokens * hidden * (8 + 8 + 3 * 2 * 2.7)
    messages = (4 * 2 + 2) * tokens * hidden * 2  # outputs that are being sent or wait for their gradient, receives
    assert first.activations == pytest.approx(2 * 20 * layer + messages, rel=3e-3)  # two micro-batches in 20 layers


def test_sequence_parallel_splits_what_tensor_parallel_does_not():
    """arXiv 2205.05198, equation 4: all activations are divided by the tensor-parallel size, on a GPU."""
    recipe = Recipe(data=Data(global_batch_size=1), parallel=Parallel(recompute="none"))
    a = dataclasses.replace(LLAMA2_13B, vocabulary_size=4096)
    whole, split = (
        of_stages(dataclasses.replace(recipe, parallel=Parallel(tensor=t)), a, t)[0].activations for t in (1, 8)
    )
    assert split == pytest.approx(whole / 8, rel=0.02)  # cos, sin and the head's gradient are whole on every rank


def test_a_gpu_holds_no_fp32_logits():
    """By hand: two chunks of BF16 logits, the product of the weight gradient, the hidden states; PyTorch's passes hold
    the FP32 scores of two chunks, the logits and their gradient."""
    recipe = Recipe(data=Data(global_batch_size=1))
    chunk, product, hidden = 1024 * 39424, 39424 * 5120 * 2, 4096 * 5120 * 2
    fused = Sizes(recipe, LLAMA2_13B, "cuda").head()
    assert fused == 2 * 2 * chunk + product + hidden
    plain = dataclasses.replace(recipe, precision=Precision(kernels="torch"))
    assert Sizes(plain, LLAMA2_13B, "cuda").head() - fused == (2 + 4 + 2 + 4 - 2 * 2) * chunk


@pytest.mark.parametrize(
    "name",
    [
        "one process, bf16, documents", "recompute full, 2 layers, bf16", "recompute selective, 2 layers",
        "tp2 + sequence parallel, bf16", "pp2 zb-h1, recompute full", "pp2 spread head", "dp2",
    ],
)  # fmt: skip
def test_a_rank_holds_what_is_planned(name):
    ranks, knobs = LAYOUTS[name]
    recipe = recipe_of(knobs, small=True)
    rows = compare(recipe, ranks, run_ranks(ranks, measure, recipe))
    assert within(rows), rows


def test_a_part_that_is_forgotten_shows():
    """The bound is narrow enough: FP32 masters left out of the plan are seen."""
    recipe = recipe_of({"precision": {"weights": "bf16"}}, small=True)
    found = run_ranks(1, measure, recipe)
    masters = dataclasses.replace(recipe, precision=Precision(weights="fp32"))
    assert not within(compare(masters, 1, found))
