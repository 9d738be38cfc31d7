"""Head and loss over a vocabulary that is split over the tensor-parallel axis.

The softmax needs three numbers a token from the other ranks: the largest score, the sum of exponentials, and the
score of the target, which one rank alone has (arXiv 1909.08053, section 3). The logits are never gathered.

A head that is spread over the pipeline stages as well (arXiv 2411.05288) must not have them wait for each other: what
it computes comes in two parts, and the three numbers travel between them.

Letters: T tokens, t this rank's share, H hidden, v this rank's rows of the vocabulary, R ranks that share it.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_ziya.model.head import Head
from megatron_ziya.model.linear import Parameter, add_weight_gradient, product
from megatron_ziya.parallel.collectives import (
    Pending,
    all_reduce,
    start_all_reduce,
    start_gather,
    start_reduce_scatter,
)
from megatron_ziya.parallel.mesh import Axis, Mesh
from megatron_ziya.parallel.tensor import vocabulary_share


class VocabParallelHead(Head):
    def __init__(self, plain: Head, axis: Axis, sequence: bool) -> None:
        torch.nn.Module.__init__(self)
        self.vocabulary, self.axis, self.sequence, self.kernels = plain.vocabulary, axis, sequence, plain.kernels
        self.first, rows, self.existing = vocabulary_share(plain.vocabulary, axis)
        self.weight = Parameter(plain.weight.new_empty(rows, plain.weight.shape[1]))

    def gather(self, x: Tensor) -> Tensor:
        return start_gather(x, self.axis).wait() if self.sequence else x

    def scatter_gradient(self, d_hidden: Tensor) -> Tensor:
        if self.sequence:
            return start_reduce_scatter(d_hidden, self.axis).wait()
        return all_reduce(d_hidden, self.axis)

    def local_targets(self, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        here = (targets >= self.first) & (targets < self.first + self.existing)
        return torch.where(here, targets - self.first, 0), here

    def exchange(self, numbers: Tensor) -> Tensor:
        return start_gather(numbers, self.axis).wait()

    def exponentials(self, scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores[:, self.existing :] = float("-inf")  # padding takes no probability and gets no gradient
        largest = all_reduce(scores.amax(dim=-1), self.axis, dist.ReduceOp.MAX)
        total = scores.sub_(largest[:, None]).exp_().sum(dim=-1)
        total, target = all_reduce(torch.stack([total, chosen]), self.axis)
        return largest, total, target


class SpreadHead(nn.Module):
    """A rank's share of a head that is spread over the ranks of `Mesh.head`: stages x tensor-parallel ranks.

    Calling it is the first part, `S` of the schedule: the scores `[T, v]`. `gradient` is the second, `T`. In between
    the exponentials of the scores are kept, FP32, of this rank's share alone; where the kernels have a loss of their
    own (`Kernels.fused_head`), the scores themselves, in the model's type.
    """

    def __init__(self, plain: Head, mesh: Mesh, sequence: bool) -> None:
        super().__init__()
        self.vocabulary, self.axis, self.tensor, self.sequence = plain.vocabulary, mesh.head, mesh.tensor, sequence
        self.kernels = plain.kernels
        self.first, rows, self.existing = vocabulary_share(plain.vocabulary, self.axis)
        self.weight = Parameter(plain.weight.new_empty(rows, plain.weight.shape[1]))

    @torch.no_grad()
    def forward(self, x: Tensor, targets: Tensor, mask: Tensor, scale: float) -> "Scores":
        """`x` is `[t, H]` with sequence parallel, else `[T, H]`; the rest as for `Head`."""
        hidden = start_gather(x, self.tensor).wait() if self.sequence else x
        logits = product(hidden, self.weight)
        here = (targets >= self.first) & (targets < self.first + self.existing)
        rows = torch.where(here, targets - self.first, 0)
        seed = mask.to(torch.promote_types(logits.dtype, torch.float32)) * scale
        if self.kernels.fused_head:
            rows = torch.where(here, rows, -1)
            own = self.kernels.cross_entropy_share(logits, rows, self.existing)
            return Scores(hidden, logits, own[0], rows, here, mask, seed, start_gather(own, self.axis))
        scores = logits.to(seed.dtype)
        chosen = torch.where(here, scores.gather(1, rows[:, None])[:, 0], 0.0)
        scores[:, self.existing :].fill_(float("-inf"))  # padding takes no probability and gets no gradient
        largest = scores.amax(dim=-1).clamp_(min=torch.finfo(scores.dtype).min)  # a share may be padding alone
        total = scores.sub_(largest[:, None]).exp_().sum(dim=-1)
        numbers = start_gather(torch.stack([largest, total, chosen]), self.axis)
        return Scores(hidden, scores, largest, rows, here, mask, seed, numbers)

    @torch.no_grad()
    def gradient(self, scores: "Scores") -> tuple[Tensor, Tensor]:
        """Add the gradient of the weight to its buffer. `scores` cannot be used again.

        Returns the gradient of `x` that comes from this stage's shares, and the loss of each token `[T]`.
        """
        largest, total, chosen = scores.numbers.wait().view(self.axis.size, 3, -1).unbind(1)  # each [R, T]
        most = largest.amax(dim=0)
        total = (total * (largest - most).exp()).sum(dim=0)
        losses = torch.where(scores.mask, total.log() + most - chosen.sum(dim=0), 0.0)
        if self.kernels.fused_head:
            lse = total.log() + most
            own = scores.values, scores.rows, lse, scores.seed, self.existing
            d_logits = self.kernels.cross_entropy_share_gradient(*own)
        else:
            # d loss / d score = softmax - one_hot, written over the exponentials
            factor = scores.seed * (scores.largest - most).exp() / total
            d_scores = scores.values.mul_(factor[:, None])
            d_scores.scatter_add_(1, scores.rows[:, None], -(scores.seed * scores.here)[:, None])
            d_logits = d_scores.to(scores.hidden.dtype)
        start = start_reduce_scatter if self.sequence else start_all_reduce
        d_hidden = start(product(d_logits, self.weight.t()), self.tensor)
        add_weight_gradient(self.weight, d_logits, scores.hidden)
        return d_hidden.wait(), losses


@dataclass
class Scores:
    """What `S` leaves for `T`. Each `[T]` where nothing else is said."""

    hidden: Tensor
    """`[T, H]`"""
    values: Tensor
    """exp(score - largest) `[T, v]`; with `Kernels.fused_head` the scores as they are."""
    largest: Tensor
    """Of this rank's scores."""
    rows: Tensor
    """Rows of this rank's weight for the targets."""
    here: Tensor
    """Where they are really here."""
    mask: Tensor
    seed: Tensor
    """Gradient of each token's loss."""
    numbers: Pending
    """Under way from all ranks: largest score, sum of exponentials, score of the target, `[3 R, T]`."""
