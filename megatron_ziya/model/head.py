"""The head and the loss in one: the logits of the whole batch never exist at once.

Logits are made a chunk of tokens at a time, in FP32 for the softmax, and the gradients are worked out while a chunk
is there, as Liger's and Apple's cut-cross-entropy do. `parallel/cross_entropy.py` splits the vocabulary by overriding
the small methods of `Head`. Where the kernels have a loss of their own (`Kernels.fused_head`: on a GPU), the scores
stay in the model's type and become their own gradient in place.

Letters: T tokens, H hidden, V vocabulary (a rank's share with tensor parallel).
"""

from typing import Any

import torch
from torch import Tensor, nn

from megatron_ziya.model.linear import Parameter, add_weight_gradient, announce, product
from ziya_kernels import Kernels
from ziya_kernels.head_loss import CHUNK, chunked


class Head(nn.Module):
    """Scores over the vocabulary and the next-token loss."""

    def __init__(self, vocabulary: int, hidden: int, kernels: Kernels) -> None:
        super().__init__()
        self.vocabulary = self.existing = vocabulary
        self.kernels = kernels
        self.weight = Parameter(torch.empty(vocabulary, hidden))

    def forward(self, x: Tensor, targets: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Returns `(scale * sum of losses, the loss of each token [T])`.

        The first is the root of the backward pass: when the weight has a `main_grad`, its gradient is added there in
        the forward pass, so nothing may be multiplied onto it afterwards. The second carries no gradient.
        """
        # inside a Function gradients are always off, so whether they are wanted is found out here
        wanted = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        return _HeadLoss.apply(x, self.weight, targets, mask, scale, self, wanted)

    def logits(self, x: Tensor) -> Tensor:
        """`[T, H]` -> `[T, V]`."""
        return product(self.gather(x), self.weight)

    # One process holds the whole vocabulary: nothing to gather, nothing to combine.

    def gather(self, x: Tensor) -> Tensor:
        """The hidden states of all tokens, from this rank's share."""
        return x

    def scatter_gradient(self, d_hidden: Tensor) -> Tensor:
        """The reverse of `gather`, for the gradient: this rank's share of the sum over ranks."""
        return d_hidden

    def local_targets(self, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of this rank's weight for the targets, and where they are really here (None = everywhere)."""
        return targets, None

    def exchange(self, numbers: Tensor) -> Tensor:
        """`[3, T]` of this rank's share (`Kernels.cross_entropy_share`) -> `[3 R, T]` of all R ranks that have one."""
        return numbers

    def exponentials(self, scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn `scores [T, V]` into exp(score - shift), in place.

        Returns the shift, the sum of the exponentials and the score of the target, each `[T]`, over the whole
        vocabulary.
        """
        largest = scores.amax(dim=-1)
        torch.softmax(scores, dim=-1, out=scores)  # one pass, where subtracting, exp and the sum are three
        shift = largest - scores.amax(dim=-1).log_()  # the largest probability is 1 / sum of exp(score - largest)
        return shift, torch.ones_like(shift), chosen


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, scale: float, head: Head, wanted: bool
    ) -> tuple[Tensor, Tensor]:
        work_out = _by_kernels if head.kernels.fused_head else _by_passes
        token_losses, *gradients = work_out(head, head.gather(x), weight, targets, mask, scale, wanted)
        ctx.head, ctx.weight, ctx.gradients = head, weight, gradients
        ctx.mark_non_differentiable(token_losses)
        return token_losses.sum() * scale, token_losses

    @staticmethod
    def backward(ctx: Any, seed: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.gradients
        ctx.gradients = None
        d_hidden = ctx.head.scatter_gradient(d_hidden)
        if getattr(ctx.weight, "apart", False) and d_weight is not None:
            ctx.weight.main_grad.add_(d_weight)
            d_weight = None
        if d_weight is None:
            announce(ctx.weight)
        else:
            d_hidden, d_weight = d_hidden * seed, d_weight * seed
        return d_hidden, d_weight, None, None, None, None, None


Worked = tuple[Tensor, Tensor | None, Tensor | None]
"""The loss of each token `[T]`, and the gradients of hidden states and weight, where they are wanted and not added."""


def _by_passes(
    head: Head, hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, scale: float, wanted: bool
) -> Worked:
    losses, d_hidden, d_weight = [], torch.empty_like(hidden) if wanted else None, None
    for start in range(0, len(hidden), CHUNK):
        part = slice(start, start + CHUNK)
        logits = product(hidden[part], weight)  # [chunk, V]
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        rows, here = head.local_targets(targets[part])
        chosen = scores.gather(1, rows[:, None])[:, 0]
        chosen = chosen if here is None else torch.where(here, chosen, 0.0)
        shift, total, target = head.exponentials(scores, chosen)  # from here on scores holds exponentials
        losses.append(torch.where(mask[part], total.log() + shift - target, 0.0))
        if d_hidden is None:
            continue
        # d loss / d score = softmax - one_hot, written over the exponentials
        seed = mask[part].to(scores.dtype) * scale
        scores.mul_((seed / total)[:, None])
        scores.scatter_add_(1, rows[:, None], -(seed if here is None else seed * here)[:, None])
        d_logits = scores.to(hidden.dtype)
        d_hidden[part] = product(d_logits, weight.t())
        d_weight = _add(weight, d_logits, hidden[part], d_weight)
    return torch.cat(losses), d_hidden, d_weight


def _by_kernels(
    head: Head, hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, scale: float, wanted: bool
) -> Worked:
    rows, here = head.local_targets(targets)
    rows = rows if here is None else torch.where(here, rows, -1)
    seed = mask.to(torch.promote_types(hidden.dtype, torch.float32)) * scale
    d_weight: Tensor | None = None

    def add(d_logits: Tensor, inputs: Tensor) -> None:
        nonlocal d_weight
        d_weight = _add(weight, d_logits, inputs, d_weight)

    share, share_gradient = head.kernels.cross_entropy_share, head.kernels.cross_entropy_share_gradient
    losses, d_hidden = chunked(
        hidden, weight, rows, seed, head.existing, share, share_gradient, head.exchange, add if wanted else None
    )
    return torch.where(mask, losses, 0.0), d_hidden, d_weight


def _add(weight: Tensor, d_logits: Tensor, inputs: Tensor, before: Tensor | None) -> Tensor | None:
    """Add a chunk's gradient of the weight to its buffer; where that cannot be, return it added to `before`."""
    if getattr(weight, "apart", False):  # `main_grad` may still be the previous micro-batch's
        part: Tensor | None = (d_logits.t() @ inputs).to(torch.promote_types(inputs.dtype, torch.float32))
    else:
        part = add_weight_gradient(weight, d_logits, inputs, last=False)
    return before if part is None else part if before is None else before + part
