"""Scale, causal mask and softmax in one pass over the scores: Ziya2's fused operator, for any number of keys.

    y_j = exp(a x_j - max) / sum_k exp(a x_k - max)   over the keys j that the query sees
    dx_j = a y_j (dy_j - sum_k y_k dy_k)

FP32 inside. One program a query. A row of up to 16,384 keys stays on the chip; a longer one is read twice.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ziya_kernels.launch import as_rows, check, row_warps

WIDEST_BLOCK = 16384


@triton.jit
def _scores(x_ptr: tl.tensor, column: tl.tensor, keys: tl.tensor, seen: tl.tensor, scale: tl.tensor) -> tl.tensor:
    # the causal bound is not part of the load's mask: it would break the load into 2-byte pieces
    x = tl.load(x_ptr + column, mask=column < keys, other=0.0).to(tl.float32)
    return tl.where(column < seen, x * scale, -float("inf"))


@triton.jit
def softmax_forward_kernel(
    x_ptr: tl.tensor,  # [rows, Sk]
    y_ptr: tl.tensor,  # [rows, Sk] contiguous
    x_row: tl.tensor,  # stride
    queries: tl.tensor,  # Sq
    keys: tl.tensor,  # Sk
    scale: tl.tensor,
    CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr,  # the row is one block
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_row
    y_ptr += row * keys
    seen = keys
    if CAUSAL:
        seen = (row % queries + keys - queries + 1).to(tl.int32)
    column = tl.arange(0, BLOCK)
    if WHOLE:
        x = _scores(x_ptr, column, keys, seen, scale)
        exponent = tl.exp(x - tl.max(x))
        y = exponent / tl.sum(exponent)
        tl.store(y_ptr + column, y.to(y_ptr.dtype.element_ty), mask=column < keys)
    else:
        top = tl.full([BLOCK], -1e30, dtype=tl.float32)
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for start in range(0, seen, BLOCK):
            x = _scores(x_ptr, start + column, keys, seen, scale)
            higher = tl.maximum(top, x)
            total = total * tl.exp(top - higher) + tl.exp(x - higher)
            top = higher
        highest = tl.max(top)
        inverse = 1.0 / tl.sum(total * tl.exp(top - highest))
        for start in range(0, keys, BLOCK):
            y = tl.exp(_scores(x_ptr, start + column, keys, seen, scale) - highest) * inverse
            tl.store(y_ptr + start + column, y.to(y_ptr.dtype.element_ty), mask=start + column < keys)


@triton.jit
def softmax_backward_kernel(
    grad_ptr: tl.tensor,  # [rows, Sk]
    y_ptr: tl.tensor,  # [rows, Sk] contiguous
    out_ptr: tl.tensor,  # [rows, Sk] contiguous
    grad_row: tl.tensor,  # stride
    keys: tl.tensor,  # Sk
    scale: tl.tensor,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    grad_ptr += row * grad_row
    y_ptr += row * keys
    out_ptr += row * keys
    column = tl.arange(0, BLOCK)
    if WHOLE:
        mask = column < keys
        y = tl.load(y_ptr + column, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + column, mask=mask, other=0.0).to(tl.float32)
        out = scale * y * (grad - tl.sum(y * grad))
        tl.store(out_ptr + column, out.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for start in range(0, keys, BLOCK):
            mask = start + column < keys
            y = tl.load(y_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
            total += y * tl.load(grad_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
        projection = tl.sum(total)
        for start in range(0, keys, BLOCK):
            mask = start + column < keys
            y = tl.load(y_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
            grad = tl.load(grad_ptr + start + column, mask=mask, other=0.0).to(tl.float32)
            out = scale * y * (grad - projection)
            tl.store(out_ptr + start + column, out.to(out_ptr.dtype.element_ty), mask=mask)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, scale: float, causal: bool) -> Tensor:
        queries, keys = scores.shape[-2:]
        x = as_rows(scores)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        block = min(triton.next_power_of_2(keys), WIDEST_BLOCK)
        softmax_forward_kernel[(len(x),)](
            x,
            y,
            x.stride(0),
            queries,
            keys,
            scale,
            CAUSAL=causal,
            WHOLE=keys <= block,
            BLOCK=block,
            num_warps=row_warps(block),
        )
        ctx.save_for_backward(y)
        ctx.scale = scale
        return y.view(scores.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        keys = y.shape[-1]
        grad_rows = as_rows(grad)
        out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
        block = min(triton.next_power_of_2(keys), WIDEST_BLOCK)
        softmax_backward_kernel[(len(y),)](
            grad_rows,
            y,
            out,
            grad_rows.stride(0),
            keys,
            ctx.scale,
            WHOLE=keys <= block,
            BLOCK=block,
            num_warps=row_warps(block),
        )
        return out.view(grad.shape), None, None


def softmax(scores: Tensor, scale: float, causal: bool) -> Tensor:
    """scores [..., Sq, Sk] -> softmax(scale * scores) over keys, in scores' type.

    causal: query i sees key j iff j <= i + Sk - Sq. Raises ValueError where a query would see no key (Sq > Sk).
    """
    check("softmax", scores=scores)
    if causal and scores.shape[-2] > scores.shape[-1]:
        raise ValueError(f"{scores.shape[-2]} queries over {scores.shape[-1]} keys: the first would see no key")
    return _Softmax.apply(scores, float(scale), causal)
