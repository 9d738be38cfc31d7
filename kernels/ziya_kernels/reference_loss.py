"""Plain PyTorch twins of cross_entropy.py: what a CPU runs, and the oracle of its kernels.

Computed in FP32 (FP64 stays), as everything in reference.py.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziya_kernels import head_loss as fused
from ziya_kernels.reference import _block, _blocks, _wide

# --- cross entropy: logsumexp(logits) - logits[target]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        loss = torch.empty(targets.shape, dtype=_wide(logits.dtype), device=logits.device)
        for part in _blocks(logits.shape[0], logits.shape[1], logits.device):
            log_probabilities = logits[part].to(loss.dtype).log_softmax(-1)
            loss[part] = log_probabilities.gather(1, targets[part].unsqueeze(1)).squeeze(1).neg_()
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        for part in _blocks(logits.shape[0], logits.shape[1], logits.device):
            weight = grad[part].unsqueeze(1)
            room = out[part] if out.dtype == grad.dtype else None  # straight into the result: a quarter less in FP32
            probabilities = torch.softmax(logits[part].to(grad.dtype), -1, out=room).mul_(weight)
            probabilities.scatter_add_(1, targets[part].unsqueeze(1), -weight)
            if room is None:
                out[part] = probabilities
        return out, None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [T, V], targets [T] int64 in 0..V-1 -> loss [T] in FP32 (natural logarithm, no reduction)."""
    if logits.numel() <= _block(logits.device):  # one block: nothing to save, and PyTorch's own has fewer calls
        return F.cross_entropy(logits.to(_wide(logits.dtype)), targets, reduction="none")
    return _CrossEntropy.apply(logits, targets)


# --- The same over the columns that one rank has of the vocabulary

LOWEST = -1e30
"""The largest score of a share without columns: finite, so that it counts for nothing in a log-sum-exp."""


def cross_entropy_share(logits: Tensor, targets: Tensor, existing: int) -> Tensor:
    """logits [T, v], of which the first `existing` columns count, targets [T] int64 in the share's columns -> [3, T]:

    the largest score, the sum of exp(score - largest), and the score of the target, 0 where another share has it (it is
    outside of 0..existing-1). FP32; `head_loss.whole` puts the shares together (arXiv:1909.08053, section 3).
    """
    numbers = torch.zeros(3, len(logits), dtype=_wide(logits.dtype), device=logits.device)
    numbers[0] = LOWEST
    here = (targets >= 0) & (targets < existing)
    rows = torch.where(here, targets, 0).unsqueeze(1)
    for part in _blocks(len(logits) if existing else 0, logits.shape[1], logits.device):
        scores = logits[part, :existing].to(numbers.dtype)
        largest = scores.amax(-1)
        chosen = scores.gather(1, rows[part]).squeeze(1)
        numbers[0, part], numbers[1, part] = largest, (scores - largest.unsqueeze(1)).exp_().sum(-1)
        numbers[2, part] = torch.where(here[part], chosen, 0.0)
    return numbers


def cross_entropy_share_gradient(logits: Tensor, targets: Tensor, lse: Tensor, seed: Tensor, existing: int) -> Tensor:
    """logits and targets as in `cross_entropy_share`, lse [T] of the whole vocabulary, seed [T] -> d logits [T, v].

    d logits = (exp(logits - lse) - one_hot(target)) seed, 0 in the padding, written over `logits`.
    """
    here = (targets >= 0) & (targets < existing)
    rows = torch.where(here, targets, 0).unsqueeze(1)
    for part in _blocks(len(logits) if existing else 0, logits.shape[1], logits.device):
        gradient = logits[part, :existing].to(lse.dtype).sub(lse[part].unsqueeze(1)).exp_()
        gradient.scatter_add_(1, rows[part], -here[part].to(lse.dtype).unsqueeze(1))
        logits[part, :existing] = gradient.mul_(seed[part].unsqueeze(1))
    logits[:, existing:] = 0.0
    return logits


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """See `head_loss.head_loss`."""
    return fused.head_loss(hidden, weight, targets, cross_entropy_share, cross_entropy_share_gradient)
