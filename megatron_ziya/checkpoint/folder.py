"""The checkpoints of a run directory: which are whole, which is the latest, which go.

    RUN/checkpoints/step_000100/   whole, because it was renamed when it was
    RUN/checkpoints/latest         a line: the name of the newest whole step; moved last
    RUN/lock                       there while a run goes on, with its process

`step_N.tmp` and `step_N.old` are what a killed save or removal left; the next save removes them.
"""

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from megatron_ziya.checkpoint.format import MANIFEST, sync

LATEST = "latest"


def steps(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    whole = [p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name) and (p / MANIFEST).is_file()]
    return sorted(whole, key=lambda p: int(p.name.removeprefix("step_")))


def resolve(path: Path | str) -> Path:
    """A checkpoint folder, or that of a run directory which `checkpoints/latest` names (its newest, without one).

    Raises FileNotFoundError when there is none, ValueError for a Hugging Face folder.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    for folder in (path / "checkpoints", path):
        found = steps(folder)
        if found:
            named = folder / latest(folder)
            return named if named in found else found[-1]
    if (path / "config.json").is_file():
        raise ValueError(f"{path} is a Hugging Face folder; run `ziya convert from-hf {path} OUT` and load OUT")
    raise FileNotFoundError(f"{path} is neither a checkpoint nor a run directory with checkpoints/step_N in it")


def latest(folder: Path) -> str:
    """The name that `latest` holds; "" without one."""
    file = folder / LATEST
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""


def move_latest(path: Path) -> None:
    """Have `latest` name the checkpoint `path`, at once and durably."""
    written = path.parent / (LATEST + ".tmp")
    written.write_text(path.name + "\n", encoding="utf-8")
    sync(written)
    written.replace(path.parent / LATEST)
    sync(path.parent)


def unfinished(path: Path) -> Path:
    """Where `path` is written before it is whole."""
    return path.with_name(path.name + ".tmp")


def fresh_folder(path: Path) -> Path:
    """An empty `path.tmp`; what an earlier, interrupted write left there is removed."""
    temporary = unfinished(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def settle(temporary: Path, path: Path) -> None:
    """Put a whole folder under its final name, durably; one that was there goes."""
    for folder, _, files in os.walk(temporary):
        for name in files:
            sync(Path(folder) / name)
        sync(Path(folder))
    old = path.with_name(path.name + ".old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    temporary.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_debris(folder: Path) -> None:
    """Remove what killed saves and removals left among the checkpoints of a run."""
    for path in folder.glob("step_*"):
        if re.fullmatch(r"step_\d+\.(tmp|old)", path.name):
            shutil.rmtree(path)


def prune(folder: Path, keep: int, saved: Path | None = None, keep_every: int = 0) -> None:
    """Remove all but `saved` (default: the newest), the `keep - 1` newest others, and multiples of `keep_every`.

    `keep` 0 keeps all. Raises ValueError when either is negative.
    """
    for name, value in (("keep", keep), ("keep_every", keep_every)):
        if value < 0:
            raise ValueError(f"checkpoint.{name}={value} must be 0 ({'all' if name == 'keep' else 'none'}) or more")
    found = steps(folder)
    if not found or keep == 0:
        return
    saved = saved or found[-1]
    others = [path for path in found if path.resolve() != saved.resolve()]
    for path in others[: max(len(others) - (keep - 1), 0)]:
        if not keep_every or int(path.name.removeprefix("step_")) % keep_every:
            gone = path.with_name(path.name + ".old")  # else a removal that is killed half-way leaves a manifest
            path.rename(gone)
            shutil.rmtree(gone)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other runs out of a run directory while the body runs. Rank 0 holds the lock; all ranks must call.

    The kernel drops the lock with the process that holds it, however that ends. Raises ValueError, on every rank, with
    the process that has it.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    held, holder = take_lock(directory / "lock") if rank == 0 else (None, "")
    if dist.is_initialized():
        told = [holder]
        dist.broadcast_object_list(told, src=0)
        (holder,) = told
    if holder:
        raise ValueError(f"{directory} is used by {holder}; wait for it, end it, or choose another run.directory")
    try:
        yield
    finally:
        if held is not None:
            (directory / "lock").unlink(missing_ok=True)
            os.close(held)


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keep other conversions out of `out` while the body runs. Raises ValueError with the process that has it."""
    file = out.with_name(out.name + ".lock")
    held, holder = take_lock(file)
    if held is None:
        raise ValueError(f"{out} is being written by {holder}; wait for it, or give another folder")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(held)


def take_lock(file: Path) -> tuple[int | None, str]:
    """`(descriptor, "")`, or `(None, who has it)`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        held = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(held, 200).decode(errors="replace").strip()
            os.close(held)
            return None, holder or "another process"
        if file.exists() and os.fstat(held).st_ino == file.stat().st_ino:  # else its last holder has just removed it
            os.ftruncate(held, 0)
            os.write(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return held, ""
        os.close(held)
