"""Data parallel with ZeRO-1 (arXiv 1910.02054): gradient buckets, reduced while the backward pass still runs.

Weights of one kind lie one after another in buckets, last layers first, since their gradients come first. A bucket
has a flat buffer of the weights (each weight is a view of it) and a flat FP32 buffer of the gradients (each
`main_grad` is a view of it). Both are padded to a multiple of the data-parallel size; rank r owns the r-th share of
the sums and updates only that share of the weights.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_ziya.model.linear import Parameter, announce
from megatron_ziya.parallel.collectives import Pending, all_reduce, start_gather, start_reduce_scatter
from megatron_ziya.parallel.mesh import Axis, Mesh


@dataclass(frozen=True)
class Kind:
    """What weights of one bucket have in common."""

    decay: bool
    """Matrices are decayed, norms are not."""
    sum_over: Axis = field(default_factory=Axis)
    """Ranks that hold the same weight and each have a part of its gradient: under sequence parallel the norms over
    the tensor axis, and a tied embedding over the first and the last stage."""
    counted: bool = True
    """A weight that several ranks hold counts once in the gradient's norm."""


class Bucket:
    """Weights of one kind in one flat buffer, their gradients in another."""

    def __init__(self, weights: Sequence[Parameter], kind: Kind, mesh: Mesh, gradient_type: torch.dtype) -> None:
        self.weights, self.kind, self.axis = weights, kind, mesh.data
        self.offsets = [sum(w.numel() for w in weights[:i]) for i in range(len(weights))]
        self.used = sum(w.numel() for w in weights)
        share = -(-self.used // mesh.data.size)
        self.share = slice(mesh.data.index * share, (mesh.data.index + 1) * share)
        self.flat = torch.zeros(share * mesh.data.size, dtype=weights[0].dtype, device=mesh.device)
        self.gradient = torch.zeros(len(self.flat), dtype=gradient_type, device=mesh.device)
        self.pending: Pending | None = None
        for weight, offset in zip(weights, self.offsets, strict=True):
            view = self.flat[offset : offset + weight.numel()].view_as(weight)
            weight.data = view.copy_(weight.data)
            weight.main_grad = self.gradient[offset : offset + weight.numel()].view_as(weight)

    def reduce(self) -> None:
        """Start the sum of the gradients over the data-parallel ranks."""
        assert self.pending is None, "a bucket is reduced once a step"
        self.pending = start_reduce_scatter(self.gradient, self.axis)

    def summed(self) -> Tensor:
        """This rank's share of the summed gradients, once `reduce` is through."""
        assert self.pending is not None, "reduce comes first"
        return self.pending.wait()

    def gather(self) -> Pending:
        """Start spreading this rank's share of the new weights to all."""
        if self.axis.size == 1:
            return Pending(self.flat, None)
        pending = start_gather(self.flat[self.share].clone(), self.axis)
        return _CopyInto(self.flat, pending)


class _CopyInto(Pending):
    def __init__(self, target: Tensor, source: Pending) -> None:
        self.target, self.source = target, source

    def wait(self) -> Tensor:
        return self.target.copy_(self.source.wait())


class DataParallel:
    """The buckets of this rank's weights, and the count of the gradients that each still waits for."""

    def __init__(
        self,
        weights: Iterable[tuple[Parameter, Kind, int]],
        mesh: Mesh,
        bucket_bytes: float,
        gradient_type: torch.dtype,
    ) -> None:
        """`weights` yields `(weight, kind, gradients a micro-batch)` in the order of the forward pass."""
        weights = list(weights)
        self.buckets: list[Bucket] = []
        self.per_micro_batch = {weight: count for weight, _, count in weights}
        limit = bucket_bytes / torch.empty((), dtype=gradient_type).element_size()
        kinds = list(dict.fromkeys(kind for _, kind, _ in weights))
        for kind in kinds:
            batch: list[Parameter] = []
            for weight in reversed([w for w, k, _ in weights if k == kind]):
                if batch and sum(w.numel() for w in batch) + weight.numel() > limit:
                    self.buckets.append(Bucket(batch, kind, mesh, gradient_type))
                    batch = []
                batch.append(weight)
            self.buckets.append(Bucket(batch, kind, mesh, gradient_type))
        self.home = {weight: bucket for bucket in self.buckets for weight in bucket.weights}
        self.missing: dict[Bucket, int] = {}
        for weight in self.home:
            weight.gradient_added = self._added
            weight.register_post_accumulate_grad_hook(_move_gradient)

    def start_step(self, micro_batches: int) -> None:
        """Clear the gradients; each weight will add `micro_batches` times its own count."""
        for bucket in self.buckets:
            bucket.gradient.zero_()
            bucket.pending = None
            self.missing[bucket] = micro_batches * sum(self.per_micro_batch[w] for w in bucket.weights)

    def _added(self, weight: Tensor) -> None:
        assert isinstance(weight, Parameter)
        bucket = self.home[weight]
        self.missing[bucket] -= 1
        assert self.missing[bucket] >= 0, "more gradients than micro-batches"
        if self.missing[bucket] == 0 and bucket.kind.sum_over.size == 1:
            bucket.reduce()

    def finish_step(self) -> None:
        """After the last backward pass: sum what several ranks hold together, and start what is left.

        Every rank takes the buckets in one order here, so that collectives of several axes never cross.
        """
        for bucket in self.buckets:
            assert self.missing[bucket] == 0, f"{self.missing[bucket]} gradients are missing from a bucket"
            if bucket.kind.sum_over.size > 1:
                all_reduce(bucket.gradient, bucket.kind.sum_over)
                bucket.reduce()


def _move_gradient(weight: Tensor) -> None:
    """Autograd's own gradient (norms) goes into the bucket too."""
    assert isinstance(weight, Parameter) and weight.main_grad is not None
    if weight.grad is None:  # a matrix: its product has added the gradient already
        return
    weight.main_grad.add_(weight.grad)
    weight.grad = None
    announce(weight)
