"""The script is `ziya convert` under another name."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools/convert_checkpoint.py"


def run(*words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code


def test_there_and_back(tmp_path, monkeypatch, capsys):
    from models import save, small, transformers_model

    source = save(transformers_model(small()), tmp_path / "source")
    assert run("from-hf", source, tmp_path / "checkpoint", monkeypatch=monkeypatch) == 0
    assert run("to-hf", tmp_path / "checkpoint", tmp_path / "back", monkeypatch=monkeypatch) == 0
    assert run("info", tmp_path / "nowhere", monkeypatch=monkeypatch) == 2
    assert "neither a checkpoint nor a run directory" in capsys.readouterr().err
    with (source / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert run("from-hf", source, tmp_path / "again", monkeypatch=monkeypatch) == 2
    assert "model.safetensors is damaged or truncated" in capsys.readouterr().err
