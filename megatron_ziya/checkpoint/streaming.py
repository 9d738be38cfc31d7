"""Safetensors files written one tensor at a time, so that memory never holds more than the largest tensor.

The layout is safetensors' own: a header's length (u64, little endian), the header (JSON: type, shape and byte range
of each tensor; spaces behind it), the bytes.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_ziya.checkpoint.huggingface import CODES

CODE_OF = {dtype: code for code, dtype in CODES.items()}
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
    """SHA-256 of each tensor's bytes; empty when none was wanted."""


def write_model(
    folder: Path,
    forms: Mapping[str, Form],
    read: Callable[[str], Tensor],
    shard_bytes: int = SHARD_BYTES,
    digests: bool = True,
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
    found: dict[str, str] = {}
    places: dict[str, str] = {}
    for number, members in enumerate(shards, 1):
        single = len(shards) == 1
        file = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        found |= _write_shard(folder / file, {name: forms[name] for name in members}, read, digests)
        places |= dict.fromkeys(members, file)
        print(f"written: {file}, {sum(sizes[name] for name in members) / 1e9:.3f} GB", flush=True)
    total = sum(sizes.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return Written(total, found)


def _write_shard(file: Path, forms: Mapping[str, Form], read: Callable[[str], Tensor], wanted: bool) -> dict[str, str]:
    shard, digests = TensorFile(file, forms), Digests()
    for name, form in sorted(forms.items(), key=lambda item: -item[1].dtype.itemsize):  # wide types first: all aligned
        tensor = read(name)
        assert tensor.shape == form.shape, f"{name}: {tuple(tensor.shape)} is not {form.shape}"
        tensor = tensor.to(form.dtype)
        if wanted:
            digests.note(name, tensor)
        shard.add(name, tensor)
    shard.close()
    return digests.all()


class TensorFile:
    """A safetensors file that grows by one tensor after the other; the header goes into room left at its front."""

    ENTRY = 160  # bytes that a tensor takes in the header at most, beside twice its name, and its mark
    FLUSH = 1 << 26  # bytes after which the disk is set to work, while more are written

    def __init__(self, file: Path, names: Iterable[str], mark: Callable[[str, memoryview], str] | None = None) -> None:
        """`names` are all that may come; `mark` makes a line of a tensor's bytes for the metadata, under its name."""
        self.mark = mark
        marks = len(mark("", memoryview(b""))) if mark else 0
        self.room = sum(self.ENTRY + 2 * len(name) + marks for name in names) + 64
        self.room += -self.room % 64  # the bytes begin aligned
        self.size = 0
        self._entries: dict[str, object] = {}
        self._marks = {"format": "pt"}
        self._pool, self._disk = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None
        self._flushed = 0
        self._stream = file.open("wb")
        self._stream.seek(8 + self.room)

    def takes(self, tensor: Tensor) -> bool:
        """Whether the tensor would begin aligned to its own type: the format has no gaps."""
        return self.size % tensor.element_size() == 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor's bytes behind those of the others."""
        assert self.takes(tensor), f"{name} would not begin aligned"
        view = memory(tensor)
        if self.mark:  # in a thread: neither it nor the write needs the interpreter
            marked = self._pool.submit(self.mark, name, view)
            self._stream.write(view)
            self._marks[name] = marked.result()
        else:
            self._stream.write(view)
        end = self.size + len(view)
        self._entries[name] = {
            "dtype": CODE_OF[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [self.size, end]
        }  # fmt: skip
        self.size = end
        if end - self._flushed > self.FLUSH and (self._flushing is None or self._flushing.done()):
            self._wait_for_disk()
            self._stream.flush()
            self._flushing, self._flushed = self._disk.submit(os.fsync, self._stream.fileno()), end

    def _wait_for_disk(self) -> None:
        """Raises what the disk has said."""
        if self._flushing is not None:
            self._flushing.result()

    def close(self) -> bytes:
        """Put the header into its place. Returns it, as it stands in the file."""
        text = json.dumps({"__metadata__": self._marks} | self._entries, separators=(",", ":")).encode()
        assert len(text) <= self.room, f"a header of {len(text)} bytes has room for {self.room}"
        header = self.room.to_bytes(8, "little") + text.ljust(self.room)
        self._wait_for_disk()
        self._stream.seek(0)
        self._stream.write(header)
        self._stream.close()
        self._pool.shutdown()
        self._disk.shutdown()
        return header


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, not copied when it is contiguous."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.stride(0) != 1:  # an element or none of a view: contiguous, whatever its stride
        flat = flat.new_empty(len(flat)).copy_(flat)
    return flat.view(torch.uint8).numpy().data


class Digests:
    """SHA-256 of tensors, each made in a thread while it is written; one that is not done holds up the next."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._found: dict[str, Future[str]] = {}
        self._last: Future[str] | None = None

    def note(self, name: str, tensor: Tensor) -> None:
        """Begin with the tensor's digest; it must not change until the next call has returned."""
        if self._last is not None:
            self._last.result()
        self._found[name] = self._last = self._pool.submit(digest, tensor)

    def all(self) -> dict[str, str]:
        """By name, once all are made."""
        found = {name: future.result() for name, future in self._found.items()}
        self._pool.shutdown()
        return found


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(memory(tensor)).hexdigest()


def require_space(folder: Path, needed: int) -> None:
    """Raises ValueError when the disk of `folder` has no room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(f"{folder} needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free; make room")
