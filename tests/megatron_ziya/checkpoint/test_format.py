"""A checkpoint cannot lie: what is damaged, or of another step or run, is refused by the name of file and tensor."""

import hashlib
import json
import random
import shutil
import zlib

import pytest
import torch
from models import small

from megatron_ziya.checkpoint import commands
from megatron_ziya.checkpoint.distributed import Origin, Reader, Segment, save, write_weights
from megatron_ziya.checkpoint.format import File, checksum, read_header, write_manifest
from megatron_ziya.checkpoint.streaming import memory
from megatron_ziya.model.weights import shapes

A = small()
SHAPES = shapes(A)
NAME = "layers.1.mlp.up.weight"
RANK = "rank_00000.safetensors"


def state(seed):
    draw = torch.Generator().manual_seed(seed)
    for kind in ("weight", "exp_avg"):
        for name, shape in SHAPES.items():
            values = torch.randn(shape, generator=draw).flatten()
            yield Segment(kind, name, 0, 0, shape[0], 0, values.numel()), values


def saved(folder, run="0123456789abcdef", step=4, seed=0):
    travels = folder.with_name("carried")
    travels.mkdir(parents=True, exist_ok=True)
    (travels / "config.json").write_text('{"some": "thing"}')
    return save(folder, Origin(run, step), A, state(seed), 0, "[run]\nsteps = 1\n", {"stage": "one"}, travels)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("good") / "checkpoints")


@pytest.fixture
def checkpoint(good, tmp_path):
    return shutil.copytree(good, tmp_path / "copy")


def place(file, key):
    """Where the bytes of a segment lie: `(first, last)`."""
    raw = file.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    first, last = json.loads(raw[8:begin])[key]["data_offsets"]
    return begin + first, begin + last


def key_of(name, kind="weight"):
    return next(segment.key() for segment, _ in state(0) if (segment.kind, segment.name) == (kind, name))


def changed(file, first, values):
    content = bytearray(file.read_bytes())
    content[first : first + len(values)] = values
    file.write_bytes(content)


def test_every_segment_carries_checksum_step_and_run(good):
    (file,) = Reader(good).files
    assert len(file.segments) == 2 * len(SHAPES)
    truth = {segment.key(): values for segment, values in state(0)}
    for segment in file.segments:
        run, step, digest = file.marks[segment.key()].split(":")
        assert (run, step) == ("0123456789abcdef", "4")
        place = f"0123456789abcdef:4:{segment.key()}:".encode()
        assert int(digest, 16) == zlib.crc32(place + truth[segment.key()].numpy().tobytes())
    assert Reader(good).run == "0123456789abcdef"
    Reader(good).check()


def damage_bit(file):
    first, _ = place(file, key_of(NAME))
    changed(file, first + 100, bytes([file.read_bytes()[first + 100] ^ 16]))


def damage_hole(file):
    first, _ = place(file, key_of(NAME))
    changed(file, first + 64, bytes(128))


def damage_swap(file):
    """Two tensors of one shape change places: each has good bytes, of the other."""
    one, two = place(file, key_of(NAME)), place(file, key_of(NAME, "exp_avg"))
    raw = file.read_bytes()
    changed(file, one[0], raw[slice(*two)])
    changed(file, two[0], raw[slice(*one)])


@pytest.mark.parametrize("damage", [damage_bit, damage_hole, damage_swap])
def test_bytes_that_changed_are_told_by_file_and_tensor(checkpoint, damage):
    damage(checkpoint / RANK)
    reader = Reader(checkpoint)
    reader.read("norm.weight")
    with pytest.raises(ValueError, match=rf"copy/{RANK}: weight {NAME} .* does not have its checksum"):
        reader.read(NAME)


def test_a_truncated_file_is_told_by_tensor(checkpoint):
    file = checkpoint / RANK
    first, last = place(file, key_of(NAME))
    file.write_bytes(file.read_bytes()[: first + 10])
    with pytest.raises(ValueError, match=rf"{RANK}: 10 of {last - first} bytes of weight {NAME} .* was cut short"):
        Reader(checkpoint)
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(ValueError, match=rf"{RANK} is no whole safetensors file \(its header is cut short\)"):
        Reader(checkpoint)


@pytest.mark.parametrize(("origin", "told"), [
    ({"step": 3}, "of step 3 of run 0123456789abcdef; the checkpoint is step 4 of run 0123456789abcdef"),
    ({"run": "fedc"}, "of step 4 of run fedc; the checkpoint is step 4 of run 0123456789abcdef"),
    ({"seed": 1}, "does not have the header that its manifest names; the file is damaged or of another checkpoint"),
])  # fmt: skip
def test_a_shard_of_another_step_or_run_is_told(checkpoint, tmp_path, origin, told):
    other = saved(tmp_path / "other/checkpoints", **origin)
    shutil.copy(other / RANK, checkpoint / RANK)
    with pytest.raises(ValueError, match=f"copy/{RANK} .*{told}"):
        Reader(checkpoint)


def test_good_bytes_of_another_step_under_this_steps_header_are_told(checkpoint, tmp_path):
    """As when a write of some blocks was lost."""
    other = saved(tmp_path / "other/checkpoints", step=3, seed=3)
    first, last = place(other / RANK, key_of(NAME))
    changed(checkpoint / RANK, place(checkpoint / RANK, key_of(NAME))[0], (other / RANK).read_bytes()[first:last])
    with pytest.raises(ValueError, match=rf"weight {NAME} .* does not have its checksum"):
        Reader(checkpoint).check()


def test_a_checksum_is_of_a_place_too(good):
    """A header that is believed, of another step: the bytes are good, and still refused."""
    ones, key = torch.ones(4), key_of(NAME)
    places = [
        (key, Origin("a", 1)),
        (key, Origin("a", 2)),
        (key, Origin("b", 1)),
        (key_of("norm.weight"), Origin("a", 1)),
    ]
    assert len({checksum(key, memory(ones), origin) for key, origin in places}) == 4
    digest = hashlib.sha256(read_header(good / RANK)).hexdigest()
    File(good / RANK, digest, Origin("0123456789abcdef", 4)).check()
    with pytest.raises(ValueError, match="does not have its checksum"):
        File(good / RANK, digest, Origin("0123456789abcdef", 5)).check()


def test_old_formats_and_edited_manifests_are_refused_in_a_line(checkpoint):
    manifest = checkpoint / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"step": 4', '"step": 5'))
    with pytest.raises(ValueError, match=r"manifest.json does not have its checksum; .* or was edited by hand"):
        Reader(checkpoint)
    for version in (1, 9):
        write_manifest(checkpoint, json.loads(text) | {"format": version})
        with pytest.raises(ValueError, match=f"format {version}, this program reads 2; use a matching version"):
            Reader(checkpoint)
    manifest.write_text("[]")
    with pytest.raises(ValueError, match="format None"):
        Reader(checkpoint)


def test_a_file_that_travels_is_vouched_for(checkpoint):
    for name in ("huggingface/config.json", "recipe.toml"):
        file = checkpoint / name
        before = file.read_bytes()
        file.write_bytes(before + b" ")
        with pytest.raises(ValueError, match=rf"{name} does not have the SHA-256 of manifest.json"):
            Reader(checkpoint).check()
        file.unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
            Reader(checkpoint).check()
        file.write_bytes(before)
    Reader(checkpoint).check()


def test_verify_finds_1000_of_1000_flipped_bits(tmp_path, capsys):
    """Anywhere: tensors, headers, manifest, recipe, what travels. A file's share is a fifth at least."""
    folder = tmp_path / "checkpoint"
    travels = tmp_path / "carried"
    travels.mkdir()
    (travels / "config.json").write_text('{"some": "thing"}')
    write_weights(folder, A, ((n, torch.randn(s)) for n, s in SHAPES.items()), travels, {"scale": 1e-05})
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    assert [file.name for file in files] == ["config.json", "manifest.json", RANK]
    assert commands.verify([str(folder)]) == 0
    draw, missed = random.Random(7), []
    for number in range(1000):
        file = files[number % len(files)]
        whole = file.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little") if file.name == RANK and number % 2 else len(whole)
        at, bit = draw.randrange(header), draw.randrange(8)
        changed(file, at, bytes([whole[at] ^ 1 << bit]))
        try:
            commands.verify([str(folder)])
            missed.append((file.name, at, bit))
        except (ValueError, FileNotFoundError):
            pass
        file.write_bytes(whole)
    assert not missed
    assert commands.verify([str(folder)]) == 0
