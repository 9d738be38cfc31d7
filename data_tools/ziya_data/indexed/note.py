"""Note: how far a build is, so that a killed one goes on where it was."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .writer import IndexedDatasetWriter

NOTE_SECONDS = 30.0  # between two notes


class Note:
    """`P.build.json`: how far a build is, for the next start. Only a build of the same identity goes on from it."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._identity = identity
        self._last = time.monotonic()
        self.found = self._read()

    def _read(self) -> dict[str, Any] | None:
        try:
            given = json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):  # none, or not ours to understand: begin anew
            return None
        return given if isinstance(given, dict) and given.get("identity") == self._identity else None

    def exists(self) -> bool:
        return self._read() is not None

    def write_if_due(self, done: int, writers: Sequence[IndexedDatasetWriter], report: dict[str, Any]) -> None:
        if time.monotonic() - self._last < NOTE_SECONDS:
            return
        state = {
            "identity": self._identity,
            "batches": done,
            "writers": [writer.checkpoint() for writer in writers],
            "report": report,
        }
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self._last = time.monotonic()


def identity(files: Sequence[Path], options: Sequence[object]) -> str:
    """Of everything that decides the bytes: files by name, size and time, and the options."""
    told = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return json.dumps([told, *options])
