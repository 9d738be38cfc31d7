"""A rank that dies or fails ends the run, in bounded time, in one line each; replicas that differ are found."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks

from megatron_ziya import faults
from megatron_ziya.model.linear import Parameter
from megatron_ziya.parallel import mesh as meshes
from megatron_ziya.parallel.bucket import Bucket, Kind
from ziya_data.indexed.writer import IndexedDatasetWriter

RECIPE = """
[run]
directory = "{directory}"
steps = 100000
device = "cpu"
lost_after_seconds = 10.0
[model]
vocabulary_size = 96
hidden_size = 32
intermediate_size = 48
layers = 2
heads = 4
max_positions = 16
[parallel]
tensor = {tensor}
pipeline = {pipeline}
[data]
sequence_length = 16
global_batch_size = 4
[[data.sources]]
name = "random"
paths = ["{dataset}"]
[log]
tensorboard = false
report = false
peak_tflops = 1.0
[precision]
weights = "fp32"
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    prefix = tmp_path_factory.mktemp("index") / "random"
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 40, size=200)
    with IndexedDatasetWriter(prefix, vocabulary_size=96) as writer:
        writer.add(draw.integers(3, 96, size=int(lengths.sum())), lengths)
    return str(prefix)


def start(directory: Path, dataset: str, tensor: int = 1, pipeline: int = 1) -> subprocess.Popen:
    """A real run of four processes, under way."""
    recipe = directory / "recipe.toml"
    recipe.write_text(RECIPE.format(directory=directory / "run", dataset=dataset, tensor=tensor, pipeline=pipeline))
    command = [sys.executable, "-m", "megatron_ziya.cli", "train", str(recipe), "--processes", "4"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = directory / "run/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.1)
    return run


def rank_process(run: subprocess.Popen, rank: int) -> int:
    """The process id of a rank: a child of `run` with RANK in its environment."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == run.pid and f"RANK={rank}\0".encode() in (entry / "environ").read_bytes():
                    return int(entry.name)
            except OSError:
                continue
    raise AssertionError(f"rank {rank} is not there")


@pytest.mark.parametrize("lost", [2, 0])
def test_a_rank_that_dies_is_named_and_the_others_end(tmp_path, dataset, lost):
    run = start(tmp_path, dataset, tensor=2)
    os.kill(rank_process(run, lost), signal.SIGKILL)
    begin = time.monotonic()
    _, errors = run.communicate(timeout=60)
    assert time.monotonic() - begin < 40
    assert run.returncode == 128 + signal.SIGKILL
    lines = errors.splitlines()
    assert f"ziya train: rank {lost} was ended by SIGKILL" in lines
    named = {int(m[1]) for line in lines if (m := re.match(rf"train: rank (\d) ends: rank {lost} is lost", line))}
    assert named == {0, 1, 2, 3} - {lost}, errors
    assert len(lines) == 4, errors  # no traceback, of Python or C++


@pytest.mark.slow
def test_a_rank_that_stops_answering_is_named_too(tmp_path, dataset):
    run = start(tmp_path, dataset)
    stopped = rank_process(run, 3)
    os.kill(stopped, signal.SIGSTOP)
    _, errors = run.communicate(timeout=90)
    assert run.returncode == faults.EXIT_LOST
    assert "rank 3 is lost: no sign of life for 10 s" in errors
    assert "Traceback" not in errors


def _differing_replicas(different: bool) -> str:
    mesh = meshes.build(1, 1, torch.device("cpu"))
    bucket = Bucket([Parameter(torch.ones(5, 7))], Kind(decay=True), mesh, torch.float32)
    if different and mesh.rank == 2:
        bucket.flat[3] += 1e-7
    try:
        return str(faults.check_replicas([bucket], mesh))
    except faults.Fault as error:
        return str(error)


def test_replicas_that_differ_are_found():
    assert run_ranks(3, _differing_replicas, False) == ["3"] * 3
    for told in run_ranks(3, _differing_replicas, True):
        assert told.startswith("the weights of rank 0 and rank 2 differ in bucket 0")
