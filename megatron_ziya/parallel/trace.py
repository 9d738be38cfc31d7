"""When each action of one step began and ended, per rank, and the file that says so.

    {"rank": 0, "stage": 0, "kind": "F", "micro_batch": 0, "chunk": 0, "start": 0.0012, "end": 0.0103, "live": 1}

Seconds since the ranks met at the start of the step, so that clocks of several machines need not agree. `start` is
when the work begins (what it needs has arrived), `live` how many activations the stage holds afterwards.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.parallel.schedule import Action

FILE = "trace.jsonl"


class Trace:
    """One step of this rank. On a GPU each action is waited for, which a step without a trace does not do."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.rows = mesh, list[dict[str, Any]]()
        self.zero = 0.0

    def begin(self) -> None:
        """All ranks start together."""
        if self.mesh.size > 1:
            dist.barrier()
        self.zero = self._now()

    def start(self, action: Action) -> None:
        self.rows.append({"rank": self.mesh.rank, "stage": self.mesh.pipeline.index, **action._asdict(),
                          "start": self._now() - self.zero})  # fmt: skip

    def end(self, live: int) -> None:
        self.rows[-1] |= {"end": self._now() - self.zero, "live": live}

    def write(self, directory: Path) -> None:
        """`trace.jsonl` with the rows of all ranks, written by rank 0."""
        everyone: list[Any] = [self.rows]
        if self.mesh.size > 1:
            everyone = [None] * self.mesh.size
            dist.all_gather_object(everyone, self.rows)
        if self.mesh.rank == 0:
            temporary = directory / (FILE + ".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for rows in everyone for row in rows), encoding="utf-8")
            temporary.replace(directory / FILE)

    def _now(self) -> float:
        if self.mesh.device.type == "cuda":
            torch.cuda.synchronize(self.mesh.device)
        return time.perf_counter()
