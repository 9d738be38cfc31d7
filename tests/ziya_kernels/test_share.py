"""The loss over a vocabulary cut into shares, and the head that never holds all logits: against F.cross_entropy.

Each share has columns beyond the ones that exist, with scores that would win if they counted.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ziya_kernels import head_loss, reference_loss, select

TOKENS, VOCABULARY = 7, 5000
CUTS = {"uneven": (11, 4990, 5000), "one": (5000,), "one of padding alone": (4000, 5000, 5000)}


def whole(logits: Tensor, targets: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and the gradient of the logits, by PyTorch in the type of the logits, the loss in FP32 at least."""
    leaf = logits.clone().requires_grad_()
    losses = F.cross_entropy(leaf.to(torch.promote_types(leaf.dtype, torch.float32)), targets, reduction="none")
    losses.backward(seed.to(losses.dtype))
    assert leaf.grad is not None
    return losses.detach(), leaf.grad


def shared(
    ask: Callable[..., Any], logits: Tensor, targets: Tensor, seed: Tensor, cuts: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The same from the shares' numbers: forward of all, exchange, backward of all."""
    shares, numbers, begin = [], [], 0
    for end in cuts:
        padded = F.pad(logits[:, begin:end], (0, 30), value=1000.0).contiguous()
        shares.append((padded, targets - begin, end - begin))
        numbers.append(ask("cross_entropy_share", *shares[-1]))
        begin = end
    lse, chosen = head_loss.whole(torch.cat(numbers))
    gradients = []
    for padded, rows, existing in shares:
        gradient = ask("cross_entropy_share_gradient", padded, rows, lse, seed, existing)
        assert gradient.shape == padded.shape and not gradient[:, existing:].any()
        gradients.append(gradient[:, :existing])
    return lse - chosen, torch.cat(gradients, 1)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
def test_shares_give_the_loss_of_the_whole(cuts, dtype, implementation, interpreted) -> None:
    """Twice PyTorch's FP32 error on the same scores, and for the gradient the one rounding to its type on top."""
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(TOKENS, VOCABULARY, generator=generator)).to(dtype)
    targets = torch.tensor([0, 10, 11, 2500, 3999, 4000, 4999])  # the edges of the shares
    seed = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0, 1.0, -1.0])

    def ask(operator: str, *arguments: Any) -> Tensor:
        if implementation == "triton":
            return interpreted(operator, arguments)[0][0]
        return getattr(select("torch", torch.device("cpu")), operator)(*arguments)

    truth = whole(logits.double(), targets, seed.double())
    base = whole(logits.float(), targets, seed)
    found = shared(ask, logits, targets, seed, cuts)
    assert [x.dtype for x in found] == [torch.float32, dtype]
    sizes = float(max(logits.abs().max(), truth[0].max())), 2.0  # of what is subtracted
    for want, near, have, largest in zip(truth, base, found, sizes, strict=True):
        limits = torch.finfo(have.dtype)
        rounding = limits.eps / 2 * want.abs().clamp(min=limits.smallest_normal)
        allowed = 2 * (near - want).abs().max() + torch.finfo(torch.float32).eps * largest + rounding
        assert ((have - want).abs() <= allowed).all()


@pytest.mark.parametrize("tokens", [head_loss.CHUNK - 1, 2 * head_loss.CHUNK + 3])
def test_a_head_of_several_chunks(tokens: int) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(n, 16, dtype=torch.float64, generator=generator) for n in (tokens, 50))
    targets = torch.randint(50, (tokens,), generator=generator)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    want = F.cross_entropy(leaves[0] @ leaves[1].t(), targets, reduction="sum")
    mine = [x.clone().requires_grad_() for x in (hidden, weight)]
    have = reference_loss.head_loss(*mine, targets)
    torch.testing.assert_close(have, want, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(3 * have, mine), torch.autograd.grad(3 * want, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    kept = reference_loss.head_loss(*mine, targets)
    torch.autograd.grad(kept, mine, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # never gradients scaled twice
        torch.autograd.grad(kept, mine)
    with torch.no_grad():
        torch.testing.assert_close(reference_loss.head_loss(hidden, weight, targets), want, rtol=1e-12, atol=0)
