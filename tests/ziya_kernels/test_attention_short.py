"""The products of short sequences against PyTorch's attention: FP64 to rounding, FP32 and BF16 by the rule of two."""

import pytest
import torch
import torch.nn.functional as F

from ziya_kernels import attention_short, reference

CASES = {
    "one token": (2, 1, 2, 2, 8),
    "one block": (1, 40, 2, 2, 16),
    "blocks": (1, 97, 4, 4, 16),
    "groups and rows": (3, 81, 6, 2, 8),
    "one head of keys": (2, 130, 3, 1, 32),
}


def inputs(case, dtype):
    rows, length, heads, kept, size = CASES[case]
    generator = torch.Generator().manual_seed(4)
    shapes = [(rows, length, n, size) for n in (heads, kept, kept, heads)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def torchs(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def results(function, q, k, v, grad):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("case", CASES)
def test_fp64_equals_torch(case):
    values = inputs(case, torch.float64)
    for found, expected in zip(results(attention_short.attention, *values), results(torchs, *values), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_error_at_most_twice_that_of_torch(case, dtype):
    values = inputs(case, dtype)
    truth = results(torchs, *(x.double() for x in values))
    theirs, ours = results(torchs, *values), results(attention_short.attention, *values)
    largest = max(x.abs().max() for x in truth)
    for want, base, have in zip(truth, theirs, ours, strict=True):
        assert have.dtype == dtype
        allowed = 2 * (base - want).abs().max() + torch.finfo(dtype).eps * largest
        assert (have - want).abs().max() <= allowed


def test_a_cpu_takes_it_for_short_rows_of_one_document(monkeypatch):
    taken = []

    def spy(q, k, v):
        taken.append(q.shape[1])
        return torchs(q, k, v)

    monkeypatch.setattr(attention_short, "attention", spy)
    for length in (reference.PRODUCTS - 1, reference.PRODUCTS, reference.SHORT - 1, reference.SHORT):
        x = torch.randn(1, length, 1, 8)
        reference.attention(x, x, x)
    starts = torch.zeros(1, 200, dtype=torch.int32)
    starts[:, 90:] = 90
    x = torch.randn(1, 200, 1, 8)
    reference.attention(x, x, x, starts)
    reference.attention(x, x, x, torch.zeros_like(starts))
    assert taken == [reference.PRODUCTS, reference.SHORT - 1, 200]
