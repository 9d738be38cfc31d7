"""Saving while training goes on: a thread copies the state to host memory, and then writes the copy.

    start     every rank: the thread begins. The next forward and backward pass only read what it copies
    copied    before the next update: wait until the copy is complete, which it mostly is by then
    written   asked once a step: is it on the disk? The ranks' answers travel with the step's loss, at no cost
    publish   once all ranks have said yes, at the same step on all: a thread of rank 0 writes the manifest and renames
    wait      all of that at once, at the end of a run and before the next save

What goes wrong in a thread is raised by the next of these calls. A process that is killed leaves `step_N.tmp`, which
the next save removes.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
        self._copied = threading.Event()
        self._copied.set()
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
        """Begin to copy and write `segments`; all ranks call. They must not change before `copied` has returned.

        `published` is called on rank 0, in a thread.
        """
        self.wait()
        live = dict(segments)
        path = distributed.begin(self.folder, origin, self.rank, sum(tensor.nbytes for tensor in live.values()))
        here = next((tensor.device for tensor in live.values() if tensor.is_cuda), None)
        ready = torch.cuda.current_stream(here).record_event() if here else None
        # made here: what a thread allocates comes from a heap of its own, whose pages are new each time
        held = {s: torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for s, t in live.items()}
        self._copied.clear()

        def write() -> None:
            try:
                fill(held, live, ready)
            finally:
                live.clear()
                self._copied.set()
            distributed.write_part(path, self.rank, held, architecture, origin)
            held.clear()

        def publish() -> None:
            distributed.publish(path, architecture, origin, recipe, extra, huggingface)
            published(path)

        self._publish = publish
        self._run(write)

    def copied(self) -> None:
        """Wait until what `start` was given may change."""
        self._copied.wait()

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
        """Finish the save that is under way; all ranks call. On rank 0 it is whole on the disk when this returns, on
        the others all parts are."""
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


def fill(held: Mapping[Segment, Tensor], live: Mapping[Segment, Tensor], ready: torch.cuda.Event | None) -> None:
    """Copy `live` into host memory, a GPU's on a stream of its own, once what was queued before `ready` is done."""
    if ready is None:
        for segment, tensor in live.items():  # by NumPy, which takes one thread; torch would take all cores for it
            source, target = (t.detach().view(torch.uint8).numpy() for t in (tensor, held[segment]))
            np.copyto(target, source)
        return
    stream = torch.cuda.Stream(next(iter(live.values())).device)
    with torch.cuda.stream(stream):
        stream.wait_event(ready)
        for segment, tensor in live.items():
            held[segment].copy_(tensor.detach(), non_blocking=True)
        stream.synchronize()
