"""Head and loss in one: the logits of all tokens never exist at once.

    a chunk of tokens at a time:   L = X W^T    loss = lse - L[target]    dL = seed (exp(L - lse) - [j = target])
                                   dX = dL W    dW = dW + dL^T X

dL is written over L, and the gradients are worked out while a chunk is there, as Liger's fused linear cross entropy and
cut cross-entropy (arXiv:2411.09009) do; so the forward pass is all the work, and the backward pass only scales. The
products are PyTorch's, the loss is two functions over a share of the vocabulary: `cross_entropy.py`'s kernels, or
`reference_loss.py`'s twins of them.

R: ranks that share the vocabulary, v: columns of a share.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK = 1024  # tokens; 1,024 x 39,424 BF16 logits are 80 MB

Share = Callable[[Tensor, Tensor, int], Tensor]
ShareGradient = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def whole(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """numbers [3 R, T] of all shares (`cross_entropy_share`) -> the vocabulary's log-sum-exp and the target's score."""
    largest, total, chosen = numbers.view(-1, 3, numbers.shape[1]).unbind(1)
    most = largest.amax(0)
    return most + (total * (largest - most).exp()).sum(0).log(), chosen.sum(0)


def chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    seed: Tensor,
    existing: int,
    share: Share,
    share_gradient: ShareGradient,
    exchange: Callable[[Tensor], Tensor],
    add: Callable[[Tensor, Tensor], None] | None,
) -> tuple[Tensor, Tensor | None]:
    """hidden [T, H], weight [v, H], targets [T] in this share's columns, seed [T] (the gradient of each token's loss).

    exchange: [3, T] -> [3 R, T], this rank's numbers -> those of all shares. add: takes dL and X of each chunk; None =
    no gradients are wanted. Returns the loss of each token [T], and dX [T, H] of this share.
    """
    losses, d_hidden = [], None if add is None else torch.empty_like(hidden)
    for start in range(0, len(hidden), CHUNK):
        part = slice(start, start + CHUNK)
        logits = hidden[part] @ weight.t()
        lse, chosen = whole(exchange(share(logits, targets[part], existing)))
        losses.append(lse - chosen)
        if add is None or d_hidden is None:
            continue
        d_logits = share_gradient(logits, targets[part], lse, seed[part], existing)
        torch.mm(d_logits, weight, out=d_hidden[part])
        add(d_logits, hidden[part])
    return torch.cat(losses), d_hidden


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, share: Share, gradient: ShareGradient, wanted: bool
    ) -> Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        d_weight: Tensor | None = None

        def add(d_logits: Tensor, inputs: Tensor) -> None:
            nonlocal d_weight
            part = d_logits.t() @ inputs
            d_weight = part.to(wide) if d_weight is None else d_weight.add_(part)

        seed = torch.ones(len(hidden), dtype=wide, device=hidden.device)
        losses, d_hidden = chunked(
            hidden, weight, targets, seed, len(weight), share, gradient, lambda one: one, add if wanted else None
        )
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        # in place: the weight's gradient is as large as the weight. A second pass over a kept graph is then refused.
        return *(gradient.mul_(seed) for gradient in ctx.saved_tensors), None, None, None, None


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, share: Share, share_gradient: ShareGradient) -> Tensor:
    """hidden [T, H], weight [V, H], targets [T] int64 in 0..V-1 -> the sum of the losses, in FP32 (FP64 stays).

    Raises ValueError for shapes that do not fit each other.
    """
    if hidden.dim() != 2 or weight.shape[1:] != hidden.shape[1:] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"head_loss: hidden is {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets "
            f"{tuple(targets.shape)}; they must be [T, H], [V, H] and [T]"
        )
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _HeadLoss.apply(hidden, weight, targets, share, share_gradient, wanted)
