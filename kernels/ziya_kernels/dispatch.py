"""Which implementation runs is a value of the recipe: `select(name, device)` returns the functions, ready to call."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from ziya_kernels import apex, compiled, reference, reference_loss

CHOICES = ("auto", "triton", "torch", "compiled", "apex")


@dataclass(frozen=True)
class Kernels:
    """The operators, all of one signature whatever runs below; `reference.py` documents each."""

    name: str
    device: torch.device
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rms_norm_residual: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    rotary: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    rotary_qkv: Callable[[Tensor, int, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    attention: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    attention_varlen: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    swiglu: Callable[[Tensor], Tensor]
    cross_entropy: Callable[[Tensor, Tensor], Tensor]
    cross_entropy_share: Callable[[Tensor, Tensor, int], Tensor]
    cross_entropy_share_gradient: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
    head_loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    softmax: Callable[[Tensor, float, bool], Tensor]
    adamw: Callable[..., None]
    fused_head: bool = False
    """The head takes its loss from `cross_entropy_share`, instead of its own passes over FP32 scores: on a GPU."""
    cost: Callable[[], str] = str
    """What making the operators took so far, in words; empty when nothing is made at run time."""

    def describe(self) -> str:
        """One line for the log: the choice, the device, and the operators by the file that they come from."""
        others = ("name", "device", "fused_head", "cost")
        operators = [field.name for field in fields(self) if field.name not in others]
        homes: dict[str, list[str]] = {}
        for operator in operators:
            homes.setdefault(getattr(self, operator).__module__.split(".")[-1], []).append(operator)
        listed = "; ".join(f"{home}: {' '.join(found)}" for home, found in homes.items())
        return f"kernels={self.name} on {self.device}; {listed}"


def _torch(device: torch.device) -> Kernels:
    return Kernels(
        name="torch",
        device=device,
        rms_norm=reference.rms_norm,
        rms_norm_residual=reference.rms_norm_residual,
        rotary=reference.rotary,
        rotary_qkv=reference.rotary_qkv,
        attention=reference.attention,
        attention_varlen=reference.attention_varlen,
        swiglu=reference.swiglu,
        cross_entropy=reference_loss.cross_entropy,
        cross_entropy_share=reference_loss.cross_entropy_share,
        cross_entropy_share_gradient=reference_loss.cross_entropy_share_gradient,
        head_loss=reference_loss.head_loss,
        softmax=reference.softmax,
        adamw=reference.adamw,
    )


def _triton(device: torch.device) -> Kernels:
    # imported here: Triton is no dependency of a machine without a GPU
    from ziya_kernels import adamw, attention, cross_entropy, launch, rms_norm, rotary, softmax, swiglu

    if device.type != "cuda" and not launch.interpreted():
        raise ValueError(f"kernels='triton' cannot run on {device}; use kernels=torch, or auto, or a GPU")
    return Kernels(
        name="triton",
        device=device,
        rms_norm=rms_norm.rms_norm,
        rms_norm_residual=rms_norm.rms_norm_residual,
        rotary=rotary.rotary,
        rotary_qkv=rotary.rotary_qkv,
        attention=attention.attention,
        attention_varlen=attention.attention_varlen,
        swiglu=swiglu.swiglu,
        cross_entropy=cross_entropy.cross_entropy,
        cross_entropy_share=cross_entropy.cross_entropy_share,
        cross_entropy_share_gradient=cross_entropy.cross_entropy_share_gradient,
        head_loss=cross_entropy.head_loss,
        softmax=softmax.softmax,
        adamw=adamw.adamw,
        fused_head=True,
    )


def _compiled(device: torch.device) -> Kernels:
    if device.type != "cpu":
        raise ValueError(f"kernels='compiled' is made for a CPU, not for {device}; use kernels=triton, or auto")
    compiled.require()
    codes = compiled.Codes()
    return replace(
        _torch(device),
        name="compiled",
        rms_norm=codes.rms_norm,
        rms_norm_residual=codes.rms_norm_residual,
        rotary=codes.rotary,
        rotary_qkv=codes.rotary_qkv,
        attention=codes.attention,
        swiglu=codes.swiglu,
        cost=codes.cost,
    )


def select(name: str, device: torch.device) -> Kernels:
    """The operators called `name` (auto, triton, torch, compiled or apex) for tensors on `device`.

    auto is triton on a GPU where it is installed, otherwise torch. compiled is torch with the operators of
    `compiled.py`, which need a C++ compiler at run time; on a CPU alone. apex takes RMSNorm and Adam from NVIDIA apex
    and the rest from auto, the RMSNorm of a sum too. Raises ValueError for an unknown name and for one that cannot run
    here, saying what to use.
    """
    if name not in CHOICES:
        raise ValueError(f"kernels={name!r} is not known; use one of {', '.join(CHOICES)}")
    with_triton = device.type == "cuda" and find_spec("triton") is not None
    if name == "compiled":
        return _compiled(device)
    if name == "apex":
        if device.type != "cuda":
            raise ValueError(f"kernels='apex' cannot run on {device}; use kernels=torch, or auto, or a GPU")
        apex.require()
        rest = _triton(device) if with_triton else _torch(device)
        return replace(rest, name="apex", rms_norm=apex.rms_norm, adamw=apex.adamw)
    if name == "triton" and find_spec("triton") is None:
        raise ValueError("kernels='triton' needs the package triton, which is not installed; use kernels=torch")
    if name == "triton" or (name == "auto" and with_triton):
        return _triton(device)
    return _torch(device)
