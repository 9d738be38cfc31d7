"""Two steps of the backward pass that torch's own functions take only after importing a compiler.

`torch.utils.checkpoint` imports torch._dynamo when it is first called, and a backward pass that starts from a given
gradient imports sympy: seconds of every start.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.run = run
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # in a graph of its own: weights get their gradients from it as from any other backward pass
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
        with torch.enable_grad():
            backward(ctx.run(*inputs), gradient)
        return None, *(x.grad for x in inputs)


def recompute(run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`run(*inputs)`, of which only the inputs are kept; the backward pass runs it once more.

    `run` must draw no random numbers. Where no input needs a gradient, everything is kept as usual.
    """
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in inputs):
        return run(*inputs)
    output: Tensor = _Recompute.apply(run, *inputs)
    return output


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


def backward(output: Tensor, gradient: Tensor | None = None) -> None:
    """Run backward from `output`, whose gradient is given, or 1 when it is a single number."""
    assert gradient is None or gradient.shape == output.shape, "a gradient has its tensor's shape"
    root = output if gradient is None else _Root.apply(output, gradient)
    root.backward()
