"""The checkpoint format: every rank writes its own part, and any layout reads it.

    step_000100/
      manifest.json             format version, step, architecture, files with their SHA-256, what the run adds
      rank_00000.safetensors    one file a writer
      recipe.toml               the resolved recipe of the run
      huggingface/              tokenizer and configuration files that travel with the model, if it came with some

A tensor in a file is a *segment*, and its key says what it is:

    exp_avg|layers.0.mlp.down.weight|1:64:64|0:4096
    kind    logical weight           box     range

the elements `0:4096` of the row-major box that starts at 64 and is 64 wide along dimension 1. Kinds are `weight`,
`master` (FP32, when the weights are not), `exp_avg` and `exp_avg_sq`. A folder is written as `step_000100.tmp` and
renamed when it is whole.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_ziya import config
from megatron_ziya.config import Architecture
from megatron_ziya.model.weights import shapes

FORMAT = 1
FILE_BYTES = 1 << 30  # `write_weights` starts a new file after this much


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
    def of_key(cls, key: str) -> "Segment":
        kind, name, box, span = key.split("|")
        return cls(kind, name, *map(int, box.split(":")), *map(int, span.split(":")))


class Reader:
    """A checkpoint folder, open for reading whole logical tensors."""

    def __init__(self, path: Path | str, check: bool = True) -> None:
        """Raises FileNotFoundError, or ValueError when the folder is not a whole checkpoint of ours.

        `check` compares the SHA-256 of every file with the manifest.
        """
        self.path = Path(path)
        manifest = self.path / "manifest.json"
        if not manifest.is_file():
            raise FileNotFoundError(f"{self.path} is not a checkpoint: it has no manifest.json")
        try:
            self.manifest: dict[str, Any] = json.loads(manifest.read_text())
        except ValueError as error:
            raise ValueError(f"{manifest} is not JSON ({error}); the checkpoint is damaged") from None
        version = self.manifest.get("format")
        if version != FORMAT:
            raise ValueError(f"{manifest}: format {version}, this program reads {FORMAT}; use a matching version")
        self.architecture: Architecture = config.from_dict(Architecture, self.manifest["architecture"])
        self.step: int = self.manifest["step"]
        self.shapes = shapes(self.architecture)
        self.segments: dict[tuple[str, str], list[tuple[Segment, Any]]] = defaultdict(list)
        for file, digest in self.manifest["files"].items():
            self._open(self.path / file, digest if check else None)

    def _open(self, file: Path, digest: str | None) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing from the checkpoint")
        if digest is not None and sha256(file) != digest:
            raise ValueError(f"{file} does not have the SHA-256 of its manifest; the file is damaged")
        try:
            handle = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{file} is no whole safetensors file ({error}); the checkpoint is damaged") from None
        for key in sorted(handle.keys()):
            segment = Segment.of_key(key)
            self.segments[segment.kind, segment.name].append((segment, handle))

    def kinds(self) -> set[str]:
        """Which of `weight`, `master`, `exp_avg`, `exp_avg_sq` are there."""
        return {kind for kind, _ in self.segments}

    def read(self, name: str, kind: str = "weight") -> Tensor:
        """A whole logical tensor, put together from its segments. Raises ValueError when part of it is missing."""
        parts = self.segments.get((kind, name), [])
        if name not in self.shapes or not parts:
            raise ValueError(f"{self.path} has no {kind} {name}")
        shape = self.shapes[name]
        boxes: dict[tuple[int, int, int], list[tuple[Segment, Any]]] = defaultdict(list)
        for segment, handle in parts:
            boxes[segment.dim, segment.start, segment.size].append((segment, handle))
        whole, found = None, 0
        for (dim, start, size), segments in boxes.items():
            flat = None
            for segment, handle in segments:
                values = handle.get_tensor(segment.key())
                if flat is None:
                    flat = values.new_empty(math.prod(size if d == dim else n for d, n in enumerate(shape)))
                flat[segment.first : segment.last] = values
                found += values.numel()
            assert flat is not None
            if size == shape[dim]:
                whole = flat.view(shape)
            else:
                whole = flat.new_empty(shape) if whole is None else whole
                box = whole.narrow(dim, start, size)
                box.copy_(flat.view(box.shape))
        if whole is None or found != math.prod(shape):
            raise ValueError(f"{self.path}: {found} of {math.prod(shape)} elements of {kind} {name} are there")
        return whole


def write_weights(
    path: Path | str,
    architecture: Architecture,
    weights: Iterable[tuple[str, Tensor]],
    huggingface: Path | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint of weights alone from one process, one tensor after the other.

    `huggingface` is a folder whose files travel along. Raises ValueError for unknown names, wrong shapes and gaps.
    """
    path = Path(path)
    wanted = shapes(architecture)
    temporary = fresh_folder(path)
    files: dict[str, str] = {}
    batch: dict[str, Tensor] = {}

    def flush() -> None:
        if batch:
            file = temporary / f"rank_{len(files):05d}.safetensors"
            files[file.name] = write_file(file, batch)
            batch.clear()

    for name, tensor in weights:
        shape = wanted.pop(name, None)
        if shape != tuple(tensor.shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the architecture asks for {shape}")
        batch[Segment("weight", name, 0, 0, shape[0], 0, tensor.numel()).key()] = tensor.reshape(-1)
        if sum(t.nbytes for t in batch.values()) > FILE_BYTES:
            flush()
    flush()
    if wanted:
        raise ValueError(f"{path}: {next(iter(wanted))} was not given")
    finish(path, temporary, architecture, 0, files, extra or {}, huggingface)


def save(
    folder: Path,
    step: int,
    architecture: Architecture,
    segments: Iterable[tuple[Segment, Tensor]],
    rank: int,
    recipe: str,
    extra: dict[str, Any],
    huggingface: Path | None,
) -> Path:
    """Write `folder/step_N` from all ranks; each gives the segments that it owns. Returns the folder's path."""
    path = folder / f"step_{step:06d}"
    temporary = fresh_folder(path) if rank == 0 else path.with_name(path.name + ".tmp")
    _barrier()
    file = temporary / f"rank_{rank:05d}.safetensors"
    tensors = {segment.key(): tensor for segment, tensor in segments}
    digest = write_file(file, tensors) if tensors else ""
    file.with_suffix(".sha256").write_text(digest)
    _barrier()
    if rank == 0:
        digests = sorted(temporary.glob("rank_*.sha256"))
        files = {d.with_suffix(".safetensors").name: d.read_text() for d in digests if d.read_text()}
        for digest_file in digests:
            digest_file.unlink()
        (temporary / "recipe.toml").write_text(recipe, encoding="utf-8")
        finish(path, temporary, architecture, step, files, extra, huggingface)
    _barrier()
    return path


def fresh_folder(path: Path) -> Path:
    """An empty `path.tmp`; what an earlier, interrupted write left there is removed."""
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def write_file(file: Path, tensors: dict[str, Tensor]) -> str:
    """Write one safetensors file; returns its SHA-256."""
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, file)
    return sha256(file)


def finish(
    path: Path,
    temporary: Path,
    architecture: Architecture,
    step: int,
    files: dict[str, str],
    extra: dict[str, Any],
    huggingface: Path | None,
) -> None:
    """Write the manifest, make it durable, and put the folder under its final name."""
    if huggingface is not None and huggingface.is_dir():
        shutil.copytree(huggingface, temporary / "huggingface")
    sizes = {f.name: getattr(architecture, f.name) for f in dataclasses.fields(Architecture)}
    manifest = {"format": FORMAT, "step": step, "architecture": sizes, "files": files, **extra}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for file in temporary.iterdir():
        if file.is_file():
            _sync(file)
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)
    _sync(path.parent)


def steps(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    whole = [p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name) and (p / "manifest.json").is_file()]
    return sorted(whole, key=lambda p: int(p.name.removeprefix("step_")))


def resolve(path: Path | str) -> Path:
    """A checkpoint folder, or the newest one of a run directory. Raises FileNotFoundError when there is none."""
    path = Path(path)
    if (path / "manifest.json").is_file():
        return path
    found = steps(path / "checkpoints") or steps(path)
    if not found:
        raise FileNotFoundError(f"{path} is neither a checkpoint nor a run directory with checkpoints/step_N in it")
    return found[-1]


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints."""
    for old in steps(folder)[:-keep]:
        shutil.rmtree(old)


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
