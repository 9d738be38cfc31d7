"""Collectives over one axis of the mesh, and the conjugate pairs that autograd needs.

With sequence parallel (arXiv 2205.05198, section 4.2.2) the pair is gather / reduce-scatter over the tokens; without it
(arXiv 1909.08053, section 3) it is identity / all-reduce. Each is the other's backward.

Everything works on dimension 0, the tokens, so a shard is contiguous. On a GPU each is NCCL's own operation. On a CPU
it goes through shared memory where the ranks have it and it fits; what does not, buckets of many MiB, goes as messages,
which cost gloo half of its reduce-scatter (`tools/benchmark_collectives.py`). Letters: T tokens, t = T / axis size.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ziya.parallel.mesh import Axis
from megatron_ziya.parallel.shared import SLOT, Board, Pending


class _SumOf(Pending):
    """The same part of a sum under way from every rank."""

    def __init__(self, parts: list[Tensor], *work: dist.Work) -> None:
        super().__init__(parts[0], *work)
        self.parts = parts

    def wait(self) -> Tensor:
        super().wait()
        if self.parts:
            self.result, self.parts = _sum(self.parts), []
        return self.result


def _fill(x: Tensor, parts: list[Tensor], index: int) -> Tensor:
    """Put the other ranks' shares in their places; this rank's own lies in `x` already."""
    for rank, (place, part) in enumerate(zip(x.chunk(len(parts)), parts, strict=True)):
        if rank != index:
            place.copy_(part)
    return x


def _sum(parts: list[Tensor]) -> Tensor:
    """In the order of the ranks, so to the same bits on all of them; rounded once."""
    return parts[0] + parts[1] if len(parts) == 2 else torch.stack(parts).sum(0)


def _exchange(sent: list[Tensor], taken: list[Tensor], axis: Axis) -> list[dist.Work]:
    """Send `sent[r]` to rank r of the axis and receive `taken[r]` from it, for every other rank.

    Messages of a pair of ranks arrive in the order in which they were sent.
    """
    group, others = axis.group, [r for r in range(axis.size) if r != axis.index]
    assert group is not None
    receives = [group.recv([taken[r]], r, 0) for r in others]
    return receives + [group.send([sent[r]], r, 0) for r in others]


def _board(x: Tensor, axis: Axis) -> Board | None:
    """Shared memory, if the ranks of the axis have it and `x` fits. The same answer on all of them."""
    return axis.board if axis.board is not None and x.nbytes <= SLOT else None


def start_gather(x: Tensor, axis: Axis) -> Pending:
    """`[t, ...]` of every rank -> `[T, ...]`."""
    if axis.size == 1:
        return Pending(x)
    if board := _board(x, axis):
        return board.start(x, torch.cat)
    out = x.new_empty(x.shape[0] * axis.size, *x.shape[1:])
    if x.device.type == "cpu":
        out.chunk(axis.size)[axis.index].copy_(x)
        return start_spread(out, axis)
    return Pending(out, dist.all_gather_single(out, x.contiguous(), group=axis.group, async_op=True))


def start_spread(x: Tensor, axis: Axis) -> Pending:
    """Give every rank's share of `[T, ...]` to all, in place: the gather of what lies where it belongs already."""
    if axis.size == 1:
        return Pending(x)
    shares = list(x.chunk(axis.size))
    if board := _board(shares[axis.index], axis):
        return board.start(shares[axis.index], lambda parts: _fill(x, parts, axis.index))
    if x.device.type == "cpu":
        return Pending(x, *_exchange([shares[axis.index]] * axis.size, shares, axis))
    return Pending(x, dist.all_gather_single(x, shares[axis.index], group=axis.group, async_op=True))


def start_reduce_scatter(x: Tensor, axis: Axis) -> Pending:
    """The sum of `[T, ...]` over the ranks, of which this rank keeps its `[t, ...]`."""
    if axis.size == 1:
        return Pending(x)
    if board := _board(x, axis):
        return board.start(x, lambda parts: _sum([part.chunk(axis.size)[axis.index] for part in parts]))
    x = x.contiguous()
    if x.device.type == "cpu":
        shares = list(x.chunk(axis.size))
        parts = [shares[r] if r == axis.index else torch.empty_like(shares[r]) for r in range(axis.size)]
        return _SumOf(parts, *_exchange(shares, parts, axis))
    out = x.new_empty(x.shape[0] // axis.size, *x.shape[1:])
    return Pending(out, dist.reduce_scatter_single(out, x, group=axis.group, async_op=True))


def start_all_reduce(x: Tensor, axis: Axis) -> Pending:
    """The sum over the ranks; `x` must not be used any more."""
    if axis.size == 1:
        return Pending(x)
    if board := _board(x, axis):
        return board.start(x, _sum)
    return Pending(x, dist.all_reduce(x, group=axis.group, async_op=True))


def all_reduce(x: Tensor, axis: Axis, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """In place; returns `x`. `op` is SUM or MAX."""
    if axis.size == 1:
        return x
    if board := _board(x, axis):
        largest = op == dist.ReduceOp.MAX
        return x.copy_(board.start(x, lambda parts: torch.stack(parts).amax(0) if largest else _sum(parts)).wait())
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
        total = start_all_reduce(x, axis).wait()
        if total is x:
            ctx.mark_dirty(x)
        return total

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


def combine(partial: Tensor, axis: Axis, sequence: bool) -> Tensor:
    """Partial sums `[T, H]` of each rank -> their sum: this rank's tokens `[t, H]`, or all `[T, H]`.

    The g of the papers; its backward gathers, or passes the gradient through.
    """
    return (_ReduceScatter if sequence else _Reduce).apply(partial, axis)
