"""AdamW on this rank's shares of the buckets, the clip by global norm, and the learning-rate schedule."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ziya import config
from megatron_ziya.parallel.data import Bucket, DataParallel
from megatron_ziya.parallel.invariant import square_sum
from megatron_ziya.parallel.mesh import Mesh
from ziya_kernels import Kernels


@dataclass
class State:
    """Master weights and Adam moments of this rank's share of a bucket, all flat."""

    bucket: Bucket
    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    @classmethod
    def of(cls, bucket: Bucket) -> "State":
        share = bucket.flat[bucket.share]
        same = share.dtype == bucket.gradient_type  # then the weights themselves are the masters
        master = share if same else share.to(bucket.gradient_type)
        return cls(bucket, master, torch.zeros_like(master), torch.zeros_like(master))


class AdamW:
    """arXiv 1711.05101, with FP32 masters; weight decay on matrices only."""

    def __init__(self, data: DataParallel, options: config.Optimizer, mesh: Mesh, kernels: Kernels) -> None:
        self.data, self.options, self.mesh, self.kernels = data, options, mesh, kernels
        self.states = [State.of(bucket) for bucket in data.forward_order]

    def step(self, number: int, learning_rate: float, gradient_scale: float, loss: float = 0.0) -> float:
        """Update the weights from the reduced gradients times `gradient_scale`; `number` counts from 1.

        Returns the global norm of the scaled gradients before clipping. When it or the loss is not finite, nothing is
        changed.
        The weights travel on while this returns (`DataParallel.arrive`), those that the forward pass needs first ahead.
        """
        norm = self.norm() * gradient_scale
        if not math.isfinite(norm) or not math.isfinite(loss):
            return norm
        o = self.options
        # torch.nn.utils.clip_grad_norm_ adds the same 1e-6
        clip = min(1.0, o.clip / (norm + 1e-6)) if o.clip > 0 else 1.0
        for state in self.states:
            self.kernels.adamw(
                state.master, state.exp_avg, state.exp_avg_sq, state.bucket.summed(), learning_rate, o.beta1, o.beta2,
                o.eps, o.weight_decay if state.bucket.kind.decay else 0.0, number, gradient_scale * clip,
            )  # fmt: skip
            state.bucket.flat[state.bucket.share].copy_(state.master)
            state.bucket.gather()
        return norm

    def norm(self) -> float:
        """Euclidean norm of all reduced gradients, every logical weight counted once whatever the layout."""
        counted = [bucket for bucket in self.data.buckets if bucket.kind.counted]
        if self.data.invariant:
            return math.sqrt(square_sum([bucket.summed() for bucket in counted], self.mesh))
        total = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        for bucket in counted:
            total += torch.linalg.vector_norm(bucket.summed()).double().square()
        if self.mesh.size > 1:
            dist.all_reduce(total)
        return math.sqrt(total.item())


def learning_rate(step: int, steps: int, o: config.Optimizer) -> float:
    """The rate of `step` (0-based) of `steps`: linear warm-up, then what `schedule` says, down to `minimum`.

    The first step already moves: warm-up gives step k the share (k + 1) / warm-up steps of the peak. After it the
    rates are those of transformers' cosine_with_min_lr, warmup_stable_decay and constant_with_warmup.
    """
    warmup = round(o.warmup * steps)
    if step < warmup:
        return o.learning_rate * (step + 1) / warmup
    if o.schedule == "constant":
        return o.learning_rate
    decay = round(o.decay * steps) if o.schedule == "wsd" else steps - warmup
    progress = max(0, step - (steps - decay)) / max(1, decay)
    if o.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = 1 - (progress if o.decay_shape == "linear" else math.sqrt(progress))
    return o.minimum + (o.learning_rate - o.minimum) * left
