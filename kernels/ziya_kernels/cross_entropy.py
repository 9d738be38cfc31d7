"""Cross entropy a token, FP32 inside, over the whole vocabulary or over one rank's share of it.

    lse = log sum_j exp(x_j)     loss = lse - x_target     dx_j = (exp(x_j - lse) - [j = target]) dloss

Forward: one row a program, one reading of the logits (running maximum and sum). Backward: one reading, one writing.
Of a share, the forward kernel gives the largest score, the sum of exp(x - largest) and the score of the target; the
ranks put theirs together (`head_loss.whole`), and the backward kernel takes the lse that comes of it. v: columns of a
share, of which the last ones may be padding.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ziya_kernels import head_loss as fused
from ziya_kernels.launch import check

BLOCK = 4096


@triton.jit
def cross_entropy_forward_kernel(
    logits_ptr: tl.tensor,  # [T, V] or [T, v]
    target_ptr: tl.tensor,  # [T] int64
    numbers_ptr: tl.tensor,  # float32: loss and lse [2, T]; of a SHARE, largest, sum and score of the target [3, T]
    logits_row: tl.tensor,  # stride
    vocabulary: tl.tensor,  # columns that exist
    SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_row
    target = tl.load(target_ptr + row)
    column = tl.arange(0, BLOCK)
    # one running maximum and sum a lane: no exchange between threads until the row is read
    top = tl.full([BLOCK], -1e30, dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, vocabulary, BLOCK):
        mask = start + column < vocabulary
        x = tl.load(logits_ptr + start + column, mask=mask, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    highest = tl.max(top)
    total = tl.sum(total * tl.exp(top - highest))
    here = (target >= 0) & (target < vocabulary)  # of a whole vocabulary always; else nothing beyond it is read
    chosen = tl.load(logits_ptr + target, mask=here, other=0.0).to(tl.float32)
    tokens = tl.num_programs(0)
    numbers_ptr += row
    if SHARE:
        tl.store(numbers_ptr, highest)
        tl.store(numbers_ptr + tokens, total)
        tl.store(numbers_ptr + tokens * 2, chosen)
    else:
        lse = highest + tl.log(total)
        tl.store(numbers_ptr, lse - chosen)
        tl.store(numbers_ptr + tokens, lse)


@triton.jit
def cross_entropy_backward_kernel(
    logits_ptr: tl.tensor,  # [T, V] or [T, v]
    target_ptr: tl.tensor,  # [T] int64; that of another share is outside of 0..vocabulary-1
    lse_ptr: tl.tensor,  # [T] float32
    grad_ptr: tl.tensor,  # [T] float32, any stride, 0 too
    out_ptr: tl.tensor,  # [T, V] or [T, v] contiguous; may be logits_ptr
    logits_row: tl.tensor,  # strides
    grad_row: tl.tensor,
    vocabulary: tl.tensor,  # columns that exist
    width: tl.tensor,  # V, or v with its padding, whose gradient is 0
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < vocabulary
    x = tl.load(logits_ptr + row * logits_row + column, mask=mask, other=-float("inf")).to(tl.float32)
    probability = tl.exp(x - tl.load(lse_ptr + row))
    hit = (column == tl.load(target_ptr + row)) & mask
    out = tl.where(hit, probability - 1.0, probability) * tl.load(grad_ptr + row * grad_row)
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=column < width)


def _backward(logits: Tensor, targets: Tensor, lse: Tensor, grad: Tensor, out: Tensor, vocabulary: int) -> Tensor:
    tokens, width = logits.shape
    cross_entropy_backward_kernel[(tokens, triton.cdiv(width, BLOCK))](
        logits,
        targets,
        lse,
        grad,
        out,
        logits.stride(0),
        grad.stride(0),
        vocabulary,
        width,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return out


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        tokens, vocabulary = logits.shape
        numbers = torch.empty(2, tokens, dtype=torch.float32, device=logits.device)
        cross_entropy_forward_kernel[(tokens,)](
            logits, targets, numbers, logits.stride(0), vocabulary, SHARE=False, BLOCK=BLOCK, num_warps=8
        )
        loss, lse = numbers
        ctx.save_for_backward(logits, targets, lse)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets, lse = ctx.saved_tensors
        out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        return _backward(logits, targets, lse, grad, out, logits.shape[1]), None


def _check(operator: str, logits: Tensor, targets: Tensor) -> None:
    check(operator, logits=logits)
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"{operator}: logits {tuple(logits.shape)} and targets {tuple(targets.shape)} {targets.dtype}; "
            "they must be [T, V] and [T] int64"
        )
    if targets.device != logits.device:
        raise ValueError(f"{operator}: targets are on {targets.device} but logits on {logits.device}; move one")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [T, V], targets [T] int64 in 0..V-1 -> loss [T] in FP32 (natural logarithm, no reduction).

    Raises ValueError for FP64 logits, other shapes, or targets of another type or device. The range of the targets
    is not checked here: that would wait for the GPU at every step.
    """
    _check("cross_entropy", logits, targets)
    return _CrossEntropy.apply(logits if logits.stride(1) == 1 else logits.contiguous(), targets.contiguous())


def cross_entropy_share(logits: Tensor, targets: Tensor, existing: int) -> Tensor:
    """logits [T, v], targets [T] int64 -> [3, T] FP32; see `reference_loss.cross_entropy_share`.

    Raises ValueError as `cross_entropy` does.
    """
    _check("cross_entropy_share", logits, targets)
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    numbers = torch.empty(3, len(logits), dtype=torch.float32, device=logits.device)
    cross_entropy_forward_kernel[(len(logits),)](
        logits, targets.contiguous(), numbers, logits.stride(0), existing, SHARE=True, BLOCK=BLOCK, num_warps=8
    )
    return numbers


def cross_entropy_share_gradient(logits: Tensor, targets: Tensor, lse: Tensor, seed: Tensor, existing: int) -> Tensor:
    """The gradient of `logits`, written over them; see `reference_loss.cross_entropy_share_gradient`.

    Raises ValueError as `cross_entropy` does.
    """
    _check("cross_entropy_share_gradient", logits, targets)
    assert logits.is_contiguous(), "written over in place"
    return _backward(logits, targets.contiguous(), lse.contiguous(), seed, logits, existing)


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """hidden [T, H], weight [V, H], targets [T] int64 -> the sum of the losses, FP32; see `head_loss.head_loss`."""
    check("head_loss", hidden=hidden, weight=weight)
    return fused.head_loss(hidden, weight, targets, cross_entropy_share, cross_entropy_share_gradient)
