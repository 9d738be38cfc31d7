"""A bucket: weights of one kind in one flat buffer, their gradients in another (see data.py)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_ziya.model.linear import Parameter
from megatron_ziya.parallel.collectives import Pending, all_reduce, start_reduce_scatter, start_spread
from megatron_ziya.parallel.mesh import Axis, Mesh

# Elements. Every weight begins on a cache line, so the bits of a product do not depend on its place; every share is
# whole vector registers, since the last, odd elements are rounded otherwise (torch's fused AdamW, on a CPU).
ALIGNMENT = 64


@dataclass(frozen=True)
class Kind:
    """What weights of one bucket have in common."""

    decay: bool
    """Matrices are decayed, norms are not."""
    sum_over: Axis = field(default_factory=Axis)
    """Ranks that hold the same weight and each have a part of its gradient: under sequence parallel the norms over
    the tensor axis, and a tied embedding over the first and the last stage."""
    held_by: Axis = field(default_factory=Axis)
    """Ranks, beside the data-parallel ones, that hold the same weight and must agree on it to the bit."""
    counted: bool = True
    """A weight that several ranks hold counts once in the gradient's norm."""


class Bucket:
    """Weights of one kind in one flat buffer, their gradients in another."""

    def __init__(self, weights: Sequence[Parameter], kind: Kind, mesh: Mesh, gradient_type: torch.dtype) -> None:
        self.weights, self.kind, self.axis = weights, kind, mesh.data
        self.offsets = [sum(_aligned(w.numel()) for w in weights[:i]) for i in range(len(weights))]
        self.used = self.offsets[-1] + weights[-1].numel()
        share = _aligned(-(-self.used // mesh.data.size))
        self.share = slice(mesh.data.index * share, (mesh.data.index + 1) * share)
        self.flat = torch.zeros(share * mesh.data.size, dtype=weights[0].dtype, device=mesh.device)
        self.pending: Pending | None = None
        self.gathering: Pending | None = None
        for weight, offset in zip(weights, self.offsets, strict=True):
            view = self.flat[offset : offset + weight.numel()].view_as(weight)
            weight.data = view.copy_(weight.data)
        self.gradient_type = gradient_type
        self.place_gradients()

    def place_gradients(self) -> None:
        """Each weight adds its gradients straight into its part of one flat buffer."""
        self.gradient = torch.zeros(len(self.flat), dtype=self.gradient_type, device=self.flat.device)
        for weight, part in self.parts(self.gradient):
            weight.main_grad = part

    def parts(self, flat: Tensor) -> Iterator[tuple[Parameter, Tensor]]:
        """Each weight with its part of a flat buffer, in the weight's shape."""
        for weight, offset in zip(self.weights, self.offsets, strict=True):
            yield weight, flat[offset : offset + weight.numel()].view_as(weight)

    def start_step(self, micro_batches: int) -> None:
        """Clear the gradients; `micro_batches` of them will come to each weight."""
        self.gradient.zero_()
        self.pending = None

    def completed(self, weight: Parameter) -> None:
        """`weight` has its whole gradient of one micro-batch."""

    def sum_over_holders(self) -> None:
        """Add up what the ranks of `kind.sum_over` hold of the same weights."""
        all_reduce(self.gradient, self.kind.sum_over)

    def reduce(self) -> None:
        """Start the sum of the gradients over the data-parallel ranks."""
        assert self.pending is None, "a bucket is reduced once a step"
        self.pending = start_reduce_scatter(self.gradient, self.axis)

    def summed(self) -> Tensor:
        """This rank's share of the summed gradients, once `reduce` is through."""
        assert self.pending is not None, "reduce comes first"
        return self.pending.wait()

    def gather(self) -> None:
        """Start spreading this rank's share of the new weights to all. Until `arrive` nobody may read the weights."""
        assert self.gathering is None, "the weights of the step before were never waited for"
        if self.axis.size > 1:
            self.gathering = start_spread(self.flat, self.axis)

    def arrive(self) -> None:
        """Wait until the weights of all shares are here."""
        if self.gathering is not None:
            gathering, self.gathering = self.gathering, None  # from here on the weights may be written
            gathering.wait()


def _aligned(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT
