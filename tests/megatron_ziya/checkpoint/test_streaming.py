"""Safetensors files that grow a tensor at a time: what safetensors itself reads, and no more memory than that takes."""

import json
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
import sys, json
from pathlib import Path
from megatron_ziya.checkpoint import convert

def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

source, out, back = map(Path, sys.argv[1:])
convert.from_hf(source, out, verify=False)   # imports and buffers
found = []
for work in (lambda: convert.from_hf(source, out, verify=False), lambda: convert.to_hf(out, back, verify=False)):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("RssAnon")
    high = status("VmHWM")
    work()
    found.append(status("VmHWM") - high)
print(json.dumps(found))
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
    """Resident memory counts the pages of the file that is read, which the kernel may take back at any time: of the
    source that is mapped, at most one file. So the model is cut into files of 20 MB, and the bound is one of them and
    four tensors: the one read, a cast or cut of it, and what the C library keeps."""
    convert.to_hf(large / "checkpoint", tmp_path / "shards", verify=False, shard_bytes=20_000_000)
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "shards"), str(tmp_path / "out"), str(tmp_path / "back")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    from_hf, _ = json.loads(run.stdout.splitlines()[-1])
    assert from_hf < 20_000_000 + 4 * 8_400_000
