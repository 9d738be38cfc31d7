"""Every Triton kernel, compiled without a GPU for four kinds of one, stays within kernels/budgets.json."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_no_budget_spills() -> None:
    table = json.loads((ROOT / "kernels" / "budgets.json").read_text())
    assert set(table["budgets"]) == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert len({frozenset(budgets) for budgets in table["budgets"].values()}) == 1  # the same kernels for all
    for target, budgets in table["budgets"].items():
        assert {name: budget["stack"] for name, budget in budgets.items() if budget["stack"]} == {}, target


def test_attention_multiplies_on_tensor_cores_and_norms_load_whole_vectors() -> None:
    for target, budgets in json.loads((ROOT / "kernels" / "budgets.json").read_text())["budgets"].items():
        for name, budget in budgets.items():
            dense = name.startswith("attention") and "delta" not in name
            if "fp32" in name and target != "gfx942":  # NVIDIA's tensor cores would round FP32 to TF32; AMD's do not
                dense = False
            assert bool(budget["products"]) == dense, f"{target} {name}"
            if name.startswith(("rms_norm", "swiglu", "softmax", "adamw", "attention")):
                assert budget["narrow_loads"] == 0, f"{target} {name}"


@pytest.mark.parametrize(
    ("capability", "architecture", "target"),
    [
        ((8, 6), None, "sm_80"),
        ((10, 3), None, "sm_100"),
        ((12, 0), None, "sm_120"),
        ((9, 4), "gfx942:sramecc+", "gfx942"),
    ],
)
def test_a_card_gets_the_tiles_of_its_kind(capability, architecture, target, monkeypatch) -> None:
    """A card is played by what torch tells of it; one of an unknown kind gets the tiles of sm_80 and sm_90."""
    attention = pytest.importorskip("ziya_kernels.attention")
    monkeypatch.setattr(torch.version, "hip", architecture and "6.3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    properties = types.SimpleNamespace(gcnArchName=architecture)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    for dtype, own, usual in (
        (torch.bfloat16, attention.TILES_OF, {kernel: tiles[128] for kernel, tiles in attention.TILES.items()}),
        (torch.float32, attention.SMALL_OF, attention.SMALL),
    ):
        q = torch.empty(1, 1, 1, 128, dtype=dtype)
        for kernel in attention.TILES:
            assert attention._tile(kernel, q) == own.get(target, {}).get((kernel, 128), usual[kernel])


@pytest.mark.slow
@pytest.mark.timeout(1200)  # some seconds for each of 69 kernels
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_kernels_compile_within_their_budgets(target: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels"), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "kernels" / "budgets.py"), "--targets", target]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr
