"""The checkpoint format and its writers: every rank writes its own part, and any layout reads it (reader.py).

    step_000100/
      manifest.json             format version, run, step, architecture, files and their SHA-256, what the run adds
      rank_00000.safetensors    one file a writer
      recipe.toml               the resolved recipe of the run
      huggingface/              tokenizer and configuration files that travel with the model, if it came with some;
                                the manifest then has the SHA-256 of tokenizer.model as `tokenizer`

A tensor in a file is a *segment*, and its key says what it is:

    exp_avg|layers.0.mlp.down.weight|1:64:64|0:4096
    kind    logical weight           box     range

the elements `0:4096` of the row-major box that starts at 64 and is 64 wide along dimension 1. Kinds are `weight`,
`master` (FP32, when the weights are not), `exp_avg` and `exp_avg_sq`. format.py has the checksums. A folder is written
as `step_000100.tmp` and renamed when it is whole; then `latest` is moved (folder.py).
"""

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from megatron_ziya.checkpoint.folder import (
    fresh_folder,
    latest,
    locked,
    move_latest,
    prune,
    remove_debris,
    resolve,
    settle,
    steps,
)
from megatron_ziya.checkpoint.format import FORMAT, Origin, Segment, sha256, write_file, write_manifest
from megatron_ziya.checkpoint.huggingface import fingerprint
from megatron_ziya.checkpoint.reader import Reader, check_tokenizer
from megatron_ziya.config import Architecture
from megatron_ziya.model.weights import shapes

# so that one import does
__all__ = ["Origin", "Reader", "Segment", "check_tokenizer", "fresh_folder", "latest", "locked", "move_latest", "prune",
           "resolve", "steps"]  # fmt: skip

CONVERTED = Origin("conversion", 0)
"""What `write_weights` writes is of no run."""
FILE_BYTES = 1 << 30  # `write_weights` starts a new file after this much


def write_weights(
    path: Path | str,
    architecture: Architecture,
    weights: Iterable[tuple[str, Tensor]],
    huggingface: Path | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint of weights alone from one process, one tensor after the other.

    `huggingface` is a folder whose files travel along. Raises ValueError for unknown names, wrong shapes and gaps,
    and for a `path` that holds a run's work.
    """
    path = Path(path)
    refuse_replacing(path)
    wanted = shapes(architecture)
    temporary = fresh_folder(path)
    files: dict[str, str] = {}
    batch: dict[str, Tensor] = {}

    def flush() -> None:
        if batch:
            file = temporary / f"rank_{len(files):05d}.safetensors"
            files[file.name] = write_file(file, batch, CONVERTED)
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
    finish(path, temporary, architecture, CONVERTED, files, extra or {}, huggingface)


def save(
    folder: Path,
    origin: Origin,
    architecture: Architecture,
    segments: Iterable[tuple[Segment, Tensor]],
    rank: int,
    recipe: str,
    extra: dict[str, Any],
    huggingface: Path | None,
) -> Path:
    """Write `folder/step_N` from all ranks; each gives the segments that it owns. Returns the folder's path."""
    path = folder / f"step_{origin.step:06d}"
    if rank == 0:
        remove_debris(folder)
        fresh_folder(path)
    _barrier()
    temporary = path.with_name(path.name + ".tmp")
    file = temporary / f"rank_{rank:05d}.safetensors"
    tensors = {segment.key(): tensor for segment, tensor in segments}
    digest = write_file(file, tensors, origin) if tensors else ""
    file.with_suffix(".sha256").write_text(digest)
    _barrier()
    if rank == 0:
        digests = sorted(temporary.glob("rank_*.sha256"))
        files = {d.with_suffix(".safetensors").name: d.read_text() for d in digests if d.read_text()}
        for digest_file in digests:
            digest_file.unlink()
        (temporary / "recipe.toml").write_text(recipe, encoding="utf-8")
        finish(path, temporary, architecture, origin, files, extra, huggingface)
        move_latest(path)
    _barrier()
    return path


def finish(
    path: Path,
    temporary: Path,
    architecture: Architecture,
    origin: Origin,
    files: dict[str, str],
    extra: dict[str, Any],
    huggingface: Path | None,
) -> None:
    """Write the manifest, make it durable, and put the folder under its final name."""
    if huggingface is not None and huggingface.is_dir():
        shutil.copytree(huggingface, temporary / "huggingface")
    sizes = {f.name: getattr(architecture, f.name) for f in dataclasses.fields(Architecture)}
    head = {"format": FORMAT, "run": origin.run, "step": origin.step, "architecture": sizes, "files": files}
    others = sorted(file for file in temporary.rglob("*") if file.is_file() and file.name not in files)
    manifest = head | {"others": {str(file.relative_to(temporary)): sha256(file) for file in others}} | extra
    carried = fingerprint(temporary / "huggingface")
    if carried:
        manifest["tokenizer"] = carried
    write_manifest(temporary, manifest)
    settle(temporary, path)


def refuse_replacing(path: Path) -> None:
    """Raises ValueError when `path` is there and belongs to a run, or is a checkpoint with optimizer state."""
    if not path.exists():
        return
    for above in path.resolve().parents:
        if above.name == "checkpoints" and ((above.parent / "recipe.toml").is_file() or steps(above)):
            raise ValueError(f"{path} belongs to the run {above.parent} and is not replaced; give another folder")
    if (path / "manifest.json").is_file() and Reader(path, check=False).kinds() - {"weight"}:
        raise ValueError(f"{path} is a checkpoint with optimizer state and is not replaced; give another folder")


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
