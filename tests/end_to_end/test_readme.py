"""Every command of the README is run: by CI, by the demo that CI runs, or here."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ranks import free_port

from ziya_data.indexed.writer import IndexedDatasetWriter

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def commands() -> list[str]:
    """Lines of the README's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def demo_commands() -> set[str]:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples/demo/demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = demo  # dataclasses look their module up
    spec.loader.exec_module(demo)
    return {demo.as_typed(command) for step in demo.road(short=False) for command in step.commands}


PLAN = "ziya plan examples/ziya2-13b/base.toml --ranks 80 --tokens 650e9 --tflops 163 --draw-schedule schedule.png"


@pytest.mark.parametrize("command", commands())
def test_every_command_is_run_somewhere(command):
    by_ci = (ROOT / ".ci/run").read_text()
    here = command == PLAN or re.search(r"examples/ziya2-13b/(launch|slurm)\.sh", command)
    assert command in by_ci or command in demo_commands() or here, f"nothing runs {command!r}"


def test_plan(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run = subprocess.run([BIN / "ziya", *PLAN.split()[1:]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "tensor 1 x pipeline 2 x data 40 = 80 ranks" in run.stdout
    assert (tmp_path / "schedule.png").exists()


@pytest.fixture
def recipe(tmp_path) -> Path:
    with IndexedDatasetWriter(tmp_path / "data", vocabulary_size=64) as writer:
        writer.add(np.arange(2000) % 64, np.full(100, 20))
    path = tmp_path / "recipe.toml"
    path.write_text(f"""
        run = {{ directory = "{tmp_path}/run", steps = 2, device = "cpu" }}
        parallel = {{ tensor = 2 }}
        [model]
        vocabulary_size = 64
        hidden_size = 16
        intermediate_size = 32
        layers = 2
        heads = 2
        max_positions = 16
        [data]
        sequence_length = 16
        global_batch_size = 2
        sources = [{{ name = "a", paths = ["{tmp_path}/data"] }}]
        """)
    return path


def launch(script: str, recipe: Path, path: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": path, "GPUS": "2", "PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = ["bash", f"examples/ziya2-13b/{script}", str(recipe), "--run.steps", "1"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_the_torchrun_launcher_trains(recipe):
    run = launch("launch.sh", recipe, f"{BIN}:{os.environ['PATH']}")
    assert run.returncode == 0, run.stderr
    assert "step 1/1" in run.stdout
    directory = recipe.parent / "run"
    written = sorted(path.name for path in directory.iterdir())
    assert written == ["checkpoints", "logs", "metrics.jsonl", "recipe.toml", "report.html", "tensorboard"]


def test_the_slurm_launcher_trains(recipe):
    """Slurm's own two programs are played by two lines of shell; everything else is real."""
    shims = recipe.parent / "slurm"
    shims.mkdir()
    for name, text in ("scontrol", "echo localhost"), ("srun", 'SLURM_NODEID=0 exec "$@"'):
        (shims / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (shims / name).chmod(0o755)
    os.environ.update(SLURM_JOB_NODELIST="localhost", SLURM_JOB_NUM_NODES="1")
    run = launch("slurm.sh", recipe, f"{shims}:{BIN}:{os.environ['PATH']}")
    assert run.returncode == 0, run.stderr
    assert "step 1/1" in run.stdout
