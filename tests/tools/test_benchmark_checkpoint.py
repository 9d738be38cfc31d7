"""The table of damages: ours refuses every one by name, DCP loads three in silence."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_checkpoint", TOOLS / "benchmark_checkpoint.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["benchmark_checkpoint"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_ours_refuses_what_dcp_loads(script, tmp_path):
    rows = [line.strip("| ").split(" | ") for line in script.damage_table(tmp_path / "damage")[2:]]
    assert [row[0] for row in rows] == list(script.DAMAGES)
    assert all(row[1].startswith("refused: ") and "rank_00000.safetensors" in row[1] for row in rows)
    silent = [row[0] for row in rows if row[2] == "**loaded in silence**"]
    assert silent == [*list(script.DAMAGES)[:2], "the file of another step"]
    assert not any(str(tmp_path) in row[1] + row[2] for row in rows)


def test_the_state_is_about_as_large_as_asked_for(script):
    for gigabytes in (1.2, 5.0):
        assert abs(12 * script.architecture(gigabytes).parameters() / 1e9 - gigabytes) < 0.08
