"""Safetensors files written one tensor at a time, so that memory never holds more than the largest tensor.

The layout is safetensors' own: a header's length (u64, little endian), the header (JSON: type, shape and byte range
of each tensor), the bytes.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_ziya.checkpoint.huggingface import CODES

SHARD_BYTES = 5_000_000_000  # transformers 4's habit: "5GB"


class Form(NamedTuple):
    """Shape and type that a tensor is to have in the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Written(NamedTuple):
    """What `write_model` has put into a folder."""

    bytes: int
    digests: dict[str, str]
    """SHA-256 of each tensor's bytes."""


def write_model(
    folder: Path, forms: Mapping[str, Form], read: Callable[[str], Tensor], shard_bytes: int = SHARD_BYTES
) -> Written:
    """Write `model.safetensors`, or shards with their index when that is more than `shard_bytes`.

    `read(name)` gives each tensor when its turn comes; it is cast to the type of its form.
    """
    sizes = {name: form.bytes for name, form in forms.items()}
    require_space(folder, sum(sizes.values()))
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    digests: dict[str, str] = {}
    places: dict[str, str] = {}
    for number, members in enumerate(shards, 1):
        single = len(shards) == 1
        file = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        digests |= _write_file(folder / file, {name: forms[name] for name in members}, read)
        places |= dict.fromkeys(members, file)
        print(f"written: {file}, {sum(sizes[name] for name in members) / 1e9:.3f} GB", flush=True)
    total = sum(sizes.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return Written(total, digests)


def _write_file(file: Path, forms: Mapping[str, Form], read: Callable[[str], Tensor]) -> dict[str, str]:
    codes = {dtype: code for code, dtype in CODES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, form in forms.items():
        end = offset + form.bytes
        header[name] = {"dtype": codes[form.dtype], "shape": form.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the bytes begin aligned
    digests = {}
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, form in forms.items():
            tensor = read(name)
            assert tensor.shape == form.shape, f"{name}: {tuple(tensor.shape)} is not {form.shape}"
            view = memory(tensor.to(form.dtype))
            stream.write(view)
            digests[name] = hashlib.sha256(view).hexdigest()
    return digests


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, not copied when it is contiguous."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(memory(tensor)).hexdigest()


def require_space(folder: Path, needed: int) -> None:
    """Raises ValueError when the disk of `folder` has no room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(f"{folder} needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free; make room")
