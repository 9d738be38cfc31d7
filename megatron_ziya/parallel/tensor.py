"""Tensor parallel (arXiv 1909.08053): column linear, row linear, vocabulary-parallel embedding.

Letters: T tokens of the micro-batch, t this rank's share of them, O and I a matrix's outputs and inputs.
"""

from typing import Any

import torch
from torch import Tensor

from megatron_ziya.model.linear import Linear, Parameter, add_weight_gradient, embed, product
from megatron_ziya.model.llama import Embedding
from megatron_ziya.parallel.collectives import Pending, combine, start_all_reduce, start_gather, start_reduce_scatter
from megatron_ziya.parallel.mesh import Axis


class _Column(torch.autograd.Function):
    """Gather the tokens, multiply; in the backward pass communication runs beside the weight gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, axis: Axis, sequence: bool) -> Tensor:
        ctx.axis, ctx.sequence = axis, sequence
        whole = start_gather(x, axis).wait() if sequence else x
        # only the share [t, I] is kept; it is gathered again beside the product below (arXiv 2205.05198, 4.2.2)
        ctx.save_for_backward(x, weight)
        return product(whole, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        inputs = start_gather(x, ctx.axis) if ctx.sequence else Pending(x)
        partial = product(dy, weight.t())
        start = start_reduce_scatter if ctx.sequence else start_all_reduce
        dx = start(partial, ctx.axis)
        d_weight = add_weight_gradient(weight, dy, inputs.wait())
        return dx.wait(), d_weight, None, None


class ColumnParallelLinear(Linear):
    """Y = X W^T with the outputs of each logical part split over the axis: `[t, I]` -> `[T, O / size]`."""

    split = 0

    def __init__(self, plain: Linear, axis: Axis, sequence: bool) -> None:
        torch.nn.Module.__init__(self)
        self.inputs, self.parts, self.axis, self.sequence = plain.inputs, plain.parts, axis, sequence
        rows = sum(rows // axis.size for rows in plain.parts.values())
        self.weight = Parameter(plain.weight.new_empty(rows, plain.inputs))

    def forward(self, x: Tensor) -> Tensor:
        return _Column.apply(x, self.weight, self.axis, self.sequence)


class RowParallelLinear(Linear):
    """Y = X W^T with the inputs split over the axis: `[T, I / size]` -> `[t, O]`, summed over the ranks."""

    split = 1

    def __init__(self, plain: Linear, axis: Axis, sequence: bool) -> None:
        torch.nn.Module.__init__(self)
        self.inputs, self.parts, self.axis, self.sequence = plain.inputs, plain.parts, axis, sequence
        self.weight = Parameter(plain.weight.new_empty(sum(plain.parts.values()), plain.inputs // axis.size))

    def forward(self, x: Tensor) -> Tensor:
        return combine(super().forward(x), self.axis, self.sequence)


def vocabulary_share(vocabulary: int, axis: Axis) -> tuple[int, int, int]:
    """`(first row, rows, rows that exist)` of this rank. Shares are equal; the last rows may be padding.

    The padded size is a multiple of 128 per rank's matrix alignment, as Ziya2 pads 39,410 to 39,424.
    """
    rows = -(-vocabulary // (128 * axis.size)) * 128 if axis.size > 1 else vocabulary
    first = axis.index * rows
    return first, rows, max(0, min(vocabulary - first, rows))


class VocabParallelEmbedding(Embedding):
    """Each rank looks up the tokens of its rows, the others count as zero, and the ranks are summed."""

    def __init__(self, plain: Embedding, axis: Axis, sequence: bool) -> None:
        torch.nn.Module.__init__(self)
        self.vocabulary, self.axis, self.sequence = plain.vocabulary, axis, sequence
        self.first, rows, _ = vocabulary_share(plain.vocabulary, axis)
        self.weight = Parameter(plain.weight.new_empty(rows, plain.weight.shape[1]))

    def forward(self, tokens: Tensor) -> Tensor:
        here = (tokens >= self.first) & (tokens < self.first + len(self.weight))
        rows = embed(torch.where(here, tokens - self.first, 0), self.weight)
        return combine(rows.mul(here[:, None]), self.axis, self.sequence)
