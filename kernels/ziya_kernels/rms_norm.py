"""RMSNorm (Zhang & Sennrich 2019), statistics in FP32; alone, or of a sum with the residual.

    rstd = 1 / sqrt(mean(x^2) + eps)            y = x rstd w
    dx   = rstd (w dy - x rstd^2 mean(x w dy))  dw = sum over rows of dy x rstd

With a residual r, x + r takes x's place, rounded to their type, and is written too, as the residual of what follows; dx
gets the gradient of that sum added, and is the gradient of both. Two kernels would read the sum once more each way.

Forward: one row a program. Backward: a fixed number of programs walks over the rows, each with its own partial sum
of dw in FP32; the partial sums are added afterwards, in a fixed order, so that dw is the same on every run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ziya_kernels.launch import as_rows, check, interpreted, row_block, row_warps


@triton.jit
def rms_norm_forward_kernel(
    x_ptr: tl.tensor,  # [rows, H]
    residual_ptr: tl.tensor,  # [rows, H], not read unless RESIDUAL
    weight_ptr: tl.tensor,  # [H]
    y_ptr: tl.tensor,  # [rows, H] contiguous
    total_ptr: tl.tensor,  # [rows, H] contiguous, not written unless RESIDUAL
    rstd_ptr: tl.tensor,  # [rows] float32
    x_row: tl.tensor,  # strides
    residual_row: tl.tensor,
    size: tl.tensor,  # H
    eps: tl.tensor,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < size
    x = tl.load(x_ptr + row * x_row + column, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        residual = tl.load(residual_ptr + row * residual_row + column, mask=mask, other=0.0).to(tl.float32)
        total = (x + residual).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * size + column, total, mask=mask)
        x = total.to(tl.float32)  # what is stored is what is normalised, here and in the backward pass
    weight = tl.load(weight_ptr + column, mask=mask).to(tl.float32)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(x * x) / size + eps)
    tl.store(rstd_ptr + row, rstd)
    tl.store(y_ptr + row * size + column, (x * rstd * weight).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def rms_norm_backward_kernel(
    grad_ptr: tl.tensor,  # [rows, H]
    grad_total_ptr: tl.tensor,  # [rows, H], not read unless RESIDUAL
    x_ptr: tl.tensor,  # [rows, H]
    weight_ptr: tl.tensor,  # [H]
    rstd_ptr: tl.tensor,  # [rows] float32
    grad_x_ptr: tl.tensor,  # [rows, H] contiguous
    partial_ptr: tl.tensor,  # [programs, H] float32
    grad_row: tl.tensor,  # strides
    grad_total_row: tl.tensor,
    x_row: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,  # H
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    mask = column < size
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([BLOCK], dtype=tl.float32)
    for index in range(program, rows, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        grad = tl.load(grad_ptr + row * grad_row + column, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * x_row + column, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        normal = x * rstd
        grad_weight += grad * normal
        grad *= weight
        grad_x = rstd * (grad - normal * (tl.sum(grad * normal) / size))
        if RESIDUAL:
            grad_total = grad_total_ptr + row * grad_total_row + column
            grad_x += tl.load(grad_total, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + row * size + column, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
    tl.store(partial_ptr + program.to(tl.int64) * size + column, grad_weight, mask=mask)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Any:
        rows = as_rows(x)
        others = rows if residual is None else as_rows(residual)
        count, size = rows.shape
        y = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
        total = rows if residual is None else torch.empty(rows.shape, dtype=x.dtype, device=x.device)
        rstd = torch.empty(count, dtype=torch.float32, device=x.device)
        block = row_block("rms_norm", size)
        rms_norm_forward_kernel[(count,)](
            rows,
            others,
            weight,
            y,
            total,
            rstd,
            rows.stride(0),
            others.stride(0),
            size,
            eps,
            RESIDUAL=residual is not None,
            BLOCK=block,
            num_warps=row_warps(block),
        )
        ctx.save_for_backward(total, weight, rstd)
        return y.view(x.shape) if residual is None else (y.view(x.shape), total.view(x.shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_total: Tensor | None = None) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        count, size = x.shape
        grad_rows = as_rows(grad)
        total_rows = grad_rows if grad_total is None else as_rows(grad_total)
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        programs = min(count, _programs(x.device))
        partial = torch.empty(programs, size, dtype=torch.float32, device=x.device)
        block = row_block("rms_norm", size)
        rms_norm_backward_kernel[(programs,)](
            grad_rows,
            total_rows,
            x,
            weight,
            rstd,
            grad_x,
            partial,
            grad_rows.stride(0),
            total_rows.stride(0),
            x.stride(0),
            count,
            size,
            RESIDUAL=grad_total is not None,
            BLOCK=block,
            num_warps=row_warps(block),
        )
        grad_x = grad_x.view(grad.shape)
        return grad_x, None if grad_total is None else grad_x, partial.sum(0).to(weight.dtype), None


def _programs(device: torch.device) -> int:
    """How many programs share the rows in the backward pass: two a multiprocessor."""
    return 3 if interpreted() else 2 * torch.cuda.get_device_properties(device).multi_processor_count


def _check(operator: str, x: Tensor, weight: Tensor) -> None:
    if weight.shape != x.shape[-1:] or weight.device != x.device:
        raise ValueError(
            f"{operator}: weight is {tuple(weight.shape)} on {weight.device}, x {tuple(x.shape)} on {x.device}; "
            "weight must be [H] on the device of x"
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H], weight [H] of any float type -> [..., H] in x's type.

    Raises ValueError for FP64, tensors on different devices, another size of weight, or H past 65,536.
    """
    check("rms_norm", x=x)
    _check("rms_norm", x, weight)
    return _RMSNorm.apply(x, None, weight.contiguous(), eps)


def rms_norm_residual(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x and residual [..., H] of one type, weight [H] -> (the norm of x + residual, x + residual), both [..., H].

    Raises ValueError as `rms_norm` does, and for a residual of another shape or type.
    """
    check("rms_norm_residual", x=x, residual=residual)
    _check("rms_norm_residual", x, weight)
    if residual.shape != x.shape:
        raise ValueError(f"rms_norm_residual: residual is {tuple(residual.shape)}, x {tuple(x.shape)}; must be equal")
    return _RMSNorm.apply(x, residual, weight.contiguous(), eps)
