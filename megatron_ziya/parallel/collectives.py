"""Collectives over one axis of the mesh, and the conjugate pairs that autograd needs.

With sequence parallel (arXiv 2205.05198, section 4.2.2) the pair is gather / reduce-scatter over the tokens; without it
(arXiv 1909.08053, section 3) it is identity / all-reduce. Each is the other's backward.

Everything works on dimension 0, the tokens, so a shard is contiguous. On a GPU each is NCCL's own operation; on a CPU
it is what gloo does in the fewest CPU seconds. Letters: T tokens, t = T / axis size.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ziya.parallel.mesh import Axis


class Pending:
    """A collective under way; `wait` gives its result."""

    def __init__(self, result: Tensor, work: dist.Work | None) -> None:
        self.result, self.work = result, work

    def wait(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
        return self.result


def start_gather(x: Tensor, axis: Axis) -> Pending:
    """`[t, ...]` of every rank -> `[T, ...]`."""
    if axis.size == 1:
        return Pending(x, None)
    out = x.new_empty(x.shape[0] * axis.size, *x.shape[1:])
    return Pending(out, dist.all_gather_single(out, x.contiguous(), group=axis.group, async_op=True))


class _SumOf(Pending):
    """Shares under way from every rank; `wait` adds them up, in the order of the ranks."""

    def wait(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
            self.result, self.work = self.result.sum(0), None
        return self.result


def start_reduce_scatter(x: Tensor, axis: Axis) -> Pending:
    """The sum of `[T, ...]` over the ranks, of which this rank keeps its `[t, ...]`."""
    if axis.size == 1:
        return Pending(x, None)
    x = x.contiguous()
    if x.device.type == "cpu":
        # gloo's reduce-scatter of 256 KiB over two ranks takes 508 us of CPU, an exchange and a local sum 270
        shares = x.new_empty(axis.size, x.shape[0] // axis.size, *x.shape[1:])
        return _SumOf(shares, dist.all_to_all_single(shares.view_as(x), x, group=axis.group, async_op=True))
    out = x.new_empty(x.shape[0] // axis.size, *x.shape[1:])
    return Pending(out, dist.reduce_scatter_single(out, x, group=axis.group, async_op=True))


def start_all_reduce(x: Tensor, axis: Axis) -> Pending:
    """The sum over the ranks, in place."""
    if axis.size == 1:
        return Pending(x, None)
    return Pending(x, dist.all_reduce(x, group=axis.group, async_op=True))


def all_reduce(x: Tensor, axis: Axis, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """In place; returns `x`."""
    if axis.size > 1:
        dist.all_reduce(x, op=op, group=axis.group)
    return x


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return start_reduce_scatter(x, axis).wait()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return start_gather(dy, ctx.axis).wait(), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.mark_dirty(x)
        return all_reduce(x, axis)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


def combine(partial: Tensor, axis: Axis, sequence: bool) -> Tensor:
    """Partial sums `[T, H]` of each rank -> their sum: this rank's tokens `[t, H]`, or all `[T, H]`.

    The g of the papers; its backward gathers, or passes the gradient through.
    """
    return (_ReduceScatter if sequence else _Reduce).apply(partial, axis)
