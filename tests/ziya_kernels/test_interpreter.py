"""The repair of bfloat16 in Triton's interpreter: without it, the tests of the kernels would prove nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

SPECIAL = [0.0, -0.0, 1.0, -1.5, float("inf"), -float("inf"), float("nan"), 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, 1e-40]


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_casts_round_as_torch_does(source: torch.dtype, target: torch.dtype, interpreted: Callable[..., Any]) -> None:
    noise = torch.randn(1024 - len(SPECIAL), generator=torch.Generator().manual_seed(0)) * 1000
    x = torch.cat([torch.tensor(SPECIAL), noise]).to(source)
    ((y,), _, _) = interpreted("cast", (x, target))
    torch.testing.assert_close(y, x.to(target), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_product_is_exact_before_rounding(dtype: torch.dtype, interpreted: Callable[..., Any]) -> None:
    a, b = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    ((c,), _, _) = interpreted("dot", (a, b))
    torch.testing.assert_close(c, (a.double() @ b.double()).float(), rtol=1e-5, atol=1e-5)
