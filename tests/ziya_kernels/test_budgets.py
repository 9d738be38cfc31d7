"""Every Triton kernel, compiled for sm_80 and sm_90 without a GPU, stays within kernels/budgets.json."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_no_budget_spills() -> None:
    table = json.loads((ROOT / "kernels" / "budgets.json").read_text())
    assert set(table["budgets"]) == {"sm_80", "sm_90"}
    for target, budgets in table["budgets"].items():
        assert {name: budget["stack"] for name, budget in budgets.items() if budget["stack"]} == {}, target


@pytest.mark.slow
def test_kernels_compile_within_their_budgets(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels"), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "kernels" / "budgets.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
