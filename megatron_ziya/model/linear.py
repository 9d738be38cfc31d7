"""The matrix product of the model, and where weight gradients go.

A weight may carry `main_grad`, the FP32 buffer that data parallel reduces. Then the backward pass adds into it and
autograd sees no gradient for the weight, so no second copy is ever made. Without `main_grad` a weight is an ordinary
leaf.

Letters: T tokens, I inputs, O outputs.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Parameter(nn.Parameter):
    """A weight whose gradient may be accumulated outside autograd.

    `main_grad` is the buffer, `gradient_added` is called after each addition (data parallel counts them). `deferred`
    may hold additions back.
    """

    main_grad: Tensor | None = None
    gradient_added: Callable[[Tensor], None] | None = None
    deferred: "Deferred | None" = None
    apart: bool = False
    """Gradients of two micro-batches must not meet in `main_grad`: it is changed after each `gradient_added`."""


class Deferred:
    """The weight gradients of one slice of the model that wait for an action of their own (arXiv 2401.10241).

    The pipeline hangs it on the weights of the slice. While it is `open`, a backward pass leaves here what each
    weight's product needs and goes on to the input's gradient.
    """

    def __init__(self) -> None:
        self.open = False
        self._waiting: list[tuple[Tensor, Tensor, Tensor, bool]] = []

    def add(self, weight: Tensor, output_gradient: Tensor, inputs: Tensor, last: bool) -> None:
        assert getattr(weight, "main_grad", None) is not None, "a deferred gradient needs a buffer to be added to"
        self._waiting.append((weight, output_gradient, inputs.detach(), last))  # detached: else it holds its graph

    def take(self) -> list[tuple[Tensor, Tensor, Tensor, bool]]:
        """What one backward pass has left; `add_weight_gradient(*item)` does each."""
        taken, self._waiting = self._waiting, []
        return taken


def add_weight_gradient(weight: Tensor, output_gradient: Tensor, inputs: Tensor, last: bool = True) -> Tensor | None:
    """Add dY^T X (`[T, O]`, `[T, I]` -> `[O, I]`) to the weight's buffer, or return it when there is none.

    `last` is False when more of the same micro-batch is still to come.
    """
    deferred = getattr(weight, "deferred", None)
    if deferred is not None and deferred.open:
        deferred.add(weight, output_gradient, inputs, last)
        return None
    buffer = getattr(weight, "main_grad", None)
    if buffer is None:
        return output_gradient.t() @ inputs
    if buffer.dtype == inputs.dtype:
        torch.addmm(buffer, output_gradient.t(), inputs, out=buffer)
    else:
        buffer.add_(output_gradient.t() @ inputs)
    if last:
        announce(weight)
    return None


def announce(weight: Tensor) -> None:
    """Tell data parallel that one micro-batch's gradient of `weight` is in its buffer."""
    callback = getattr(weight, "gradient_added", None)
    if callback is not None:
        callback(weight)


@functools.cache
def prefers_onednn() -> bool:
    """Whether torch has oneDNN, and this processor is not one that MKL was made for."""
    cpuinfo = Path("/proc/cpuinfo")
    intel = cpuinfo.is_file() and "GenuineIntel" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    return torch.backends.mkldnn.is_available() and not intel


SMALL_PRODUCT = 1 << 21
"""Multiplications up to which oneDNN's call, 11 microseconds longer, is not worth its speed."""


def product(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T, `[T, I]`, `[O, I]` -> `[T, O]`.

    In FP32 on a CPU that is not Intel's by oneDNN, which torch links but calls here only from its compiler: faster than
    MKL, which is what `@` calls, on an AMD EPYC, slower on a Xeon (`tools/benchmark_products.py`). oneDNN's rounding
    error is 1.4 times MKL's in sums of 256 and settles at 2.2 times, 6e-7, in sums of 2,048 and more.
    """
    large = len(x) * weight.numel() > SMALL_PRODUCT
    if large and x.dtype == torch.float32 and x.device.type == "cpu" and prefers_onednn():
        return onednn(x, weight)
    return x @ weight.t()


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    """X W^T by oneDNN."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        return product(dy, weight.t()), add_weight_gradient(weight, dy, x)


class Linear(nn.Module):
    """Y = X W^T, without bias. `parts` names the logical weights that are stacked in one matrix.

    `parts={"query": 4096, "key": 512, "value": 512}` is a fused QKV: one product, three logical tensors.
    """

    split = -1  # which dimension a tensor-parallel rank holds a share of; -1 = none

    def __init__(self, inputs: int, parts: dict[str, int]) -> None:
        super().__init__()
        self.inputs, self.parts = inputs, parts
        self.weight = Parameter(torch.empty(sum(parts.values()), inputs))

    def forward(self, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        return weight[tokens]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor | None]:
        tokens, weight = ctx.saved_tensors
        buffer = getattr(weight, "main_grad", None)
        target = torch.zeros_like(weight) if buffer is None else buffer
        # index_add_ touches only the rows of this micro-batch; autograd's own backward writes the whole table
        target.index_add_(0, tokens, dy.to(target.dtype))
        if buffer is None:
            return None, target
        announce(weight)
        return None, None


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight [V, H]` for `tokens [T]` -> `[T, H]`."""
    return _Embedding.apply(tokens, weight)
