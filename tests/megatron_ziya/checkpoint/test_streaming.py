"""Safetensors files that grow a tensor at a time: what safetensors itself reads, and no more memory than that takes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from megatron_ziya.checkpoint import convert
from megatron_ziya.checkpoint.distributed import write_weights
from megatron_ziya.checkpoint.streaming import TensorFile
from megatron_ziya.config import Architecture
from megatron_ziya.model.weights import shapes

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


@given(st.lists(st.tuples(DTYPES, st.lists(st.integers(0, 5), min_size=1, max_size=2)), max_size=6), st.booleans())
def test_safetensors_reads_what_was_added(tmp_path_factory, kinds, marked):
    file = tmp_path_factory.mktemp("file") / "a.safetensors"
    tensors = {f"层.{number}": torch.randn(shape).to(dtype) for number, (dtype, shape) in enumerate(kinds)}
    mark = (lambda name, view: f"{len(view):08x}") if marked else None
    written, expected = TensorFile(file, tensors, mark), {}
    for name, tensor in tensors.items():
        if written.takes(tensor):
            written.add(name, tensor)
            expected[name] = tensor
    header = written.close()
    assert file.read_bytes()[: len(header)] == header and len(header) % 8 == 0
    with safe_open(file, "pt") as handle:
        assert set(handle.keys()) == set(expected)
        for name, tensor in expected.items():
            assert torch.equal(handle.get_tensor(name), tensor) and handle.get_tensor(name).dtype == tensor.dtype
        marks = {name: f"{tensor.nbytes:08x}" for name, tensor in expected.items()} if marked else {}
        assert handle.metadata() == {"format": "pt"} | marks


def test_a_checkpoint_of_mixed_types_and_odd_sizes_is_read_again(tmp_path):
    a = Architecture(7, 6, 5, 1, 1, max_positions=8)
    weights = {
        name: torch.randn(shape).to(torch.bfloat16 if number % 2 else torch.float32)
        for number, (name, shape) in enumerate(shapes(a).items())
    }
    write_weights(tmp_path / "out", a, weights.items())
    from megatron_ziya.checkpoint.reader import Reader

    for name, tensor in weights.items():
        assert torch.equal(Reader(tmp_path / "out").read(name), tensor), name


PROGRAM = """
import json, sys, threading, time
from pathlib import Path
import torch
from megatron_ziya.checkpoint import convert

def anonymous():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("RssAnon"))

def most(work):
    before, found, over = anonymous(), [], threading.Event()
    def watch():
        while not over.wait(0.001):
            found.append(anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    work()
    over.set()
    thread.join()
    return max(found) - before

source, out, back = map(Path, sys.argv[1:])
work = lambda: convert.from_hf(source, out, verify=False)
work()  # imports
print(json.dumps([most(work), most(lambda: convert.to_hf(out, back, torch.float64, verify=False))]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """160 MB of weights, the largest of them 8 MB."""
    a = Architecture(2048, 1024, 2048, 5, 8, max_positions=64)
    folder = tmp_path_factory.mktemp("large")
    write_weights(folder / "checkpoint", a, ((name, torch.randn(shape)) for name, shape in shapes(a).items()))
    convert.to_hf(folder / "checkpoint", folder / "source", verify=False)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_a_few_of_the_largest_tensor_whatever_the_model(large, tmp_path):
    """What is mapped from the files does not count, as the system may take it back at any time: all else is next to
    nothing, but for tensors that are cast. Of those there are two, the one in hand and the one whose digest is still
    made. The model is twenty."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(large / "source"), str(tmp_path / "out"), str(tmp_path / "back")],
        capture_output=True, text=True, check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},  # what is freed goes back to the system at once
    )  # fmt: skip
    from_hf, to_hf = json.loads(run.stdout.splitlines()[-1])
    assert from_hf < 2_000_000, from_hf
    assert 8_400_000 < to_hf < 2 * 2 * 8_400_000 + 2_000_000, to_hf  # FP64 of the largest FP32 tensor, twice
