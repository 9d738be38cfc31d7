"""The yardstick measures what it says: same work for all, shares of the right peer, whole files."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    found = []
    for name in ("peer_systems", "compare_peers"):
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        found.append(module)
    return found


def test_one_process_starts_at_the_same_loss_and_learns(tools):
    """transformers, torch's plain model and ours see the same rows: about ln V at first, less after some steps."""
    systems, _ = tools
    size = systems.Size(32, 2, 2, 64, 128, 16, 8)
    for name in ("transformers, fp32", "ours, fp32", "ours, bf16"):
        step = systems.SYSTEMS[name].build(systems.SYSTEMS[name], size)
        losses = [step() for _ in range(5)]
        assert losses[0] == pytest.approx(torch.tensor(128.0).log().item(), rel=0.02), name
        assert losses[-1] < losses[0], name


def test_every_system_runs_and_the_table_is_written(tools, tmp_path, capsys):
    systems, compare = tools
    words = ["matrix products alone, fp32", "transformers, fp32", "DTensor", "ours, fp32", "ours tp2 +"]
    files = ["--json", str(tmp_path / "peers.json"), "--markdown", str(tmp_path / "peers.md")]
    assert compare.main(["--small", "--rounds", "2", "--steps", "1", "--only", *words, *files]) == 0
    result = json.loads((tmp_path / "peers.json").read_text())
    assert [row["system"] for row in result["table"]] == [n for n in systems.SYSTEMS if any(w in n for w in words)]
    assert all(row["cpu_seconds"] > 0 for row in result["table"])
    assert (tmp_path / "peers.md").read_text() == capsys.readouterr().out
    assert not list(tmp_path.glob("*.tmp"))


def test_share_is_of_transformers_with_the_same_type_in_the_same_round(tools):
    _, compare = tools
    costs = {
        "transformers, fp32": [compare.Cost(2.0, 2.0), compare.Cost(20.0, 2.0), compare.Cost(2.0, 2.0)],
        "transformers, bf16": [compare.Cost(1.0, 1.0)] * 3,
        "ours, fp32": [compare.Cost(1.8, 1.0), compare.Cost(18.0, 1.0), compare.Cost(1.8, 1.0)],
        "ours, bf16": [compare.Cost(0.8, 1.0)] * 3,
    }
    shares = {row["system"]: row["share"] for row in compare.summarise(costs)}
    assert shares["ours, fp32"] == pytest.approx(0.9)
    assert shares["ours, bf16"] == pytest.approx(0.8)


def test_floor_counts_every_matrix_product(tools):
    """Six FLOPs a weight and token: the products of the floor are those of the model, no more."""
    from torch.utils.flop_counter import FlopCounterMode

    systems, _ = tools
    size = systems.Size(32, 2, 2, 64, 128, 16, 8)
    step = systems.matrix_products(systems.System(1, "fp32", systems.matrix_products), size)
    with FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == 6 * size.parameters() * size.sequence * size.sequences


def test_a_rank_that_fails_ends_the_fleet_and_says_why(tools):
    systems, compare = tools
    with pytest.raises(RuntimeError, match="KeyError: 'fp17'"):
        compare.Fleet(systems.System(2, "fp17", systems.matrix_products), systems.Size(32, 2, 2, 64, 128, 16))


def test_unknown_word_is_one_line(tools, capsys):
    _, compare = tools
    with pytest.raises(SystemExit):
        compare.main(["--only", "nanotron"])
    assert "nanotron fits no system" in capsys.readouterr().err
