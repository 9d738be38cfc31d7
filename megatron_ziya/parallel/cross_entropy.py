"""Head and loss over a vocabulary that is split over the tensor-parallel axis.

The softmax needs three numbers a token from the other ranks: the largest score, the sum of exponentials, and the
score of the target, which one rank alone has (arXiv 1909.08053, section 3). The logits are never gathered.

Letters: T tokens, t this rank's share, H hidden, v this rank's rows of the vocabulary.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ziya.model.head import Head
from megatron_ziya.model.linear import Parameter
from megatron_ziya.parallel.collectives import all_reduce, start_gather, start_reduce_scatter
from megatron_ziya.parallel.mesh import Axis
from megatron_ziya.parallel.tensor import vocabulary_share


class VocabParallelHead(Head):
    def __init__(self, plain: Head, axis: Axis, sequence: bool) -> None:
        torch.nn.Module.__init__(self)
        self.vocabulary, self.axis, self.sequence = plain.vocabulary, axis, sequence
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

    def exponentials(self, scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores[:, self.existing :] = float("-inf")  # padding takes no probability and gets no gradient
        largest = all_reduce(scores.amax(dim=-1), self.axis, dist.ReduceOp.MAX)
        total = scores.sub_(largest[:, None]).exp_().sum(dim=-1)
        total, target = all_reduce(torch.stack([total, chosen]), self.axis)
        return largest, total, target
