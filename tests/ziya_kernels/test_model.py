"""The engine's model on Triton kernels, in the interpreter: the loss of each token and every gradient, against FP64.

The plain twins are the peer here: FlashAttention's rule of two, on the norm of each tensor's error.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ziya_data.indexed.writer import IndexedDatasetWriter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_error_is_at_most_twice_that_of_the_plain_twins(dtype: torch.dtype, interpreted: Callable[..., Any]) -> None:
    truth, twins, ours = (
        interpreted("model", (kind, kernels))[0]
        for kind, kernels in ((torch.float64, "torch"), (dtype, "torch"), (dtype, "triton"))
    )
    assert len(ours) == len(truth)
    for want, base, have in zip(truth, twins, ours, strict=True):
        allowed = 2 * (base - want).norm() + torch.finfo(torch.float32).eps * want.norm()
        assert (have - want).norm() <= allowed
        assert allowed < 0.1 * want.norm()  # else it would hold anything


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ["--processes", "1"],
        ["--processes", "2", "--parallel.tensor", "2"],
        ["--processes", "2", "--parallel.pipeline", "2", "--parallel.spread_head", "true"],
    ],
    ids=["one process", "tensor parallel", "head spread over stages"],
)
def test_a_run_on_triton_kernels_is_one_on_the_plain_twins(layout: list[str], tmp_path: Path) -> None:
    """`ziya train`, every kernel in the interpreter. FP32 sums of another order: some roundings of 2^-24 a step."""
    with IndexedDatasetWriter(tmp_path / "data", vocabulary_size=128) as writer:
        writer.add(np.random.default_rng(0).integers(3, 128, size=4000), np.full(200, 20))
    (tmp_path / "recipe.toml").write_text(f"""
        run = {{ steps = 2, device = "cpu" }}
        optimizer = {{ learning_rate = 1e-3, schedule = "constant" }}
        precision = {{ weights = "fp32" }}
        log = {{ tensorboard = false, report = false }}
        [model]
        vocabulary_size = 128
        hidden_size = 64
        intermediate_size = 96
        layers = 2
        heads = 2
        kv_heads = 2
        max_positions = 32
        [data]
        sequence_length = 32
        global_batch_size = 2
        sources = [{{ name = "a", paths = ["{tmp_path}/data"] }}]
        """)
    rows = {}
    for kernels in ("torch", "triton"):
        command = [sys.executable, "-m", "megatron_ziya.cli", "train", str(tmp_path / "recipe.toml"), *layout]
        command += ["--precision.kernels", kernels, "--run.directory", str(tmp_path / kernels)]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        lines = (tmp_path / kernels / "metrics.jsonl").read_text().splitlines()
        rows[kernels] = [json.loads(line)[name] for line in lines for name in ("loss", "grad_norm")]
    assert rows["triton"] == pytest.approx(rows["torch"], rel=1e-6)
