"""RMSNorm, rotary, SwiGLU and attention of short sequences made by torch's compiler (inductor, C++), for a CPU.

Each reads its input once and writes its output once, where the plain twin makes a pass an operation; what that is worth
in a step stands in docs/speed.md. A function is compiled for each shape that it meets, when it meets it, which takes
seconds of one core, once a machine: inductor keeps what it has made on disk, and the ranks of a run share it. Without
dynamo, whose guards cost more a call than a small kernel.
The formulas are `reference.py`'s, so results differ by the rounding of another order of sums.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziya_kernels import attention_short, reference

SHAPES = 16
"""A function that meets more shapes than this (text of growing length, say) leaves the others to the plain twin."""


class Compiled:
    """Calls of `function`, which takes tensors and numbers, compiled for each combination of shapes and numbers."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.made: dict[Any, Callable[..., Any]] = {}
        self.seconds = 0.0
        """Spent on compiling so far."""

    def __call__(self, *arguments: Any) -> Any:
        key = tuple((a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in arguments)
        made = self.made.get(key)
        if made is None:
            if len(self.made) == SHAPES:
                return self.function(*arguments)
            made = self.made[key] = self._make(arguments)
        return made(*(a for a in arguments if isinstance(a, Tensor)))

    def _make(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        from torch._inductor import compile as compile_graph
        from torch._inductor import config
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.utils._python_dispatch import _disable_current_modes

        begin = time.perf_counter()
        tensors: list[Any] = [a for a in arguments if isinstance(a, Tensor)]

        def call(*given: Tensor) -> Any:
            rest = iter(given)
            return self.function(*(next(rest) if isinstance(a, Tensor) else a for a in arguments))

        # no pool of compiling processes for so few kernels; and a mode would see the tracing, not the run
        with torch.no_grad(), _disable_current_modes(), config.patch(compile_threads=1):
            made: Callable[..., Any] = compile_graph(make_fx(call)(*tensors), tensors)
            made(*tensors)
        self.seconds += time.perf_counter() - begin
        return made


def _wide(x: Tensor) -> Tensor:
    return x.to(reference._wide(x.dtype))


# --- RMSNorm: y = x * rsqrt(mean(x^2) + eps) * weight


def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = _wide(x)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * rstd * weight).to(x.dtype), rstd


def _norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    wide, grad_wide = _wide(x), _wide(grad)
    product = grad_wide * wide
    projection = (product * weight).sum(-1, keepdim=True)
    grad_weight = (product * rstd).reshape(-1, x.shape[-1]).sum(0)
    grad_x = grad_wide * rstd * weight - wide * (projection * rstd * rstd * rstd / x.shape[-1])
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype)


def _norm_of_sum(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    total = x + residual
    return *_norm(total, weight, eps), total


def _norm_of_sum_backward(
    grad: Tensor, grad_total: Tensor, total: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight = _norm_backward(grad, total, weight, rstd)
    return grad_x + grad_total, grad_weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, codes: "Codes") -> Tensor:
        out, rstd = codes.norm(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.codes = codes
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *ctx.codes.norm_backward(grad, *ctx.saved_tensors), None, None


class _RMSNormOfSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float, codes: "Codes"
    ) -> tuple[Tensor, Tensor]:
        out, rstd, total = codes.norm_of_sum(x, residual, weight, eps)
        ctx.save_for_backward(total, weight, rstd)
        ctx.codes = codes
        return out, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.codes.norm_of_sum_backward(grad, grad_total, *ctx.saved_tensors)
        return grad_x, grad_x, grad_weight, None, None


# --- rotary: (a, b) -> (a cos - b sin, b cos + a sin), a and b the two halves of a head


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2) * sign

    def turned(x: Tensor) -> Tensor:
        a, b = _wide(x).chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

    return turned(q), turned(k)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, codes: "Codes") -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.codes = codes
        rotated_q, rotated_k = codes.rotate(q, k, cos, sin, 1.0)  # comes as a list, which autograd would not look into
        return rotated_q, rotated_k

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        return *ctx.codes.rotate(grad_q, grad_k, *ctx.saved_tensors, -1.0), None, None, None


# --- SwiGLU: silu(gate) * up


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = _wide(gate_up).chunk(2, -1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def _swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    gate, up = _wide(gate_up).chunk(2, -1)
    grad, share = _wide(grad), torch.sigmoid(gate)
    parts = grad * up * share * (1 + gate * (1 - share)), grad * gate * share
    return torch.cat([part.to(gate_up.dtype) for part in parts], -1)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, codes: "Codes") -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.codes = codes
        out: Tensor = codes.swiglu_forward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.codes.swiglu_backward(grad, *ctx.saved_tensors), None


class Codes:
    """The operators of one process, with what was compiled for them."""

    def __init__(self) -> None:
        self.norm, self.norm_backward = Compiled(_norm), Compiled(_norm_backward)
        self.norm_of_sum, self.norm_of_sum_backward = Compiled(_norm_of_sum), Compiled(_norm_of_sum_backward)
        self.rotate = Compiled(_rotate)
        self.swiglu_forward, self.swiglu_backward = Compiled(_swiglu), Compiled(_swiglu_backward)
        self.attend, self.attend_backward = Compiled(attention_short.forward), Compiled(attention_short.backward)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `reference.rms_norm`."""
        return _RMSNorm.apply(x, weight, eps, self)

    def rms_norm_residual(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `reference.rms_norm_residual`."""
        return _RMSNormOfSum.apply(x, residual, weight, eps, self)

    def rotary(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """See `reference.rotary`."""
        return _Rotary.apply(q, k, cos, sin, self)

    def rotary_qkv(self, qkv: Tensor, groups: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `reference.rotary_qkv`."""
        return reference.rotary_qkv(qkv, groups, cos, sin, self.rotary)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """See `reference.swiglu`."""
        return _SwiGLU.apply(gate_up, self)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
        """See `reference.attention`."""

        def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention_short.attention(q, k, v, self.attend, self.attend_backward)

        return reference.attention(q, k, v, starts, products)

    def cost(self) -> str:
        """What compiling took so far, in words."""
        codes = [code for code in vars(self).values() if isinstance(code, Compiled)]
        number = sum(len(code.made) for code in codes)
        return f"compiled {number} kernels in {sum(code.seconds for code in codes):.1f} s"


def require() -> None:
    """Raises ValueError where there is no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ValueError("kernels='compiled' needs a C++ compiler; install g++ or use kernels=torch") from None
