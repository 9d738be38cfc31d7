"""Data parallel with ZeRO-1 (arXiv 1910.02054): gradient buckets, reduced while the backward pass still runs.

Weights of one kind lie one after another in buckets, last layers first, since their gradients come first. A bucket
has a flat buffer of the weights (each weight is a view of it) and a flat FP32 buffer of the gradients (each
`main_grad` is a view of it). Both are padded to a multiple of the data-parallel size; rank r owns the r-th share of
the sums and updates only that share of the weights.

The new weights are spread over the ranks while the next forward pass already runs: buckets go in the order in which
that pass needs them, and each module waits for its bucket right before it reads it (`arrive_before_use`).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from megatron_ziya.model.linear import Parameter, announce
from megatron_ziya.parallel.bucket import Bucket, Kind
from megatron_ziya.parallel.invariant import TreeBucket
from megatron_ziya.parallel.mesh import Mesh

__all__ = ["Bucket", "DataParallel", "Kind"]


class DataParallel:
    """The buckets of this rank's weights, and the count of the gradients that each still waits for."""

    def __init__(
        self,
        weights: Iterable[tuple[Parameter, Kind, int]],
        mesh: Mesh,
        bucket_bytes: float,
        gradient_type: torch.dtype,
        invariant: bool = False,
    ) -> None:
        """`weights` yields `(weight, kind, gradients a micro-batch)` in the order of the forward pass."""
        weights, self.invariant = list(weights), invariant
        bucket_type = TreeBucket if invariant else Bucket
        self.buckets: list[Bucket] = []
        self.per_micro_batch = {weight: count for weight, _, count in weights}
        limit = bucket_bytes / torch.empty((), dtype=gradient_type).element_size()
        kinds = list(dict.fromkeys(kind for _, kind, _ in weights))
        for kind in kinds:
            batch: list[Parameter] = []
            for weight in reversed([w for w, k, _ in weights if k == kind]):
                if batch and sum(w.numel() for w in batch) + weight.numel() > limit:
                    self.buckets.append(bucket_type(batch, kind, mesh, gradient_type))
                    batch = []
                batch.append(weight)
            self.buckets.append(bucket_type(batch, kind, mesh, gradient_type))
        self.home = {weight: bucket for bucket in self.buckets for weight in bucket.weights}
        self.missing: dict[Bucket, int] = {}
        self.uses: dict[Parameter, int] = {}  # gradients still to come to a weight in this micro-batch
        self.forward_order = list(dict.fromkeys(self.home[weight] for weight, _, _ in weights))
        for weight in self.home:
            weight.gradient_added = self._added
            weight.register_post_accumulate_grad_hook(_move_gradient)

    def arrive_before_use(self, model: nn.Module) -> None:
        """Have each module of `model` that holds a weight wait for the weight's bucket right before it runs."""
        for module in model.modules():
            if self.buckets[0].axis.size > 1 and module._parameters.get("weight") is not None:
                module.register_forward_pre_hook(self._arrive)

    def _arrive(self, module: nn.Module, _: object) -> None:
        weight = module.weight
        assert isinstance(weight, Parameter)
        self.home[weight].arrive()

    def arrive(self) -> None:
        """Wait for all weights: before a checkpoint, an evaluation or the end."""
        for bucket in self.forward_order:
            bucket.arrive()

    def start_step(self, micro_batches: int) -> None:
        """Clear the gradients; each weight will add `micro_batches` times its own count."""
        self.uses = dict(self.per_micro_batch)
        for bucket in self.buckets:
            bucket.start_step(micro_batches)
            self.missing[bucket] = micro_batches * sum(self.per_micro_batch[w] for w in bucket.weights)

    def _added(self, weight: Tensor) -> None:
        assert isinstance(weight, Parameter)
        bucket = self.home[weight]
        self.uses[weight] -= 1
        if self.uses[weight] == 0:
            self.uses[weight] = self.per_micro_batch[weight]
            bucket.completed(weight)
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
                bucket.sum_over_holders()
                bucket.reduce()


def _move_gradient(weight: Tensor) -> None:
    """Autograd's own gradient (norms) goes into the bucket too."""
    if weight.grad is None:  # a matrix: its product has added the gradient already
        return
    assert isinstance(weight, Parameter) and weight.main_grad is not None
    weight.main_grad.add_(weight.grad)
    weight.grad = None
    announce(weight)
