"""What a file and a manifest of a checkpoint look like, and how each byte of them is vouched for.

Every segment carries `RUN:STEP:CRC-32` in its file's metadata. The CRC-32 is of run, step, the segment's key and its
bytes, so bytes of another step, run or place do not pass. It finds every error of up to 32 neighbouring bits, and all
but one in 2^32 of the others: enough for what disks do, and cheap. The manifest has the SHA-256
of each file's header, which holds the checksums, and of every other file whole; its own is its last key.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_ziya.checkpoint.huggingface import dtype_of_code
from megatron_ziya.checkpoint.streaming import TensorFile, memory
from ziya_data import _indexed

FORMAT = 2
MANIFEST = "manifest.json"


class Origin(NamedTuple):
    """Which run and step a checkpoint is of."""

    run: str
    step: int

    def __str__(self) -> str:
        return f"step {self.step} of run {self.run}"


class Segment(NamedTuple):
    """A run of elements of a box of a logical weight."""

    kind: str
    name: str
    dim: int
    start: int
    size: int
    first: int
    last: int

    def key(self) -> str:
        return f"{self.kind}|{self.name}|{self.dim}:{self.start}:{self.size}|{self.first}:{self.last}"

    @classmethod
    def whole(cls, kind: str, name: str, shape: tuple[int, ...]) -> "Segment":
        """All of a logical tensor."""
        return cls(kind, name, 0, 0, shape[0], 0, math.prod(shape))

    @classmethod
    def of_key(cls, key: str) -> "Segment":
        kind, name, box, span = key.split("|")
        return cls(kind, name, *map(int, box.split(":")), *map(int, span.split(":")))


def checksum(key: str, view: memoryview, origin: Origin) -> str:
    """zlib's CRC-32 of a segment, 8 hex digits: of where it belongs, and of its bytes."""
    place = _indexed.crc32(f"{origin.run}:{origin.step}:{key}:".encode())
    return f"{_indexed.crc32(view, place):08x}"


def weights_sum(segment: Segment, values: Tensor, shape: tuple[int, ...]) -> int:
    """A hash of elements of a logical weight of `shape`, whatever part of it they are; parts are added, mod 2^64.

    `_indexed.place_sum` over bits and places. So a layout's ranks each sum what they hold, and all layouts come to one
    number; a changed bit, or elements in each other's places, make it another. It is of a type's bits: a cast changes
    it.
    """
    whole = math.prod(shape[1:])
    width = segment.size if segment.dim == 1 else 1 << 62  # whole rows lie in a row
    offset = segment.start * (1 if segment.dim == 1 else whole)
    salt = int.from_bytes(hashlib.sha256(segment.name.encode()).digest()[:8], "little")
    return _indexed.place_sum(memory(values), values.element_size(), segment.first, width, whole, offset, salt)


def in_words(total: int) -> str:
    """16 hex digits of a `weights_sum`."""
    return f"{total % 2**64:016x}"


class File:
    """One safetensors file of a checkpoint. Its header is checked at once, a segment when it is first read from."""

    def __init__(self, path: Path, digest: str, origin: Origin, check: bool = True) -> None:
        """`digest` is the SHA-256 of the header. Without `check` the bytes of segments are believed.

        Raises FileNotFoundError, or ValueError for a header that is damaged or of another checkpoint.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing from the checkpoint")
        self.path, self.origin = path, origin
        header = read_header(path)
        if hashlib.sha256(header).hexdigest() != digest:
            raise ValueError(f"{path} {_stranger(header, origin)}")
        described = json.loads(header[8:])
        self.marks: dict[str, str] = described.pop("__metadata__")
        self._unchecked = set(described) if check else set()
        self._refuse_truncated(len(header), described)
        try:
            self._handle = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file ({error}); the checkpoint is damaged") from None
        self.segments = [Segment.of_key(key) for key in sorted(described)]

    def _refuse_truncated(self, begin: int, described: dict[str, Any]) -> None:
        there, last = self.path.stat().st_size - begin, 0
        for key, entry in sorted(described.items(), key=lambda item: item[1]["data_offsets"][0]):
            first, last = entry["data_offsets"]
            if last > there:
                raise ValueError(
                    f"{self.path}: {max(there - first, 0)} of {last - first} bytes of {_words(key)} are there; "
                    "the file was cut short"
                )
        if there > last:
            raise ValueError(f"{self.path} has {there - last} bytes too many; the file is damaged")

    def check(self) -> None:
        """Compare every segment with its checksum, once. Raises ValueError where one differs."""
        for segment in self.segments:
            self._check(segment.key())

    def _check(self, key: str) -> None:
        if key not in self._unchecked:
            return
        found = checksum(key, memory(self._handle.get_tensor(key)), self.origin)
        if f"{self.origin.run}:{self.origin.step}:{found}" != self.marks.get(key):
            raise ValueError(f"{self.path}: {_words(key)} does not have its checksum; the file is damaged")
        self._unchecked.remove(key)

    def dtype(self, segment: Segment) -> torch.dtype:
        """Its type, from the header."""
        return dtype_of_code(self._handle.get_slice(segment.key()).get_dtype())

    def read(self, segment: Segment, first: int, last: int) -> Tensor:
        """Elements `first` to `last` of the segment's box, all of which lie in the segment, flat."""
        self._check(segment.key())
        values: Tensor = self._handle.get_slice(segment.key())[first - segment.first : last - segment.first]
        return values


def _words(key: str) -> str:
    """`weight layers.0.mlp.down.weight (box 1:64:64, elements 0:4096)`, of a segment's key."""
    kind, name, box, span = key.split("|")
    return f"{kind} {name} (box {box}, elements {span})"


def _stranger(header: bytes, origin: Origin) -> str:
    """Why a header is not the one that the manifest names: of another step or run, or else damaged."""
    try:
        marks = json.loads(header[8:])["__metadata__"]
        theirs = sorted({mark.rpartition(":")[0] for key, mark in marks.items() if key != "format"})
        (run, _, step), key = theirs[0].rpartition(":"), next(key for key in marks if key != "format")
        if Origin(run, int(step)) != origin:
            return f"holds {_words(key)} of {Origin(run, int(step))}; the checkpoint is {origin}"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        pass  # it cannot even be read
    return "does not have the header that its manifest names; the file is damaged or of another checkpoint"


def read_header(path: Path) -> bytes:
    """Length and JSON of a safetensors file. Raises ValueError when the file is shorter."""
    with path.open("rb") as stream:
        length = stream.read(8)
        size = int.from_bytes(length, "little")
        if len(length) < 8 or size > path.stat().st_size - 8:
            raise ValueError(
                f"{path} is no whole safetensors file (its header is cut short); the checkpoint is damaged"
            )
        return length + stream.read(size)


def write_file(file: Path, tensors: Mapping[str, Tensor], origin: Origin) -> str:
    """Write one safetensors file, durably; returns the SHA-256 of its header. Holds one tensor's copy at most."""
    written = new_file(file, tensors, origin)
    for key, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):  # so that all begin aligned
        written.add(key, tensor)
    return close_file(file, written)


def new_file(file: Path, keys: Iterable[str], origin: Origin) -> TensorFile:
    """A file of segments to be, each with its checksum, step and run."""
    return TensorFile(file, keys, lambda key, view: f"{origin.run}:{origin.step}:{checksum(key, view, origin)}")


def close_file(file: Path, written: TensorFile) -> str:
    """Finish a file, durably; returns the SHA-256 of its header."""
    header = written.close()
    sync(file)
    return hashlib.sha256(header).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, or ValueError for one of another format or that was changed after it was written."""
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); the checkpoint is damaged") from None
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise ValueError(f"{file}: format {version}, this program reads {FORMAT}; use a matching version")
    if text != _dump(content):  # every byte, which JSON alone would not tell
        raise ValueError(f"{file} does not have its checksum; the checkpoint is damaged, or was edited by hand")
    return dict(content)


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write it whole or not at all, with its checksum."""
    unfinished = folder / (MANIFEST + ".tmp")
    unfinished.write_text(_dump(content), encoding="utf-8")
    sync(unfinished)
    unfinished.replace(folder / MANIFEST)


def _dump(content: dict[str, Any]) -> str:
    """The manifest's text, with a fresh checksum as the last key."""
    bare = {key: value for key, value in content.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(bare, indent=2).encode()).hexdigest()
    return json.dumps(bare | {"checksum": digest}, indent=2) + "\n"


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
