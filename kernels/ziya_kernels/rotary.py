"""Rotary embedding of query and key in one launch, in place where they lie in the output of one matrix.

    out[:D/2] = x[:D/2] cos - x[D/2:] sin,    out[D/2:] = x[D/2:] cos + x[:D/2] sin

in FP32 whatever the type of x, rounded once. The backward pass is the rotation by the opposite angle. One program
rotates all heads of one token, so that the table is read once a token, and has read them before it writes one of them.
Letters as in the package's docstring.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ziya_kernels.launch import check
from ziya_kernels.reference import parts_of


@triton.jit
def _rotate_heads(
    x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    x_head: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    HEADS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
) -> None:
    head = tl.arange(0, HEADS_BLOCK)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    mask = (head < HEADS) & (column < HALF)
    x_ptr += head * x_head + column
    first = tl.load(x_ptr, mask=mask).to(tl.float32)
    second = tl.load(x_ptr + HALF, mask=mask).to(tl.float32)
    out_ptr += head * (2 * HALF) + column
    tl.store(out_ptr, (first * cos - second * sin).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + HALF, (second * cos + first * sin).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def rotary_kernel(
    q_ptr: tl.tensor,  # [B, S, N, D], any strides but the last
    k_ptr: tl.tensor,  # [B, S, K, D]
    cos_ptr: tl.tensor,  # [B, S, D/2] float32
    sin_ptr: tl.tensor,
    q_out_ptr: tl.tensor,  # the heads of a token one after another; may be q_ptr
    k_out_ptr: tl.tensor,
    length: tl.tensor,  # S
    q_row: tl.tensor,  # strides, in elements
    q_token: tl.tensor,
    q_head: tl.tensor,
    k_row: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    q_out_token: tl.tensor,
    k_out_token: tl.tensor,
    table_row: tl.tensor,
    table_token: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    N_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    SIGN: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    row, token = program // length, program % length
    column = tl.arange(0, HALF_BLOCK)[None, :]
    table = row * table_row + token * table_token + column
    cos = tl.load(cos_ptr + table, mask=column < HALF)
    sin = tl.load(sin_ptr + table, mask=column < HALF) * SIGN
    q_out_ptr += program * q_out_token
    k_out_ptr += program * k_out_token
    _rotate_heads(q_ptr + row * q_row + token * q_token, q_out_ptr, q_head, cos, sin, N, N_BLOCK, HALF, HALF_BLOCK)
    _rotate_heads(k_ptr + row * k_row + token * k_token, k_out_ptr, k_head, cos, sin, K, K_BLOCK, HALF, HALF_BLOCK)


def _launch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, sign: int, q_out: Tensor, k_out: Tensor) -> None:
    """Rotates into q_out and k_out [B, S, N or K, D], whose tokens have one stride, and heads none between them."""
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    rows, length, heads, size = q.shape
    rotary_kernel[(rows * length,)](
        q,
        k,
        cos,
        sin,
        q_out,
        k_out,
        length,
        *q.stride()[:3],
        *k.stride()[:3],
        q_out.stride(1),
        k_out.stride(1),
        *cos.stride()[:2],
        N=heads,
        K=k.shape[2],
        N_BLOCK=triton.next_power_of_2(heads),
        K_BLOCK=triton.next_power_of_2(k.shape[2]),
        HALF=size // 2,
        HALF_BLOCK=triton.next_power_of_2(size // 2),
        SIGN=sign,
        num_warps=8,
    )


def _rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    q_out, k_out = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    _launch(q, k, cos, sin, sign, q_out, k_out)
    return q_out, k_out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotated(q, k, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return (*_rotated(grad_q, grad_k, cos, sin, -1), None, None)


class _RotaryQKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, groups: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.groups, ctx.shape = groups, qkv.shape
        q, k, v = parts_of(qkv, groups, cos)
        _launch(q, k, cos, sin, 1, q, k)
        torch.autograd.graph.increment_version(qkv)  # whoever kept qkv for its own backward pass is told, not deceived
        return q, k, v

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        grad = torch.empty(ctx.shape, dtype=grad_q.dtype, device=grad_q.device)
        q, k, v = parts_of(grad, ctx.groups, cos)
        _launch(grad_q, grad_k, cos, sin, -1, q, k)
        v.copy_(grad_v)
        return grad, None, None, None


def _table(operator: str, size: int, shape: tuple[int, ...], cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    if size % 2 or cos.shape != shape or sin.shape != shape or cos.dtype != torch.float32:
        raise ValueError(
            f"{operator}: heads of {size}, a table of {tuple(cos.shape)} {cos.dtype}; D must be even and the table "
            f"[B, S, D/2] = {list(shape)} float32, as rotary_table gives it"
        )
    return (cos, sin) if cos.stride() == sin.stride() and cos.stride(-1) == 1 else (cos.contiguous(), sin.contiguous())


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, S, N, D], k [B, S, K, D], cos and sin [B, S, D/2] FP32 (`rotary_table`) -> rotated q and k.

    Raises ValueError for mixed types or devices, an odd D, or a table of another shape or type.
    """
    check("rotary", q=q, k=k)
    cos, sin = _table("rotary", q.shape[3], (*q.shape[:2], q.shape[3] // 2), cos, sin)
    return _Rotary.apply(q, k, cos, sin)


def rotary_qkv(qkv: Tensor, groups: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [B S, (N + 2 K) D] -> q rotated, k rotated, v, as views of qkv, which is written over; see
    `reference.rotary_qkv`. The backward pass puts the three gradients together as it rotates two of them.

    Raises ValueError as `rotary` does, and as `reference.parts_of`.
    """
    check("rotary_qkv", qkv=qkv)
    parts_of(qkv, groups, cos)
    cos, sin = _table("rotary_qkv", 2 * cos.shape[-1], cos.shape, cos, sin)
    return _RotaryQKV.apply(qkv if qkv.is_contiguous() else qkv.contiguous(), groups, cos, sin)
