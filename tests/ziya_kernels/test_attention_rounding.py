"""What 16-bit attention may round: the probabilities before they meet V and dO, dS before Q and K, and the results.

All else is FP32 (the scores, their maximum and sum, lse, delta, the sums of products), and the rule of two in
test_operators.py would not see it if it were not: PyTorch's own 16-bit error is as large. So the roundings above are
made here by hand in FP64, and the kernels' error may not be more than that: their maximum is a running one, so their
probabilities are rounded at other places, which is another draw of the same errors. Over a tensor's thousands of
elements two draws differ by some percent; another rounding of the size of the last one makes 1.4 times the error.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

B, S, N, K, D = 1, 150, 4, 2, 64
ANOTHER_DRAW = 1.1


def inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, v, starts, dO; two documents, longer than a block of queries and of keys."""
    generator = torch.Generator().manual_seed(11)
    q, k, v, grad = (torch.randn(B, S, heads, D, generator=generator).to(dtype) for heads in (N, K, K, N))
    starts = torch.zeros(B, S, dtype=torch.int32)
    starts[:, 60:] = 60
    return q, k, v, starts, grad


def by_hand(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, grad: Tensor, dtype: torch.dtype, out: Tensor | None = None
) -> list[Tensor]:
    """O, dQ, dK and dV in FP64 with the roundings to `dtype` that are allowed; `out` is what delta is made of."""

    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).double()

    def grouped(x: Tensor) -> Tensor:  # [B, N, S, D] -> the sum over the heads of a group, [B, S, K, D]
        return x.unflatten(1, (K, N // K)).sum(2).transpose(1, 2)

    q, k, v, grad = (x.double().transpose(1, 2) for x in (q, k, v, grad))
    k, v = (x.repeat_interleave(N // K, 1) for x in (k, v))
    index = torch.arange(S)
    seen = (index <= index[:, None]) & (index >= starts[..., None])
    scores = (q @ k.transpose(2, 3) / math.sqrt(D)).masked_fill(~seen[:, None], -math.inf)
    exponents = (scores - scores.amax(-1, keepdim=True)).exp()
    total = exponents.sum(-1, keepdim=True)
    result = rounded(rounded(exponents) @ v / total)
    delta = ((result if out is None else out.double().transpose(1, 2)) * grad).sum(-1, keepdim=True)
    p = exponents / total
    d_scores = rounded(p * (grad @ v.transpose(2, 3) - delta))
    d_q = d_scores @ k / math.sqrt(D)
    d_k = grouped(d_scores.transpose(2, 3) @ q / math.sqrt(D))
    d_v = grouped(rounded(p).transpose(2, 3) @ grad)
    return [result.transpose(1, 2), *(rounded(x) for x in (d_q.transpose(1, 2), d_k, d_v))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_nothing_else_is_rounded(dtype: torch.dtype, interpreted: Callable[..., Any]) -> None:
    q, k, v, starts, grad = inputs(dtype)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    (out,), gradients, _ = interpreted("attention", (*leaves, starts), (grad,))
    truth = by_hand(q, k, v, starts, grad, torch.float64)
    allowed = by_hand(q, k, v, starts, grad, dtype, out)
    for name, want, near, have in zip(("o", "dq", "dk", "dv"), truth, allowed, (out, *gradients), strict=True):
        ratio = float((have - want).norm() / (near - want).norm())
        assert ratio <= ANOTHER_DRAW, f"{name}: {ratio:.3f} times the error of the allowed roundings"
