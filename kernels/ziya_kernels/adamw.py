"""AdamW (Loshchilov & Hutter 2019), one pass over flat FP32 tensors: 16 bytes read and 12 written a parameter.

g = grad * grad_scale          p = p (1 - lr weight_decay)
m = m + (1 - b1) (g - m)       v = b2 v + (1 - b2) g^2
p = p - lr / (1 - b1^step) * m / (sqrt(v) / sqrt(1 - b2^step) + eps)
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ziya_kernels.launch import check

BLOCK = 1024


@triton.jit
def adamw_kernel(
    master_ptr: tl.tensor,  # [n] float32, as all four
    exp_avg_ptr: tl.tensor,
    exp_avg_sq_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    count: tl.tensor,  # n
    keep: tl.tensor,  # 1 - lr * weight_decay
    step_size: tl.tensor,  # lr / (1 - beta1^step)
    one_minus_beta1: tl.tensor,
    beta2: tl.tensor,
    one_minus_beta2: tl.tensor,
    root_bias2: tl.tensor,  # sqrt(1 - beta2^step)
    eps: tl.tensor,
    grad_scale: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    grad = tl.load(grad_ptr + index, mask=mask) * grad_scale
    master = tl.load(master_ptr + index, mask=mask) * keep
    exp_avg = tl.load(exp_avg_ptr + index, mask=mask)
    exp_avg_sq = tl.load(exp_avg_sq_ptr + index, mask=mask)
    exp_avg += one_minus_beta1 * (grad - exp_avg)
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad
    denominator = tl.div_rn(tl.sqrt_rn(exp_avg_sq), root_bias2) + eps
    tl.store(exp_avg_ptr + index, exp_avg, mask=mask)
    tl.store(exp_avg_sq_ptr + index, exp_avg_sq, mask=mask)
    tl.store(master_ptr + index, master - step_size * tl.div_rn(exp_avg, denominator), mask=mask)


def adamw(
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """One AdamW step in place on flat FP32 tensors [n]; step counts from 1; grad is not changed.

    Equal to `torch.optim.AdamW` to rounding. Raises ValueError for tensors that are not flat, contiguous and FP32.
    """
    assert step >= 1, step
    check("adamw", master=master, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, grad=grad)
    for name, tensor in (("master", master), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("grad", grad)):
        if tensor.dtype != torch.float32 or tensor.shape != (master.numel(),) or not tensor.is_contiguous():
            raise ValueError(
                f"adamw: {name} is {tensor.dtype} {tuple(tensor.shape)}; it must be flat, contiguous, float32 and "
                f"as long as master ({master.numel()})"
            )
    adamw_kernel[(triton.cdiv(master.numel(), BLOCK),)](
        master,
        exp_avg,
        exp_avg_sq,
        grad,
        master.numel(),
        1 - lr * weight_decay,
        lr / (1 - beta1**step),
        1 - beta1,
        beta2,
        1 - beta2,
        math.sqrt(1 - beta2**step),
        eps,
        float(grad_scale),
        BLOCK=BLOCK,
        num_warps=4,
    )
