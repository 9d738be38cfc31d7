"""Saving while training goes on: a copy in host memory, then a thread that writes it.

    start     every rank: copy what this rank owns, which is all that training waits for; its thread writes the file
    written   asked once a step: is it on the disk? The ranks' answers travel with the step's loss, at no cost
    publish   once all ranks have said yes, at the same step on all: a thread of rank 0 writes the manifest and renames
    wait      all of that at once, at the end of a run and before the next save

What goes wrong in a thread is raised by the next of these calls. A process that is killed leaves `step_N.tmp`, which
the next save removes.
"""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ziya.checkpoint import distributed
from megatron_ziya.checkpoint.format import Origin, Segment
from megatron_ziya.config import Architecture


class Saver:
    """At most one save at a time, of one rank."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._publish: Callable[[], None] | None = None  # what is still to do when all ranks have written

    def start(
        self,
        origin: Origin,
        architecture: Architecture,
        segments: Iterable[tuple[Segment, Tensor]],
        recipe: str,
        extra: dict[str, Any],
        huggingface: Path | None,
        published: Callable[[Path], None],
    ) -> None:
        """Copy `segments` and begin to write them; all ranks call. `published` is called on rank 0, in a thread."""
        self.wait()
        path = distributed.begin(self.folder, origin, self.rank)
        held = {segment: host_copy(tensor) for segment, tensor in segments}
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the copies into pinned memory

        def write() -> None:
            distributed.write_part(path, self.rank, held, architecture, origin)
            held.clear()

        def publish() -> None:
            distributed.publish(path, architecture, origin, recipe, extra, huggingface)
            published(path)

        self._publish = publish
        self._run(write)

    def written(self) -> bool:
        """Whether this rank has written its part, or none is being written. Raises what the thread has raised."""
        if self._thread is None or self._thread.is_alive():
            return self._thread is None
        self._join()
        return True

    def publish(self) -> None:
        """Put the checkpoint under its name. To be called at one step by all ranks, once all have written."""
        work, self._publish = self._publish, None
        if work is not None and self.rank == 0:
            self._run(work)

    def wait(self) -> None:
        """Return when the save that is under way is whole on the disk; all ranks call."""
        if self._publish is not None:
            self._join()
            distributed.barrier()
            self.publish()
        self._join()

    def _run(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # raised in the main thread
                self._error = error

        self._thread = threading.Thread(target=guarded, name="save")
        self._thread.start()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error


def host_copy(tensor: Tensor) -> Tensor:
    """A copy in host memory; of a GPU's tensor it is complete after `torch.cuda.synchronize`."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor.detach(), non_blocking=True)
