"""The checkpoint format and its writers: every rank writes its own part, and any layout reads it (reader.py).

    step_000100/
      manifest.json             format version, run, step, architecture, files and their SHA-256, what the run adds,
                                and `weights_sum`, one over the bits of all weights (`format.weights_sum`)
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
import json
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
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
    unfinished,
)
from megatron_ziya.checkpoint.format import (
    FORMAT,
    Origin,
    Segment,
    close_file,
    in_words,
    new_file,
    sha256,
    weights_sum,
    write_file,
    write_manifest,
)
from megatron_ziya.checkpoint.huggingface import fingerprint
from megatron_ziya.checkpoint.reader import Reader, check_tokenizer
from megatron_ziya.checkpoint.streaming import require_space
from megatron_ziya.config import Architecture
from megatron_ziya.model.weights import shapes

# so that one import does
__all__ = ["Origin", "Reader", "Segment", "check_tokenizer", "fresh_folder", "latest", "locked", "move_latest", "prune",
           "resolve", "steps"]  # fmt: skip

CONVERTED = Origin("conversion", 0)
"""What `write_weights` writes is of no run."""
FILE_BYTES = 1 << 30  # `write_weights` starts a new file after this much
PART = ".written"
"""Beside a rank's file until the manifest is written: what that is to say of it."""


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
    logical = shapes(architecture)
    wanted = {name: Segment.whole("weight", name, shape) for name, shape in logical.items()}
    temporary = fresh_folder(path)
    files: dict[str, str] = {}
    total, file, written = 0, temporary, None
    with ThreadPoolExecutor(1) as pool:
        for name, tensor in weights:
            shape = logical[name] if name in wanted else None
            if shape != tuple(tensor.shape):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the architecture asks for {shape}")
            if written is not None and (written.size > FILE_BYTES or not written.takes(tensor)):
                files[file.name], written = close_file(file, written), None
            if written is None:
                file = temporary / f"rank_{len(files):05d}.safetensors"
                written = new_file(file, [segment.key() for segment in wanted.values()], CONVERTED)
            segment = wanted.pop(name)
            part = pool.submit(weights_sum, segment, tensor, shape)  # while it is written
            written.add(segment.key(), tensor.reshape(-1))
            total += part.result()
    if written is not None:
        files[file.name] = close_file(file, written)
    if wanted:
        raise ValueError(f"{path}: {next(iter(wanted))} was not given")
    finish(
        path, temporary, architecture, CONVERTED, files, (extra or {}) | {"weights_sum": in_words(total)}, huggingface
    )


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
    """Write `folder/step_N` from all ranks; each gives the segments that it owns. Returns the folder's path.

    The three parts of it are `begin`, `write_part` and `publish`; background.py does the last two in a thread.
    """
    owned = dict(segments)
    path = begin(folder, origin, rank, sum(tensor.nbytes for tensor in owned.values()))
    write_part(path, rank, owned, architecture, origin)
    barrier()
    if rank == 0:
        publish(path, architecture, origin, recipe, extra, huggingface)
    barrier()
    return path


def begin(folder: Path, origin: Origin, rank: int, size: int) -> Path:
    """Make room for a checkpoint, from all ranks, of which this one will write `size` bytes.

    Returns what its path will be; until then it is `step_N.tmp`. Raises ValueError on rank 0 when the disk has no room
    for it.
    """
    path = folder / f"step_{origin.step:06d}"
    sizes = [size]
    if dist.is_initialized():
        sizes = [0] * dist.get_world_size()
        dist.all_gather_object(sizes, size)
    if rank == 0:
        remove_debris(folder)
        folder.mkdir(parents=True, exist_ok=True)
        require_space(folder, sum(sizes))
        fresh_folder(path)
    barrier()
    return path


def write_part(
    path: Path, rank: int, segments: Mapping[Segment, Tensor], architecture: Architecture, origin: Origin
) -> None:
    """Write this rank's file, durably; then what the manifest is to say of it, which tells that it is whole."""
    file = unfinished(path) / f"rank_{rank:05d}.safetensors"
    logical = shapes(architecture)
    weights = [(s, tensor, logical[s.name]) for s, tensor in segments.items() if s.kind == "weight"]
    with ThreadPoolExecutor(1) as pool:  # beside the writing, which needs the interpreter as little
        sums = pool.map(lambda weight: weights_sum(*weight), weights)
        digest = write_file(file, {s.key(): tensor for s, tensor in segments.items()}, origin) if segments else ""
        total = sum(sums)
    file.with_suffix(PART).write_text(json.dumps({"header": digest, "weights_sum": in_words(total)}))


def publish(
    path: Path,
    architecture: Architecture,
    origin: Origin,
    recipe: str,
    extra: dict[str, Any],
    huggingface: Path | None,
) -> None:
    """Once all parts are written, from rank 0 alone: the manifest, the final name, `latest`."""
    temporary = unfinished(path)
    files: dict[str, str] = {}
    total = 0
    for part in sorted(temporary.glob(f"rank_*{PART}")):
        said = json.loads(part.read_text())
        total += int(said["weights_sum"], 16)
        if said["header"]:
            files[part.with_suffix(".safetensors").name] = said["header"]
        part.unlink()
    (temporary / "recipe.toml").write_text(recipe, encoding="utf-8")
    finish(path, temporary, architecture, origin, files, extra | {"weights_sum": in_words(total)}, huggingface)
    move_latest(path)


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


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
