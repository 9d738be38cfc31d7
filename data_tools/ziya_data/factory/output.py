"""The output folder: only what an earlier or interrupted run of the factory wrote is ever replaced."""

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

FOLDERS = ("kept", "dropped", "heldout", "seen", "work")
FILES = ("report.json", "report.html", "recipe.toml")
FOREIGN = ("index",)
"""Never written here, but next to kept/ it tells that the folder is somebody's data (`ziya index build` writes one)."""
HEADER = "# Every knob of this run as it was used, written by `ziya factory run`.\n"
MARKER = "work/factory.json"
"""Lies there from a run's first moment to its last: an interrupted run leaves it behind."""


def check(out: Path, inputs: Iterable[Path], folders: Iterable[Path] = ()) -> None:
    """Raises ValueError when a run into `out` would delete what no run of ours wrote, or what it reads itself.

    `inputs`: files and folders of pages; `folders` are read with all that is in them.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"run.output = {out} is a file; give a folder that does not exist yet")
    names = {*FOLDERS, *FILES, *FOREIGN}
    there = sorted(path for path in out.iterdir() if path.name.removesuffix(".tmp") in names) if out.is_dir() else []
    if there and not ours(out):
        found = ", ".join(path.name + "/" * path.is_dir() for path in there)
        raise ValueError(
            f"run.output = {out} holds {found}, which no factory run wrote, and a run replaces what it finds; "
            "give a folder of its own, or move them away"
        )
    for folder in folders:
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"run.output = {out} lies in the source {folder}, which is read whole; give another folder"
            )
    replaced = [(out / name).resolve() for name in FOLDERS]
    for path in inputs:
        if any(path.resolve().is_relative_to(folder) for folder in replaced):
            raise ValueError(f"the source {path} lies in what this run replaces; give another folder than {out}")


def ours(out: Path) -> bool:
    """Whether a run of the factory wrote, or began to write, into `out`."""
    if (out / MARKER).is_file():
        return True
    recipe, report = out / "recipe.toml", out / "report.json"
    if recipe.is_file() and recipe.read_bytes().startswith(HEADER.encode()):
        return True
    if not report.is_file():
        return False
    try:
        found = json.loads(report.read_bytes())
    except ValueError:  # somebody's own file of that name
        return False
    return isinstance(found, dict) and {"key", "recipe", "funnel", "reasons"} <= found.keys()


@contextmanager
def claimed(work: Path, shared: bool) -> Iterator[None]:
    """Keeps a second run out of a folder while this one is at work; tasks of `--shard` share it.

    Raises ValueError when another run is at work there.
    """
    with (work / "lock").open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is at work in {work.parent}; wait for it, or give another run.output"
            ) from None
        yield


def begin(out: Path) -> Path:
    """Marks `out` as ours before anything else is written there; gives the folder of the work in progress.

    Several tasks may begin at once: the folder appears with the marker in it, or another task's is there already.
    """
    if not (out / MARKER).is_file():
        made = out / f"work.{uuid4().hex}.tmp"
        made.mkdir(parents=True)
        (made / Path(MARKER).name).write_text('{"written_by": "ziya factory run"}\n', encoding="utf-8")
        try:
            made.rename(out / "work")
        except OSError:  # not empty
            shutil.copy(made / Path(MARKER).name, out / MARKER)
            shutil.rmtree(made)
    return out / "work"
