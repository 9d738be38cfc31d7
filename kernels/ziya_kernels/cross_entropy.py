"""Cross entropy a token, FP32 inside.

    lse = log sum_j exp(x_j)     loss = lse - x_target     dx_j = (exp(x_j - lse) - [j = target]) dloss

Forward: one row a program, one reading of the logits (running maximum and sum). Backward: one reading, one writing.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ziya_kernels.launch import check

BLOCK = 4096


@triton.jit
def cross_entropy_forward_kernel(
    logits_ptr: tl.tensor,  # [T, V]
    target_ptr: tl.tensor,  # [T] int64
    loss_ptr: tl.tensor,  # [T] float32
    lse_ptr: tl.tensor,  # [T] float32
    logits_row: tl.tensor,  # stride
    vocabulary: tl.tensor,  # V
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
    lse = highest + tl.log(tl.sum(total * tl.exp(top - highest)))
    tl.store(lse_ptr + row, lse)
    tl.store(loss_ptr + row, lse - tl.load(logits_ptr + target).to(tl.float32))


@triton.jit
def cross_entropy_backward_kernel(
    logits_ptr: tl.tensor,  # [T, V]
    target_ptr: tl.tensor,  # [T] int64
    lse_ptr: tl.tensor,  # [T] float32
    grad_ptr: tl.tensor,  # [T] float32, any stride, 0 too
    out_ptr: tl.tensor,  # [T, V] contiguous
    logits_row: tl.tensor,  # strides
    grad_row: tl.tensor,
    vocabulary: tl.tensor,  # V
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < vocabulary
    x = tl.load(logits_ptr + row * logits_row + column, mask=mask, other=0.0).to(tl.float32)
    probability = tl.exp(x - tl.load(lse_ptr + row))
    hit = column == tl.load(target_ptr + row)
    out = tl.where(hit, probability - 1.0, probability) * tl.load(grad_ptr + row * grad_row)
    tl.store(out_ptr + row * vocabulary + column, out.to(out_ptr.dtype.element_ty), mask=mask)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        tokens, vocabulary = logits.shape
        loss, lse = torch.empty(2, tokens, dtype=torch.float32, device=logits.device)
        cross_entropy_forward_kernel[(tokens,)](
            logits, targets, loss, lse, logits.stride(0), vocabulary, BLOCK=BLOCK, num_warps=8
        )
        ctx.save_for_backward(logits, targets, lse)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets, lse = ctx.saved_tensors
        tokens, vocabulary = logits.shape
        out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        cross_entropy_backward_kernel[(tokens, triton.cdiv(vocabulary, BLOCK))](
            logits,
            targets,
            lse,
            grad,
            out,
            logits.stride(0),
            grad.stride(0),
            vocabulary,
            BLOCK=BLOCK,
            num_warps=8,
        )
        return out, None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [T, V], targets [T] int64 in 0..V-1 -> loss [T] in FP32 (natural logarithm, no reduction).

    Raises ValueError for FP64 logits, other shapes, or targets of another type or device. The range of the targets
    is not checked here: that would wait for the GPU at every step.
    """
    check("cross_entropy", logits=logits)
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"cross_entropy: logits {tuple(logits.shape)} and targets {tuple(targets.shape)} {targets.dtype}; "
            "they must be [T, V] and [T] int64"
        )
    if targets.device != logits.device:
        raise ValueError(f"cross_entropy: targets are on {targets.device} but logits on {logits.device}; move one")
    return _CrossEntropy.apply(logits if logits.stride(1) == 1 else logits.contiguous(), targets.contiguous())
