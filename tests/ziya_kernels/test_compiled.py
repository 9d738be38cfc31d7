"""The compiled operators against their plain twins, both judged by FP64; the first run compiles for some seconds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ziya_kernels import compiled, reference, select

CPU = torch.device("cpu")


def compiler_is_missing() -> str:
    try:
        compiled.require()
    except ValueError as error:
        return str(error)
    return ""


needs_compiler = pytest.mark.skipif(bool(compiler_is_missing()), reason=compiler_is_missing())


def rms_norm(kernels: object) -> tuple[Callable[..., Tensor], list[Tensor]]:
    inputs = [torch.randn(10, 48), torch.rand(48) + 0.5]
    return lambda x, weight: kernels.rms_norm(x, weight, 1e-5), inputs  # type: ignore[attr-defined]


def rms_norm_residual(kernels: object) -> tuple[Callable[..., Tensor], list[Tensor]]:
    inputs = [torch.randn(10, 48), torch.randn(10, 48), torch.rand(48) + 0.5]
    return lambda *given: torch.cat(kernels.rms_norm_residual(*given, 1e-5)), inputs  # type: ignore[attr-defined]


def rotary(kernels: object) -> tuple[Callable[..., Tensor], list[Tensor]]:
    cos, sin = reference.rotary_table(torch.arange(10)[None], 0.1 ** torch.arange(8))

    def both(qkv: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, 16)) for part in qkv.split([64, 32, 32], -1))  # strided, as in the model
        q, k = kernels.rotary(q, k, cos, sin)  # type: ignore[attr-defined]
        return torch.cat([q, k, v], 2)

    return both, [torch.randn(1, 10, 128)]


def swiglu(kernels: object) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return kernels.swiglu, [3 * torch.randn(10, 80)]  # type: ignore[attr-defined]


def attention(kernels: object) -> tuple[Callable[..., Tensor], list[Tensor]]:
    inputs = [torch.randn(1, 130, heads, 16) for heads in (4, 2, 2)]  # groups; more than one block, the last short
    return kernels.attention, inputs  # type: ignore[attr-defined]


def errors(function: Callable[..., Tensor], inputs: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Of the result and of each input's gradient, as the norm of the error."""
    found = run(function, inputs)
    return [float((a.double() - b).norm()) for a, b in zip(found, truth, strict=True)]


def run(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    seed = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().view(out.shape)
    out.backward(seed.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("operator", [rms_norm, rms_norm_residual, rotary, swiglu, attention])
def test_error_is_at_most_twice_that_of_the_plain_twin(operator, dtype):
    """FlashAttention's rule; sums of another order leave no more than that."""
    torch.manual_seed(0)
    made, inputs = operator(select("compiled", CPU))
    torch.manual_seed(0)
    plain, _ = operator(select("torch", CPU))
    inputs = [x.to(dtype) for x in inputs]
    truth = run(plain, [x.double() for x in inputs])
    floor = torch.finfo(torch.float32).eps  # of a result that the plain twin meets by luck
    for ours, twin, exact in zip(errors(made, inputs, truth), errors(plain, inputs, truth), truth, strict=True):
        assert ours <= 2 * twin + floor * float(exact.norm())


@needs_compiler
def test_a_function_that_meets_many_shapes_stays_plain():
    code = compiled.Compiled(lambda x, factor: x * factor)
    code.made = dict.fromkeys(range(compiled.SHAPES), torch.clone)
    assert code(torch.ones(3), 2.0).tolist() == [2.0, 2.0, 2.0]
    assert code.seconds == 0.0


@needs_compiler
def test_what_compiling_took_is_told():
    kernels = select("compiled", CPU)
    assert kernels.cost() == "compiled 0 kernels in 0.0 s"
    kernels.swiglu(torch.ones(10, 80))
    assert kernels.cost().startswith("compiled 1 kernels in")
    assert "; compiled: rms_norm rms_norm_residual rotary rotary_qkv attention swiglu; " in kernels.describe()
    assert select("torch", CPU).cost() == ""


def test_without_a_compiler_one_line_says_what_to_do(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler; install g\+\+ or use kernels=torch"):
        select("compiled", CPU)


def test_a_gpu_has_better():
    with pytest.raises(ValueError, match="made for a CPU, not for cuda; use kernels=triton"):
        select("compiled", torch.device("cuda"))
