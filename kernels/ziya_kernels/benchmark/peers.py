"""The sides of a comparison. Each is called like our operator and gives results of the same layout.

eager         the formula as transformers writes it, one PyTorch operator after the other (attention: PyTorch's SDPA)
torch fused   where PyTorch has the whole in one operator: F.rms_norm, fused AdamW
compile       eager through torch.compile
liger, flash-attn, apex   on a GPU, where their symbols are found; none is ever required
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from ziya_kernels import Kernels, apex


def _same(*arguments: Any) -> tuple[Any, ...]:
    return arguments


@dataclass(frozen=True)
class Side:
    name: str
    function: Callable[..., Any]
    prepare: Callable[..., tuple[Any, ...]] = _same
    """What a model would do once and not at each call; its time is not counted."""
    gradients: Callable[[Sequence[Tensor]], list[Tensor]] = list
    """Gradients of the prepared arguments -> of ours, for the error."""


def sides(kernel: str, ours: Kernels, compiled: bool) -> list[Side]:
    """Who takes part for this kernel, on the device of `ours`; ours first."""
    operator = kernel.split()[0]
    eager = _eager(operator)
    found = [Side("ours", getattr(ours, operator)), eager]
    whole: dict[str, Callable[..., Any]] = {
        "rms_norm": _fused_norm,
        "rms_norm_residual": _fused_norm_residual,
        "adamw": _adamw(fused=True),
    }
    if operator in whole:
        found.append(Side("torch fused", whole[operator]))
    if compiled:
        torch.compiler.reset()  # else the ninth shape of a function would run as it is
        torch._functorch.config.donated_buffer = False  # the graph is kept and gone back through many times
        found.append(Side("compile", torch.compile(eager.function, dynamic=False), eager.prepare))
    if ours.device.type == "cuda":
        found += [side for side in (liger(operator), _flash(kernel), _apex(operator)) if side is not None]
    return found


def installed() -> dict[str, bool]:
    """Which of the others are really here, by their symbols."""
    return {
        "liger": _symbol("liger_kernel.transformers.functional", "liger_rms_norm") is not None,
        "flash-attn": _symbol("flash_attn", "flash_attn_func") is not None,
        "apex": _symbol("amp_C", "multi_tensor_adam") is not None,
    }


def _symbol(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


# --- PyTorch


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = _wide(x)
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _norm_residual(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _norm(total, weight, eps), total


def _fused_norm_residual(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return _fused_norm(total, weight, eps), total


def _fused_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def _whole_tables(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return q, k, *(torch.cat([table, table], -1).to(q.dtype) for table in (cos, sin))


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    return turned(q), turned(k)


def _whole_qkv_tables(qkv: Tensor, groups: int, cos: Tensor, sin: Tensor) -> tuple[Any, ...]:
    return qkv, groups, *_whole_tables(qkv, qkv, cos, sin)[2:]


def _split_and_rotary(qkv: Tensor, groups: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    heads = qkv.view(*cos.shape[:2], -1, cos.shape[-1])
    keys = heads.shape[2] // (groups + 2)
    q, k, v = heads.split([groups * keys, keys, keys], 2)
    return *_rotary(q, k, cos, sin), v


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return out.transpose(1, 2)


def _with_mask(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> tuple[Any, ...]:
    if starts is None:
        return q, k, v, None
    index = torch.arange(q.shape[1], device=q.device)
    seen = (index <= index[:, None]) & (index >= starts[..., None])
    return q, k, v, seen.unsqueeze(1)


def _attention_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: list[int]) -> Tensor:
    lengths = [end - start for start, end in pairwise(bounds)]
    documents = zip(*(x[None].split(lengths, 1) for x in (q, k, v)), strict=True)
    return torch.cat([_attention(q, k, v, None)[0] for q, k, v in documents])


def _with_list(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> tuple[Any, ...]:
    return q, k, v, bounds.tolist()


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def _softmax(scores: Tensor, scale: float, causal: bool) -> Tensor:
    scaled = _wide(scores) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scaled = scaled.masked_fill(hidden, -math.inf)
    return scaled.softmax(-1).to(scores.dtype)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(_wide(logits), targets, reduction="none")


def _head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(_wide(hidden @ weight.t()), targets, reduction="sum")


def _adamw(fused: bool) -> Callable[..., None]:
    def step(
        master: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor, lr: float, beta1: float, beta2: float,
        eps: float, weight_decay: float, step: int, grad_scale: float = 1.0,
    ) -> None:  # fmt: skip
        steps = torch.tensor(float(step - 1), device=master.device if fused else None)
        torch_adamw(
            [master], [grad * grad_scale], [exp_avg], [exp_avg_sq], [], [steps], foreach=False, fused=fused,
            amsgrad=False, beta1=beta1, beta2=beta2, lr=lr, weight_decay=weight_decay, eps=eps, maximize=False,
        )  # fmt: skip

    return step


def _eager(operator: str) -> Side:
    match operator:
        case "rotary":
            return Side("eager", _rotary, _whole_tables)
        case "rotary_qkv":
            return Side("eager", _split_and_rotary, _whole_qkv_tables)
        case "attention":
            return Side("eager", _attention, _with_mask)
        case "attention_varlen":
            return Side("eager", _attention_varlen, _with_list)
        case "adamw":
            return Side("eager", _adamw(fused=False))
    functions: dict[str, Callable[..., Any]] = {
        "rms_norm": _norm,
        "rms_norm_residual": _norm_residual,
        "swiglu": _swiglu,
        "softmax": _softmax,
        "cross_entropy": _cross_entropy,
        "head_loss": _head_loss,
    }
    return Side("eager", functions[operator])


# --- Others. Liger writes gradients over its inputs, and its loss computes them in the forward pass already.


def liger(operator: str) -> Side | None:
    """Liger-Kernel's side of this operator; None where it has none or is not installed."""
    names = {
        "rms_norm": "rms_norm",
        "rms_norm_residual": "fused_add_rms_norm",
        "swiglu": "swiglu",
        "rotary": "rope",
        "cross_entropy": "cross_entropy",
        "head_loss": "fused_linear_cross_entropy",
    }
    function = _symbol("liger_kernel.transformers.functional", f"liger_{names.get(operator, '')}")
    if function is None:
        return None
    if operator == "swiglu":
        return Side("liger", function, _two_leaves, lambda grads: [torch.cat(list(grads), -1)])
    if operator == "cross_entropy":
        return Side("liger", lambda logits, targets: function(logits, targets, reduction="none"))
    if operator == "head_loss":
        return Side("liger", lambda hidden, weight, targets: function(hidden, weight, targets, reduction="sum"))
    if operator == "rotary":

        def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
            q, k = function(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
            return q.transpose(1, 2), k.transpose(1, 2)

        return Side("liger", rotary, _whole_tables)
    return Side("liger", function)


def _two_leaves(gate_up: Tensor) -> tuple[Tensor, ...]:
    return tuple(half.detach().contiguous().requires_grad_() for half in gate_up.chunk(2, -1))


def _flash(kernel: str) -> Side | None:
    if kernel == "attention":
        plain = _symbol("flash_attn", "flash_attn_func")
        return plain and Side("flash-attn", lambda q, k, v, starts: plain(q, k, v, causal=True))
    if kernel == "attention documents":
        ragged = _symbol("flash_attn", "flash_attn_varlen_func")

        def documents(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
            parts = (x.flatten(0, 1) for x in (q, k, v))
            out: Tensor = ragged(*parts, ends, ends, longest, longest, causal=True)
            return out.view(q.shape)

        return ragged and Side("flash-attn", documents, _with_ends)
    if kernel == "attention_varlen":
        ragged = _symbol("flash_attn", "flash_attn_varlen_func")

        def varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
            out: Tensor = ragged(q, k, v, bounds, bounds, longest, longest, causal=True)
            return out

        return ragged and Side("flash-attn", varlen, _with_longest)
    return None


def _with_longest(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> tuple[Any, ...]:
    return q, k, v, bounds, int(bounds.diff().max())


def _with_ends(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> tuple[Any, ...]:
    ends = F.pad(starts[0].unique(), (0, 1), value=q.shape[1]).int()
    return q, k, v, ends, int(ends.diff().max())


def _apex(operator: str) -> Side | None:
    if operator == "rms_norm" and _symbol("apex.normalization", "FusedRMSNorm"):
        return Side("apex", apex.rms_norm)
    if operator == "adamw" and _symbol("amp_C", "multi_tensor_adam"):
        return Side("apex", apex.adamw)
    if operator == "softmax" and _symbol("scaled_upper_triang_masked_softmax_cuda", "forward"):
        fused = _symbol("apex.transformer.functional.fused_softmax", "ScaledUpperTriangMaskedSoftmax")
        return fused and Side("apex", lambda scores, scale, causal: fused.apply(scores, scale))
    return None
