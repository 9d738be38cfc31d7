"""SwiGLU on one fused projection (Shazeer 2020).

    y = silu(g) u,  silu(g) = g s,  s = 1 / (1 + exp(-g))
    du = dy g s     dg = dy u s (1 + g (1 - s))

g and u are the two halves of the last axis. Only the input is kept: s is computed again in the backward pass, which
writes both gradients into one buffer of the input's shape.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ziya_kernels.launch import as_rows, check

BLOCK = 1024


@triton.jit
def swiglu_forward_kernel(
    x_ptr: tl.tensor,  # [rows, 2F]
    y_ptr: tl.tensor,  # [rows, F] contiguous
    x_row: tl.tensor,  # stride
    width: tl.tensor,  # F
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    x_ptr += row * x_row
    gate = tl.load(x_ptr + column, mask=mask).to(tl.float32)
    up = tl.load(x_ptr + width + column, mask=mask).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def swiglu_backward_kernel(
    grad_ptr: tl.tensor,  # [rows, F]
    x_ptr: tl.tensor,  # [rows, 2F]
    grad_x_ptr: tl.tensor,  # [rows, 2F] contiguous
    grad_row: tl.tensor,  # strides
    x_row: tl.tensor,
    width: tl.tensor,  # F
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    x_ptr += row * x_row
    grad = tl.load(grad_ptr + row * grad_row + column, mask=mask).to(tl.float32)
    gate = tl.load(x_ptr + column, mask=mask).to(tl.float32)
    up = tl.load(x_ptr + width + column, mask=mask).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    grad_gate = grad * up * (sigmoid + silu * (1.0 - sigmoid))
    grad_x_ptr += row * 2 * width
    tl.store(grad_x_ptr + column, grad_gate.to(grad_x_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_x_ptr + width + column, (grad * silu).to(grad_x_ptr.dtype.element_ty), mask=mask)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        x = as_rows(gate_up)
        rows, width = x.shape[0], x.shape[1] // 2
        y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
        swiglu_forward_kernel[(rows, triton.cdiv(width, BLOCK))](x, y, x.stride(0), width, BLOCK=BLOCK, num_warps=4)
        ctx.save_for_backward(x)
        return y.view(*gate_up.shape[:-1], width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_rows = as_rows(grad)
        rows, width = grad_rows.shape
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        swiglu_backward_kernel[(rows, triton.cdiv(width, BLOCK))](
            grad_rows, x, grad_x, grad_rows.stride(0), x.stride(0), width, BLOCK=BLOCK, num_warps=4
        )
        return grad_x.view(*grad.shape[:-1], 2 * width)


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2F], gate first -> silu(gate) * up [..., F]. Raises ValueError for an odd last size or FP64."""
    check("swiglu", gate_up=gate_up)
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up has a last size of {gate_up.shape[-1]}; it holds gate and up, so must be even")
    return _SwiGLU.apply(gate_up)
