"""Recomputation and the backward pass from a given gradient, against plain autograd."""

import subprocess
import sys

import torch

from megatron_ziya.model.recompute import backward, recompute

LIGHT = """
import sys, torch
from megatron_ziya import train
from megatron_ziya.model.recompute import backward, recompute
x = torch.ones(3, requires_grad=True)
y = recompute(lambda x: x.exp(), x)
backward(y, torch.ones(3))
heavy = [name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules]
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_gradients_are_those_of_plain_autograd():
    torch.manual_seed(0)
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    fixed = torch.randn(3, 4, dtype=torch.float64)
    seed = torch.randn(3, 4, dtype=torch.float64)
    runs = []

    def layer(x: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        runs.append(torch.is_grad_enabled())
        return (x @ weight).tanh() * fixed

    found = []
    for run in (lambda: layer(x, fixed), lambda: recompute(layer, x, fixed)):
        x.grad = weight.grad = None
        output = run()
        backward(2 * output, seed)
        found.append((output.detach(), x.grad, weight.grad))
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)
    assert fixed.grad is None
    assert runs == [True, False, True], "kept once; then run without a graph, and again with one"


def test_nothing_is_recomputed_without_a_gradient_to_come():
    runs = []
    with torch.no_grad():
        recompute(lambda x: runs.append(x) or x, torch.ones(2, requires_grad=True))
    weight = torch.ones(2, requires_grad=True)
    output = recompute(lambda x: runs.append(x) or x * weight, torch.ones(2))  # the input needs none, the weight does
    backward(output, torch.ones(2))
    assert len(runs) == 2 and weight.grad is not None


def test_a_training_process_imports_no_compiler():
    """torch._dynamo takes 2 s of CPU a process, sympy 0.3 s."""
    run = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
