"""Input that the operators refuse, with a line that says what is accepted; and limits that others get wrong."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ziya_kernels import reference, rotary_table

ROOT = Path(__file__).resolve().parents[2]
half = torch.bfloat16


def qkv(size: int = 64, heads: int = 2, kv_heads: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (torch.zeros(1, 4, heads, size), *(torch.zeros(1, 4, kv_heads, size) for _ in range(2)))


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        ("rms_norm", (torch.zeros(2, 4).double(), torch.ones(4), 1e-5), "float64; use float32, float16 or bfloat16"),
        ("rms_norm", (torch.zeros(2, 4), torch.ones(5), 1e-5), r"weight is \(5,\)"),
        ("rms_norm", (torch.zeros(1, 70000), torch.ones(70000), 1e-5), "70000 elements is past the limit of 65536"),
        ("rms_norm_residual", (torch.zeros(2, 4), torch.zeros(1, 4), torch.ones(4), 1e-5), r"residual is \(1, 4\)"),
        ("rms_norm_residual", (torch.zeros(2, 4), torch.zeros(2, 4, dtype=half), torch.ones(4), 1e-5), "convert one"),
        ("swiglu", (torch.zeros(2, 5),), "must be even"),
        ("softmax", (torch.zeros(5, 3), 1.0, True), "5 queries over 3 keys"),
        ("attention", (*qkv(size=80), None), "head size 80 is not supported; use 32, 64 or 128"),
        ("attention", (*qkv(heads=3, kv_heads=2), None), "N a multiple of K"),
        ("attention", (*qkv(), torch.zeros(1, 5, dtype=torch.int32)), r"starts is \(1, 5\)"),
        ("attention", (qkv()[0].to(half), *qkv()[1:], None), "k is torch.float32 but q torch.bfloat16"),
        ("attention_varlen", (*qkv(), torch.tensor([0, 4])), r"q is \(1, 4, 2, 64\)"),
        ("attention_varlen", (*(x[0] for x in qkv()), torch.tensor([0.0, 4.0])), "int32 or int64"),
        ("attention_varlen", (*(x[0] for x in qkv()), torch.tensor([0, 2])), r"bounds=\[0, 2\] must go up from 0"),
        ("rotary", (*qkv()[:2], torch.zeros(1, 4, 16), torch.zeros(1, 4, 16)), "as rotary_table"),
        ("rotary_qkv", (torch.ones(4, 96), 2, *[torch.zeros(1, 4, 16)] * 2), r"\[4, a multiple of 128\]: \[B S, \(N"),
        ("rotary_qkv", (torch.ones(3, 128), 2, *[torch.zeros(1, 4, 16)] * 2), r"rotary_qkv: qkv is \(3, 128\)"),
        ("cross_entropy", (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int32)), r"\[T\] int64"),
        ("cross_entropy_share", (torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64), 4), r"\[T, V\] and \[T\] int64"),
        ("head_loss", (torch.zeros(2, 4), torch.zeros(5, 3), torch.zeros(2, dtype=torch.int64)), r"\[V, H\] and \[T\]"),
        ("adamw", (*[torch.zeros(3, dtype=half)] * 4, 0.1, 0.9, 0.9, 1e-8, 0.1, 1), "must be flat, contiguous"),
    ],
)  # fmt: skip
def test_triton_refuses(operator: str, arguments: tuple, message: str, interpreted: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=message):
        interpreted(operator, arguments)


def test_twins_refuse() -> None:
    with pytest.raises(ValueError, match="must be even"):
        reference.swiglu(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="5 queries over 3 keys"):
        reference.softmax(torch.zeros(5, 3), 1.0, True)
    with pytest.raises(ValueError, match=r"inv_freq is torch.bfloat16; rotary angles need torch.float32"):
        rotary_table(torch.zeros(1, 1), torch.ones(4, dtype=half))


@pytest.mark.parametrize("bounds", [[0, 3], [1, 4], [0, 3, 2, 4], [0, 5]])
def test_bounds_that_describe_no_documents(bounds: list[int]) -> None:
    q, k, v = (x[0] for x in qkv())
    with pytest.raises(ValueError, match=r"bounds=\[.*\] must go up from 0 to the number of tokens, 4"):
        reference.attention_varlen(q, k, v, torch.tensor(bounds, dtype=torch.int32))


@pytest.mark.parametrize("starts", [[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 0], [0, 3, 3, 3]])
def test_starts_that_describe_no_documents(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="starts does not describe documents"):
        reference.attention(*qkv(), torch.tensor([starts], dtype=torch.int32))


def test_logits_past_2_31_elements() -> None:
    """An int32 offset would wrap and read before the tensor: a crash. The pages in between are never touched."""
    program = """
import os; os.environ["TRITON_INTERPRET"] = "1"
import torch
from ziya_kernels import cross_entropy, rms_norm, swiglu
storage = torch.empty(2**31 + 8192, dtype=torch.bfloat16)
rows = storage.as_strided((3, 4096), (2**30, 1))  # the stride fits int32, two of them do not
rows.fill_(1.0)
assert cross_entropy.cross_entropy(rows, torch.tensor([3, 5, 7])).sub(8.317766).abs().max() < 1e-5
assert (rms_norm.rms_norm(rows, torch.ones(4096), 0.0) == 1).all()
assert swiglu.swiglu(rows).float().sub(0.731).abs().max() < 1e-2
"""
    environment = {"PYTHONPATH": str(ROOT / "kernels"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
