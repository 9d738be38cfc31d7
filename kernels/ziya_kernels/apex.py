"""NVIDIA apex's RMSNorm and Adam behind this package's signatures, where apex is really installed.

PyPI's `apex` is another package that installs a module of the same name, so apex is known by its symbols alone.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

ABSENT = (
    "kernels='apex' needs NVIDIA apex built with its CUDA extensions ({missing} is missing; PyPI's apex is another "
    "package); build it from NVIDIA's sources, or use kernels=auto"
)


def _symbol(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        raise ValueError(ABSENT.format(missing=f"{module}.{name}")) from None


def require() -> None:
    """Raise ValueError unless the symbols that this file calls are there."""
    _symbol("apex.normalization", "FusedRMSNorm")
    _symbol("apex.optimizers", "FusedAdam")
    _symbol("amp_C", "multi_tensor_adam")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H], weight [H] -> [..., H] in x's type. See `reference.rms_norm`."""
    name = "fused_rms_norm_affine" if x.dtype == weight.dtype else "mixed_dtype_fused_rms_norm_affine"
    fused = _symbol("apex.normalization.fused_layer_norm", name)
    return fused(x, weight, weight.shape, eps).to(x.dtype)


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
    """One AdamW step in place on flat FP32 tensors [n]. See `reference.adamw`."""
    multi_tensor_adam = _symbol("amp_C", "multi_tensor_adam")
    overflow = torch.zeros(1, dtype=torch.int32, device=master.device)
    scaled = grad if grad_scale == 1.0 else grad * grad_scale
    chunk, decoupled, bias_correction = 2048 * 32, 1, 1
    multi_tensor_adam(
        chunk,
        overflow,
        [[scaled], [master], [exp_avg], [exp_avg_sq]],
        lr,
        beta1,
        beta2,
        eps,
        step,
        decoupled,
        bias_correction,
        weight_decay,
    )
