"""A head whose loss comes from the kernels' own functions (`Kernels.fused_head`, as on a GPU), over any ranks.

In FP64 with the plain twins, against the head of one process on its own passes: 1e-12 of the largest value, the order
of sums. Several chunks, positions that do not count, and a vocabulary that the ranks pad.
"""

import dataclasses
from typing import Any

import pytest
import torch
from ranks import run_ranks

from megatron_ziya.model.head import Head
from megatron_ziya.model.linear import Parameter
from megatron_ziya.parallel import mesh as meshes
from megatron_ziya.parallel.cross_entropy import SpreadHead, VocabParallelHead
from megatron_ziya.parallel.tensor import vocabulary_share
from ziya_kernels import select
from ziya_kernels.head_loss import CHUNK

TOKENS, HIDDEN, VOCABULARY, SCALE = CHUNK + 40, 16, 300, 0.25
CPU = torch.device("cpu")


def head(fused: bool) -> Head:
    kernels = dataclasses.replace(select("torch", CPU), fused_head=fused)
    plain = Head(VOCABULARY, HIDDEN, kernels).double()
    with torch.no_grad():
        plain.weight.copy_(torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(1)))
    return plain


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return x, targets, torch.rand(TOKENS, generator=generator) < 0.7


def alone(fused: bool, buffer: bool = False, apart: bool = False) -> list[torch.Tensor]:
    plain = head(fused)
    if buffer:
        plain.weight.main_grad = torch.zeros_like(plain.weight)
        plain.weight.apart = apart
    x, targets, mask = batch()
    loss, losses = plain(x.requires_grad_(), targets, mask, SCALE)
    if apart:
        assert not plain.weight.main_grad.any(), "the buffer may still hold another micro-batch's gradient"
    loss.backward()
    gradient = plain.weight.main_grad if buffer else plain.weight.grad
    return [losses, x.grad, gradient]


def _share(weight: Parameter, axis: Any) -> None:
    first, _, existing = vocabulary_share(VOCABULARY, axis)
    with torch.no_grad():
        weight.zero_()
        weight[:existing] = head(True).weight[first : first + existing]


def _mine(x: torch.Tensor, axis: Any, sequence: bool) -> torch.Tensor:
    return x.chunk(axis.size)[axis.index].clone() if sequence else x


def over_tensor(sequence: bool) -> list[torch.Tensor]:
    mesh = meshes.build(torch.distributed.get_world_size(), 1, CPU)
    split = VocabParallelHead(head(True), mesh.tensor, sequence)
    _share(split.weight, mesh.tensor)
    x, targets, mask = batch()
    x = _mine(x, mesh.tensor, sequence).requires_grad_()
    loss, losses = split(x, targets, mask, SCALE)
    loss.backward()
    return [losses, x.grad, split.weight.grad]


def over_stages() -> list[torch.Tensor]:
    mesh = meshes.build(1, torch.distributed.get_world_size(), CPU, spread_head=True)
    spread = SpreadHead(head(True), mesh, False)
    _share(spread.weight, mesh.head)
    spread.weight.main_grad = torch.zeros_like(spread.weight)
    x, targets, mask = batch()
    d_hidden, losses = spread.gradient(spread(x, targets, mask, SCALE))
    return [losses, d_hidden, spread.weight.main_grad]


def equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for have, want in zip(found, expected, strict=True):
        torch.testing.assert_close(have, want, rtol=0, atol=1e-12 * float(want.abs().max()))


@pytest.mark.parametrize(
    "how", [{}, {"buffer": True}, {"buffer": True, "apart": True}], ids=["leaf", "buffer", "apart"]
)
def test_one_process(how):
    equal(alone(True, **how), alone(False))


@pytest.mark.parametrize(("ranks", "sequence"), [(2, True), (3, False)])
def test_split_over_tensor_parallel_ranks(ranks, sequence):
    """Three ranks pad 300 rows to 384: the last has 44 of its 128."""
    losses, d_hidden, d_weight = alone(False)
    found = run_ranks(ranks, over_tensor, sequence)
    equal([found[0][0]], [losses])
    equal([torch.cat([rank[1] for rank in found]) if sequence else found[-1][1]], [d_hidden])
    equal([torch.cat([rank[2] for rank in found])[:VOCABULARY]], [d_weight])
    assert not torch.cat([rank[2] for rank in found])[VOCABULARY:].any()


def test_spread_over_stages():
    """Four stages: the last has nothing but padding."""
    losses, d_hidden, d_weight = alone(False)
    found = run_ranks(4, over_stages)
    equal([found[0][0]], [losses])
    equal([torch.stack([rank[1] for rank in found]).sum(0)], [d_hidden])
    equal([torch.cat([rank[2] for rank in found])[:VOCABULARY]], [d_weight])
