"""Seconds from `ziya train` to the first step of a tiny model on four processes, imports included."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RECIPE = """
[run]
directory = "{folder}/run"
steps = 1
device = "cpu"
[model]
vocabulary_size = 512
hidden_size = 64
intermediate_size = 176
layers = 4
heads = 4
max_positions = 64
[parallel]
tensor = 2
pipeline = 2
[data]
sequence_length = 64
global_batch_size = 4
sources = [{{ name = "noise", paths = ["{folder}/noise"] }}]
"""


def first_step(processes: int = 4) -> dict[str, float]:
    """Wall seconds until the first step's line, and CPU seconds of the whole run, all processes together.

    Raises RuntimeError when the run ends without a step.
    """
    from ziya_data.indexed.writer import IndexedDatasetWriter

    with tempfile.TemporaryDirectory() as folder:
        with IndexedDatasetWriter(f"{folder}/noise", vocabulary_size=512) as writer:
            writer.add(np.random.default_rng(0).integers(0, 512, 10_000), np.full(100, 100))
        recipe = Path(folder) / "tiny.toml"
        recipe.write_text(RECIPE.format(folder=folder), encoding="utf-8")
        command = [sys.executable, "-m", "megatron_ziya.cli", "train", str(recipe), "--processes", str(processes)]
        before, begin = _children(), time.perf_counter()
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert run.stdout is not None
        first = 0.0
        with run:
            for line in run.stdout:
                if "step 1/1" in line:
                    first = time.perf_counter() - begin
        if not first or run.returncode:
            raise RuntimeError(f"the tiny run made no step; exit code {run.returncode}")
        return {"seconds_to_first_step": first, "cpu_seconds_of_the_run": _children() - before}


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
