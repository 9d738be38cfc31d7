import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_dataset.py"
SMALL = ["--documents", "200", "--tokens", "40000", "--sequence", "64", "--repeat", "1", "--rounds", "1"]


def run(*arguments: str) -> str:
    environment = {"PYTHONPATH": ":".join(sys.path)}
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_without_megatron_ours_alone_is_printed(tmp_path: Path) -> None:
    if importlib.util.find_spec("megatron"):
        pytest.skip("megatron-core is here")
    shown = run(*SMALL, "--folder", str(tmp_path), "--json", str(tmp_path / "numbers.json"))
    assert shown.startswith("megatron-core is not installed: ours alone")
    for job in ("write, Mtokens/s", "finalize, s", "samples of S, /s", "index of 4 epochs, own order, s"):
        assert f"| {job} | - | " in shown
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["theirs"] is None
    assert all(value > 0 for value in numbers["ours"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.json"]


def test_a_table_compares_rates_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOL.parent)
    spec = importlib.util.spec_from_file_location("benchmark_dataset", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    mine = {"write, Mtokens/s": 300.0, "finalize, s": 0.1, "index of 4 epochs, own order, s": 0.5}
    other = {"write, Mtokens/s": 15.0, "finalize, s": 4.0, "index of 4 epochs, Megatron's order, s": 2.0}
    shown = tool.table(mine, other)
    assert "| write, Mtokens/s | 15 | 300 | 20.0x | 20x |" in shown
    assert "| finalize, s | 4 | 0.1 | 40.0x | < 0.2 | 4.6 | 46.0x |" in shown
    assert "| index of 4 epochs, own order, s | 2 | 0.5 | 4.0x | 10x |" in shown
    assert int(tool.lengths_of(1000, 300_000).sum()) in range(298_000, 301_000)
