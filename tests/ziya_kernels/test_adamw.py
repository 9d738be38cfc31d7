"""AdamW over flat tensors against torch.optim.AdamW and against FP64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ziya_kernels import reference

SETTINGS = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def start(count: int) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    master = torch.randn(count, generator=generator)
    grads = [torch.randn(count, generator=generator) * 10.0**power for power in (0, -3, 2)]
    return master, torch.zeros(count), torch.zeros(count), grads


def optimizer(parameter: Tensor, **options: bool) -> torch.optim.Optimizer:
    betas = (SETTINGS["beta1"], SETTINGS["beta2"])
    rest = {"lr": SETTINGS["lr"], "eps": SETTINGS["eps"], "weight_decay": SETTINGS["weight_decay"]}
    return torch.optim.AdamW([parameter], betas=betas, **rest, **options)


def in_fp64(master: Tensor, grads: list[Tensor], scale: float) -> Tensor:
    parameter = master.double().clone()
    optimize = optimizer(parameter, foreach=False)
    for grad in grads:
        parameter.grad = grad.double() * scale
        optimize.step()
    return parameter


@pytest.mark.parametrize("count", [1, 17, 4096, 600_001])
def test_equals_torch_fused_to_the_bit(count: int) -> None:
    master, exp_avg, exp_avg_sq, grads = start(count)
    parameter = master.clone()
    optimize = optimizer(parameter, fused=True)
    for step, grad in enumerate(grads, 1):
        parameter.grad = grad
        optimize.step()
        reference.adamw(master, exp_avg, exp_avg_sq, grad, **SETTINGS, step=step)
    assert torch.equal(master, parameter)
    assert torch.equal(exp_avg, optimize.state[parameter]["exp_avg"])
    assert torch.equal(exp_avg_sq, optimize.state[parameter]["exp_avg_sq"])


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_error_at_most_twice_that_of_torch(implementation: str, scale: float, interpreted: Callable[..., Any]) -> None:
    master, exp_avg, exp_avg_sq, grads = start(2500)
    want = in_fp64(master, grads, scale)
    parameter = master.clone()
    optimize = optimizer(parameter, foreach=False)
    for step, grad in enumerate(grads, 1):
        parameter.grad = grad * scale
        optimize.step()
        kept = grad.clone()
        arguments = (master, exp_avg, exp_avg_sq, grad, *SETTINGS.values(), step, scale)
        if implementation == "torch":
            reference.adamw(*arguments)
        else:
            _, _, (master, exp_avg, exp_avg_sq, grad, *_) = interpreted("adamw", arguments)
        assert torch.equal(grad, kept)
    allowed = 2 * (parameter - want).abs().max() + torch.finfo(torch.float32).eps
    assert (master - want).abs().max() <= allowed


def test_weight_decay_alone() -> None:
    """With a gradient of 0, a step is a multiplication by 1 - lr * weight_decay."""
    master, exp_avg, exp_avg_sq, _ = start(10)
    before = master.clone()
    reference.adamw(master, exp_avg, exp_avg_sq, torch.zeros(10), **SETTINGS, step=1)
    torch.testing.assert_close(master, before * (1 - SETTINGS["lr"] * SETTINGS["weight_decay"]))


def test_first_step_moves_by_the_learning_rate() -> None:
    """Bias correction makes the first step lr * sign(gradient), whatever the gradient's size."""
    master = torch.zeros(3)
    grad = torch.tensor([1e-3, -5.0, 100.0])
    reference.adamw(master, torch.zeros(3), torch.zeros(3), grad, **SETTINGS, step=1)
    torch.testing.assert_close(master, -SETTINGS["lr"] * grad.sign(), rtol=1e-4, atol=0)
    assert math.isclose(master[0].item(), -SETTINGS["lr"], rel_tol=1e-4)
