"""The Triton kernels on a GPU, forward and backward, against FP64; the same tests run the plain twins on any CPU.

The rule is FlashAttention's: an error of at most twice that of PyTorch's own operators in the same type (`eager` in
`ziya_kernels/benchmark/peers.py`), plus one rounding of the largest value, since PyTorch's error may be 0 by luck, plus
the random walk of one FP32 rounding a token, since a sum over the tokens may be taken in any order.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from ziya_kernels import select
from ziya_kernels.benchmark.cases import KERNELS, Shape, inputs
from ziya_kernels.benchmark.measure import errors, truth_of
from ziya_kernels.benchmark.peers import sides

HERE = [
    pytest.param("cpu", "torch", id="cpu"),
    pytest.param(
        "cuda",
        "triton",
        id="gpu",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")],
    ),
]
SHAPES = [
    Shape("one token", 64, 40, 2, 1, 11, 1, 1),
    Shape("odd", 192, 131, 3, 1, 1003, 77, 4099),
    Shape("several blocks, groups", 512, 1500, 4, 2, 5003, 390, 70001),
]


def errors_are_small(
    kernel: str, arguments: tuple[Any, ...], dtype: torch.dtype, tokens: int, device: str, name: str
) -> None:
    ours, eager, *_ = sides(kernel, select(name, torch.device(device)), compiled=False)
    truth, seeds = truth_of(eager, arguments)
    have, base = (errors(side, arguments, truth, seeds) for side in (ours, eager))
    for direction in truth:
        allowed = 2 * base[direction] + torch.finfo(dtype).eps + 2**-24 * tokens**0.5
        assert have[direction] <= allowed, f"{direction}: error {have[direction]:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize(("device", "name"), HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("kernel", KERNELS)
def test_error_at_most_twice_that_of_torch(kernel, shape, dtype, device, name):
    kind = torch.float32 if kernel == "adamw" else dtype
    errors_are_small(kernel, inputs(kernel, shape, dtype, torch.device(device)), kind, shape.sequence, device, name)


def starts(*lengths: int) -> Tensor:
    """Documents of these lengths one after another -> [S] int32."""
    firsts = torch.tensor([sum(lengths[:i]) for i in range(len(lengths))], dtype=torch.int32)
    return firsts.repeat_interleave(torch.tensor(lengths))


@pytest.mark.parametrize(("device", "name"), HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_rows_with_documents_of_their_own(size, dtype, device, name):
    """Two rows that differ, documents of one token, one that goes over several blocks, a group of three heads."""
    rows = torch.stack([starts(3, 170, 1, 1, 95), starts(64, 128, 78)]).to(device)
    generator = torch.Generator(device).manual_seed(3)
    q, k, v = (
        torch.randn(2, 270, heads, size, generator=generator, device=device).to(dtype).requires_grad_()
        for heads in (6, 2, 2)
    )
    errors_are_small("attention documents", (q, k, v, rows), dtype, 270, device, name)


@pytest.mark.parametrize(("device", "name"), HERE)
@pytest.mark.parametrize("kernel", ["attention", "attention documents", "rms_norm", "cross_entropy"])
def test_two_calls_agree_to_the_bit(kernel, device, name):
    """Nothing is added in an order that a GPU chooses."""
    ours, *_ = sides(kernel, select(name, torch.device(device)), compiled=False)
    arguments = inputs(kernel, SHAPES[1], torch.bfloat16, torch.device(device))
    found = []
    for _ in range(2):
        leaves = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
        out = ours.function(*arguments)
        found.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize(("device", "name"), HERE)
def test_strided_inputs_and_an_expanded_gradient(device, name):
    """Query and key as slices of one projection, as the model has them, and the gradient of a sum (all strides 0)."""
    kernels = select(name, torch.device(device))
    whole = torch.randn(1, 77, 3 * 64, device=device, requires_grad=True)

    def loss(function: Any) -> Tensor:
        q, k, v = (part.unflatten(-1, (1, 64)) for part in whole.split(64, -1))
        out: Tensor = function(q, k, v, None)
        return out.sum()

    (have,) = torch.autograd.grad(loss(kernels.attention), [whole])
    (want,) = torch.autograd.grad(loss(select("torch", torch.device(device)).attention), [whole])
    torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_more_elements_than_32_bits_count():
    """2^31 and a bit: the last rows are where a 32-bit offset would have gone round."""
    rows, width = 2**18 + 3, 4096
    if torch.cuda.mem_get_info()[0] < 5 * rows * width * 2:
        pytest.skip("needs 11 GB of free GPU memory")
    x = torch.randn(1, 2 * width, device="cuda", dtype=torch.bfloat16).repeat(rows, 1)
    have = select("triton", torch.device("cuda")).swiglu(x)
    assert x.numel() > 2**31
    assert torch.equal(have[-3:], have[:3])
    assert torch.isfinite(have[-1]).all()
