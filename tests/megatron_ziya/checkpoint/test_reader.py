"""Boxes of logical tensors are read, and hashed, from what overlaps them alone; nothing of a run is overwritten."""

import json
import os
import stat
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import small

from megatron_ziya.checkpoint.distributed import CONVERTED, Origin, refuse_replacing, save, write_weights
from megatron_ziya.checkpoint.format import File, Segment, read_header, read_manifest, write_file, write_manifest
from megatron_ziya.checkpoint.reader import Reader, resolve
from megatron_ziya.model.weights import shapes

A = small()
NAME = "layers.0.mlp.down.weight"  # [32, 56]
TRUTH = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in shapes(A).items()}


def cut(name, boxes, runs):
    """Segments of a weight: boxes `(dim, start, size)`, each cut into `runs` pieces."""
    for dim, start, size in boxes:
        flat = TRUTH[name].narrow(dim, start, size).reshape(-1)
        ends = [len(flat) * i // runs for i in range(runs + 1)]
        for first, last in pairwise(ends):
            yield Segment("weight", name, dim, start, size, first, last), flat[first:last]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One weight, cut by rows, by columns, and not at all; every run of elements in a file of its own."""
    folder = tmp_path_factory.mktemp("run")
    readers = []
    layouts = [[(0, 0, 16), (0, 16, 16)], [(1, 0, 14), (1, 14, 28), (1, 42, 14)], [(0, 0, 32)]]
    for number, boxes in enumerate(layouts, 1):
        path = save(folder, Origin("run", number), A, cut(NAME, boxes, 3), 0, "", {}, None)
        readers.append(Reader(path))
    return readers


@given(st.integers(0, 2), st.integers(0, 1), st.data())
def test_boxes_and_runs_are_those_of_the_whole(checkpoints, layout, dim, data):
    shape = TRUTH[NAME].shape
    start = data.draw(st.integers(0, shape[dim] - 1))
    size = data.draw(st.integers(0, shape[dim] - start))
    expected = TRUTH[NAME].narrow(dim, start, size)
    reader = checkpoints[layout]
    assert torch.equal(reader.read_box(NAME, "weight", dim, start, size), expected)
    if size:
        flat = expected.reshape(-1)
        first = data.draw(st.integers(0, len(flat) - 1))
        last = data.draw(st.integers(first + 1, len(flat)))
        run = Segment("weight", NAME, dim, start, size, first, last)
        assert torch.equal(reader.read_run(run), flat[first:last])


def two_files(folder):
    """A checkpoint of two files, a half of every weight in each (as two data-parallel ranks would write it)."""
    write_weights(folder, A, TRUTH.items())
    files = {}
    for half in (0, 1):
        tensors = {}
        for name in TRUTH:
            segment, values = list(cut(name, [(0, 0, len(TRUTH[name]))], 2))[half]
            tensors[segment.key()] = values
        file = folder / f"rank_0000{half}.safetensors"
        files[file.name] = write_file(file, tensors, CONVERTED)
    write_manifest(folder, read_manifest(folder) | {"files": files})
    return folder


def test_only_segments_that_are_read_are_checked_and_only_those_that_overlap_are_read(tmp_path, monkeypatch):
    folder = two_files(tmp_path / "checkpoint")
    second = folder / "rank_00001.safetensors"
    content, header = bytearray(second.read_bytes()), read_header(second)
    begin, _ = json.loads(header[8:])[Segment("weight", NAME, 0, 0, 32, 896, 1792).key()]["data_offsets"]
    content[len(header) + begin + 5] ^= 1
    second.write_bytes(content)
    read = []
    original = File.read
    monkeypatch.setattr(
        File, "read", lambda self, *rest: read.append((self.path.name, *rest[1:])) or original(self, *rest)
    )
    reader = Reader(folder)
    assert torch.equal(reader.read_box(NAME, "weight", 0, 2, 3), TRUTH[NAME][2:5])
    assert read == [("rank_00000.safetensors", 2 * 56, 5 * 56)]
    assert torch.equal(reader.read("norm.weight"), TRUTH["norm.weight"])
    told = rf"rank_00001.safetensors: weight {NAME} \(box 0:0:32, elements 896:1792\) does not have its checksum"
    with pytest.raises(ValueError, match=told):
        reader.read(NAME)
    with pytest.raises(ValueError, match=told):
        reader.check()
    Reader(folder, check=False).read(NAME)


def test_a_segment_is_hashed_once(tmp_path, monkeypatch):
    from megatron_ziya.checkpoint import format as module

    folder = two_files(tmp_path / "checkpoint")
    hashed = []
    original = module.checksum
    monkeypatch.setattr(module, "checksum", lambda key, *rest: hashed.append(key) or original(key, *rest))
    reader = Reader(folder)
    assert not hashed
    for name in TRUTH:
        for _ in range(2):
            assert torch.equal(reader.read(name), TRUTH[name])
    reader.check()
    assert len(hashed) == len(set(hashed)) == 2 * len(TRUTH)


def test_a_gap_is_told(tmp_path):
    segments = list(cut(NAME, [(0, 0, 32)], 4))
    reader = Reader(save(tmp_path, Origin("run", 1), A, segments[:3], 0, "", {}, None))
    assert torch.equal(reader.read_box(NAME, "weight", 0, 0, 24), TRUTH[NAME][:24])
    with pytest.raises(ValueError, match=f"1344 of 1792 elements of weight {NAME} are there"):
        reader.read(NAME)
    with pytest.raises(ValueError, match=r"has no weight norm\.weight"):
        reader.read("norm.weight")


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_weights(tmp_path / "checkpoint", A, TRUTH.items())
    finally:
        os.umask(before)
    files = sorted((tmp_path / "checkpoint").iterdir())
    assert len(files) == 2 and {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}


def test_what_a_run_wrote_is_not_replaced(tmp_path):
    path = save(tmp_path / "run/checkpoints", Origin("run", 3), A, cut(NAME, [(0, 0, 32)], 1), 0, "", {}, None)
    (tmp_path / "run/checkpoints/other").mkdir()
    for inside in (path, path / "manifest.json", tmp_path / "run/checkpoints/other"):
        with pytest.raises(ValueError, match=r"belongs to the run .*run and is not replaced"):
            refuse_replacing(inside)
    with pytest.raises(ValueError, match="is not replaced"):
        write_weights(path, A, TRUTH.items())
    segments = (Segment("exp_avg", "norm.weight", 0, 0, 32, 0, 32), TRUTH["norm.weight"])
    state = save(tmp_path / "copied", Origin("run", 1), A, [segments], 0, "", {}, None)
    with pytest.raises(ValueError, match="is a checkpoint with optimizer state"):
        refuse_replacing(state)
    for _ in range(2):
        write_weights(tmp_path / "weights", A, TRUTH.items())  # weights alone can be made again


def test_a_hugging_face_folder_is_named_as_such(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is a Hugging Face folder; run `ziya convert from-hf .* OUT` and load OUT"):
        resolve(tmp_path)
