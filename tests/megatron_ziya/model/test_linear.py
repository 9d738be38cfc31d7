"""The product of the model against FP64; what it does for gradients stands in test_llama.py and the parity grid."""

import pytest
import torch

from megatron_ziya.model import linear
from megatron_ziya.model.linear import SMALL_PRODUCT, product

# tokens, outputs, inputs of the yardstick's matrices, forward and (outputs for inputs) of the input's gradient
SIZES = [(256, 768, 256), (256, 256, 688), (256, 256, 768)]


@pytest.mark.parametrize("transposed", [False, True], ids=["weight", "its transpose"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_error_is_at_most_twice_that_of_torchs_product(size, transposed, monkeypatch):
    monkeypatch.setattr(linear, "prefers_onednn", lambda: True)  # on an Intel processor too
    tokens, outputs, inputs = size
    assert tokens * outputs * inputs > SMALL_PRODUCT
    torch.manual_seed(0)
    x = torch.randn(tokens, inputs)
    weight = torch.randn(inputs, outputs).t() if transposed else torch.randn(outputs, inputs)
    exact = x.double() @ weight.double().t()
    ours, torchs = product(x, weight).double(), (x @ weight.t()).double()
    assert (ours - exact).norm() <= 2 * (torchs - exact).norm()


def test_fp64_and_small_products_are_torchs_own():
    for dtype, tokens in ((torch.float64, 256), (torch.float32, 4)):
        x, weight = torch.randn(tokens, 256, dtype=dtype), torch.randn(256, 256, dtype=dtype)
        assert torch.equal(product(x, weight), x @ weight.t())
