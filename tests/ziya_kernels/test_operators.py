"""Each operator, plain and Triton, forward and backward, against FP64.

The rule is FlashAttention's: the error may be at most twice that of PyTorch's own operators in the same type (plus
one rounding of the largest value, since PyTorch's error may be 0 by luck). PyTorch's 16-bit operators round several
times; what ours round once (`ROUNDED_ONCE`) is held to that one rounding, element by element, and to twice PyTorch's
error in FP32 on the same 16-bit inputs: a statistic that is not FP32, or a wrong eps, shows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from ziya_kernels import rotary_table, select

ROUNDED_ONCE = {
    "rms_norm": 3, "rotary": 4, "rotary_qkv": 4, "swiglu": 2, "cross_entropy": 2, "softmax": 1, "attention": 4,
    "attention_varlen": 4,
}  # fmt: skip
"""How many results and gradients, from the first on, are rounded once, at their end. Attention: on a CPU alone."""
TYPES = [torch.float32, torch.float16, torch.bfloat16]
FREQUENCIES = 10000.0 ** (-torch.arange(32) / 32)


@dataclass(frozen=True)
class Case:
    """Shapes of the float arguments, then the fixed ones; layout changes strides without changing values."""

    name: str
    operator: str
    shapes: tuple[tuple[int, ...], ...]
    fixed: tuple[Any, ...] = ()
    layout: str = "contiguous"
    scale: float = 1.0
    tables: tuple[Tensor, ...] = field(default=(), repr=False)


def starts(*lengths: int) -> Tensor:
    """Documents of these lengths one after another -> [S] int32."""
    firsts = torch.tensor([sum(lengths[:i]) for i in range(len(lengths))], dtype=torch.int32)
    return firsts.repeat_interleave(torch.tensor(lengths))


def targets(tokens: int, vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(5))


def positions(rows: int, length: int) -> Tensor:
    return (torch.arange(length) * 37 + 250).expand(rows, length)  # past 256, where BF16 cannot count


def attention_case(
    name: str, heads: int, kv_heads: int, size: int, start: Tensor | None, rows: int, length: int
) -> Case:
    shapes = ((rows, length, heads, size), (rows, length, kv_heads, size), (rows, length, kv_heads, size))
    return Case(f"attention {name}", "attention", shapes, (start,))


def varlen_case(name: str, heads: int, kv_heads: int, size: int, *lengths: int) -> Case:
    tokens = sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    shapes = ((tokens, heads, size), (tokens, kv_heads, size), (tokens, kv_heads, size))
    return Case(f"attention_varlen {name}", "attention_varlen", shapes, (bounds,))


CASES = [
    Case("rms_norm", "rms_norm", ((7, 96), (96,)), (1e-5,)),
    Case("rms_norm one token", "rms_norm", ((1, 1, 5), (5,)), (1e-6,)),
    Case("rms_norm strided", "rms_norm", ((2, 3, 64), (64,)), (1e-5,), "transposed"),
    Case("rms_norm small", "rms_norm", ((5, 160), (160,)), (1e-5,), scale=2e-3),  # eps counts more than the mean square
    Case("rms_norm large", "rms_norm", ((5, 160), (160,)), (1e-5,), scale=100.0),
    Case("rms_norm_residual", "rms_norm_residual", ((7, 96), (7, 96), (96,)), (1e-5,)),
    Case("rms_norm_residual one token", "rms_norm_residual", ((1, 1, 5), (1, 1, 5), (5,)), (1e-6,)),
    Case("rms_norm_residual strided", "rms_norm_residual", ((2, 3, 64), (2, 3, 64), (64,)), (1e-5,), "transposed"),
    Case("rotary", "rotary", ((2, 3, 3, 64), (2, 3, 1, 64)), tables=rotary_table(positions(2, 3), FREQUENCIES)),
    Case(
        "rotary odd half", "rotary", ((1, 2, 2, 6), (1, 2, 2, 6)), tables=rotary_table(positions(1, 2), FREQUENCIES[:3])
    ),
    Case(
        "rotary strided",
        "rotary",
        ((2, 3, 4, 8), (2, 3, 2, 8)),
        (),
        "transposed",
        tables=rotary_table(positions(2, 3), FREQUENCIES[:4]),
    ),
    Case("rotary_qkv", "rotary_qkv", ((6, 5 * 64),), (3,), tables=rotary_table(positions(2, 3), FREQUENCIES)),
    Case(
        "rotary_qkv odd half", "rotary_qkv", ((2, 6 * 6),), (1,), tables=rotary_table(positions(1, 2), FREQUENCIES[:3])
    ),
    Case("swiglu", "swiglu", ((5, 2 * 70),)),
    Case("swiglu two blocks", "swiglu", ((2, 2 * 1100),)),
    Case("swiglu strided", "swiglu", ((2, 3, 2 * 9),), (), "transposed", scale=10.0),
    Case("cross_entropy", "cross_entropy", ((6, 101),), (targets(6, 101),), scale=3.0),
    Case("cross_entropy two blocks", "cross_entropy", ((2, 5003),), (targets(2, 5003),), scale=3.0),
    Case("cross_entropy one piece", "cross_entropy", ((2, 1),), (targets(2, 1),)),
    Case("head_loss", "head_loss", ((9, 24), (53, 24)), (targets(9, 53),)),
    Case("head_loss one token", "head_loss", ((1, 8), (5, 8)), (targets(1, 5),)),
    Case("softmax", "softmax", ((2, 3, 4, 7),), (0.25, False)),
    Case("softmax causal", "softmax", ((2, 5, 5),), (0.7, True)),
    Case("softmax causal with a past", "softmax", ((2, 3, 70),), (0.7, True), "transposed"),
    Case("softmax long row", "softmax", ((1, 2, 20000),), (1.5, True)),
    attention_case("one block", 2, 2, 64, None, 1, 17),
    attention_case("several blocks, groups", 4, 2, 64, None, 1, 77),
    attention_case("head 128, one kv head", 3, 1, 128, None, 1, 40),
    attention_case("head 32", 2, 2, 32, None, 1, 33),
    attention_case("one token", 2, 1, 64, None, 2, 1),
    attention_case("documents", 2, 1, 64, torch.stack([starts(3, 70, 1, 1, 25), starts(100)]), 2, 100),
    attention_case("documents of one token", 1, 1, 64, starts(*[1] * 34)[None], 1, 34),
    attention_case("a document from block to block", 1, 1, 64, starts(32, 64, 33)[None], 1, 129),
    varlen_case("groups", 4, 2, 64, 3, 40, 1, 1, 25),
    varlen_case("an empty document", 1, 1, 32, 0, 5, 0, 31, 0),
    varlen_case("one document", 2, 1, 32, 37),
]


def eager(operator: str) -> Callable[..., Any]:
    """What one would write in PyTorch (or what transformers writes), in the input's own type."""

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.dtype == torch.float64:
            return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
        norm = LlamaRMSNorm(x.shape[-1], eps)
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    def rms_norm_residual(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = x + residual
        return rms_norm(total, weight, eps), total

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = (torch.cat([table, table], -1).to(q.dtype) for table in (cos, sin))
        q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
        return q.transpose(1, 2), k.transpose(1, 2)

    def rotary_qkv(qkv: Tensor, groups: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = qkv.view(*cos.shape[:2], -1, 2 * cos.shape[-1])
        q, k, v = heads.split([n * heads.shape[2] // (groups + 2) for n in (groups, 1, 1)], 2)
        return *rotary(q, k, cos, sin), v

    def swiglu(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    def softmax(x: Tensor, scale: float, causal: bool) -> Tensor:
        hidden = torch.ones(x.shape[-2:], dtype=torch.bool).triu(x.shape[-1] - x.shape[-2] + 1)
        return (x * scale).masked_fill(hidden & causal, -math.inf).softmax(-1)

    def attention(q: Tensor, k: Tensor, v: Tensor, start: Tensor | None) -> Tensor:
        index = torch.arange(q.shape[1])
        seen = index <= index[:, None]
        if start is not None:
            seen = (seen & (index >= start[..., None])).unsqueeze(1)
        k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2).transpose(1, 2) for x in (k, v))
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=seen).transpose(1, 2)

    def attention_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
        out = []
        for start, end in pairwise(bounds.tolist()):
            document = [x[start:end].transpose(0, 1) for x in (q, k, v)]
            out.append(F.scaled_dot_product_attention(*document, is_causal=True, enable_gqa=True).transpose(0, 1))
        return torch.cat(out)

    def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")

    def head_loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = hidden @ weight.t()
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target, reduction="sum")

    return locals()[operator]


def arguments(case: Case, dtype: torch.dtype) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    tensors = []
    for shape in case.shapes:
        x = (torch.randn(shape, generator=generator) * case.scale).to(dtype)
        if case.layout == "transposed" and len(shape) > 2:
            x = x.transpose(0, 1).contiguous().transpose(0, 1)
        tensors.append(x.requires_grad_())
    if case.operator == "rotary_qkv":
        return (*tensors, *case.fixed, *case.tables)
    return (*tensors, *case.tables, *case.fixed)


def run(function: Callable[..., Any], inputs: tuple[Any, ...], grads: tuple[Tensor, ...]) -> list[Tensor]:
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    grads = tuple(grad.to(out.dtype) for grad, out in zip(grads, outputs, strict=True))
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, leaves, grads)]


def widened(inputs: tuple[Any, ...], dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    return tuple(
        x.detach().to(dtype).requires_grad_(x.requires_grad) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in inputs
    )


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_error_at_most_twice_that_of_torch(
    case: Case, dtype: torch.dtype, implementation: str, interpreted: Callable[..., Any]
) -> None:
    inputs = arguments(case, dtype)
    with torch.no_grad():
        outputs = eager(case.operator)(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    kind = torch.float32 if case.operator in ("cross_entropy", "head_loss") else dtype
    grads = tuple(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(kind) for x in outputs)
    truth = run(eager(case.operator), widened(inputs), grads)
    baseline = run(eager(case.operator), inputs, grads)
    if implementation == "torch":
        found = run(getattr(select("torch", torch.device("cpu")), case.operator), inputs, grads)
    else:
        ours, gradients, _ = interpreted(case.operator, inputs, grads)
        found = [*ours, *gradients]
    assert len(found) == len(truth)
    by_products = implementation == "triton" and case.operator.startswith("attention")  # test_attention_rounding.py
    once = 0 if dtype == torch.float32 or by_products else ROUNDED_ONCE.get(case.operator, 0)
    in_fp32 = run(eager(case.operator), widened(inputs, torch.float32), grads) if once else truth
    largest = max(x.abs().max() for x in truth)  # a gradient that is 0 in truth is a difference of such values
    for index, (want, base, have) in enumerate(zip(truth, baseline, found, strict=True)):
        assert have.shape == want.shape
        assert have.dtype == (torch.float32 if kind == torch.float32 and index == 0 else dtype)
        allowed = 2 * (base - want).abs().max() + torch.finfo(have.dtype).eps * largest
        if index < once:
            computed = 2 * (in_fp32[index] - want).abs().max() + torch.finfo(torch.float32).eps * largest
            limits = torch.finfo(have.dtype)  # half a step between neighbours, of normal and of the smallest numbers
            allowed = computed + limits.eps / 2 * want.abs().clamp(min=limits.smallest_normal)
        beyond = ((have - want).abs() - allowed).max()
        assert beyond <= 0, f"tensor {index}: an error is {beyond:.3g} larger than the {allowed.max():.3g} allowed"


LIGER = [
    case for case in CASES
    if case.name in ("rms_norm", "rms_norm_residual", "rotary", "swiglu", "cross_entropy", "head_loss")
]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES[:2], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", LIGER, ids=lambda case: case.name)
def test_error_at_most_twice_that_of_liger(case: Case, dtype: torch.dtype, interpreted: Callable[..., Any]) -> None:
    """Both in the interpreter, Liger called as the benchmark calls it on a GPU; no BF16, in which Liger's rotary does
    arithmetic that the interpreter cannot do."""
    inputs = arguments(case, dtype)
    results = {}
    for name in (case.operator, f"liger {case.operator}"):
        grads = tuple(torch.ones_like(x) for x in interpreted(name, inputs)[0])
        outputs, gradients, _ = interpreted(name, inputs, grads)
        results[name] = [*outputs, *gradients]
    ours, theirs = results.values()
    truth = run(eager(case.operator), widened(inputs), grads)
    rounding = torch.finfo(dtype).eps * max(x.abs().max() for x in truth)
    for want, have, other in zip(truth, ours, theirs, strict=True):
        error = (other - want).abs().max()
        assert error <= 8 * rounding  # the same sum: a wrong call of Liger's would allow anything
        assert (have - want).abs().max() <= 2 * error + rounding


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_twins_stay_in_fp64(case: Case) -> None:
    inputs = widened(arguments(case, torch.float32))
    outputs = eager(case.operator)(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = tuple(torch.randn(x.shape, dtype=torch.float64) for x in outputs)
    twin = getattr(select("torch", torch.device("cpu")), case.operator)
    for want, have in zip(run(eager(case.operator), inputs, grads), run(twin, inputs, grads), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_rotary_is_the_rounded_fp64_result(
    dtype: torch.dtype, implementation: str, interpreted: Callable[..., Any]
) -> None:
    case = next(case for case in CASES if case.name == "rotary")
    q, k, cos, sin = (x.detach() for x in arguments(case, dtype))
    want = eager("rotary")(*widened((q, k, cos, sin)))
    if implementation == "torch":
        have = select("torch", torch.device("cpu")).rotary(q, k, cos, sin)
    else:
        have = interpreted("rotary", (q, k, cos, sin))[0]
    for w, h in zip(want, have, strict=True):
        assert torch.equal(w.to(dtype), h)


def test_rotary_qkv_writes_over_the_output_of_the_matrix(interpreted: Callable[..., Any]) -> None:
    """Triton's, on a GPU: no memory of its own in the forward pass; a gradient of its own in the backward pass."""
    case = next(case for case in CASES if case.name == "rotary_qkv")
    inputs = arguments(case, torch.float32)
    before = inputs[0].detach().clone()
    (q, k, v), _, after = interpreted(case.operator, inputs)
    assert not torch.equal(after[0], before)
    torch.testing.assert_close(after[0], torch.cat([q, k, v], 2).flatten(0, 1).flatten(1), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # who kept qkv is not deceived
        interpreted("rotary_of_tanh", inputs, (q, k, v))


@pytest.mark.parametrize("case", [case for case in CASES if len(case.shapes[0]) <= 4], ids=lambda case: case.name)
def test_expanded_gradient(case: Case, interpreted: Callable[..., Any]) -> None:
    """loss.sum() hands a gradient with all strides 0 to the backward kernel."""
    inputs = arguments(case, torch.float32)
    twin = getattr(select("torch", torch.device("cpu")), case.operator)
    outputs = twin(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = tuple(torch.ones(()).expand(x.shape) for x in outputs)
    _, gradients, _ = interpreted(case.operator, inputs, grads)
    for want, have in zip(run(twin, inputs, grads)[len(outputs) :], gradients, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)
