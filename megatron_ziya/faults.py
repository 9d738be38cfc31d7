"""What a run does when something breaks: a rank that dies, replicas that differ, losses that are not finite.

Every rank shows a sign of life each second in the store through which the ranks met. Rank 0 looks at all of them and
writes down whom it has lost; the others look there. So a run of N ranks costs N small messages a second, and each
rank can say who is missing, also when all that it sees itself is a broken connection.
"""

import hashlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_ziya.parallel.bucket import Bucket
from megatron_ziya.parallel.collectives import start_gather
from megatron_ziya.parallel.mesh import Axis, Mesh

BEAT = 1.0  # seconds between signs of life
PATIENCE = 4.0  # seconds without one, once some rank is in trouble
EXIT_LOST = 3  # exit code of a rank that ends because of a fault


class Fault(RuntimeError):
    """The run cannot go on, and neither the recipe nor a mistake in the program is to blame."""


class Watch:
    """Signs of life of all ranks, kept up by a thread of its own."""

    def __init__(self, store: dist.Store, rank: int, size: int, lost_after: float) -> None:
        self.store: dist.Store = store.clone()  # type: ignore[attr-defined]  # there, but not in torch's stubs
        self.rank, self.size, self.lost_after = rank, size, lost_after
        self.store.set_timeout(timedelta(seconds=max(PATIENCE, BEAT)))
        self.verdict = threading.Event()
        self.reason = ""
        self._over, self._trouble = threading.Event(), threading.Event()
        self._store_lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """The run is over on this rank; nobody is missed any more. Rank 0, who has the store, waits for the others."""
        self._tell(f"over/{self.rank}", "yes")
        deadline = time.monotonic() + self.lost_after
        while self.rank == 0 and not self._all_over() and time.monotonic() < deadline and not self.reason:
            time.sleep(0.02)
        self._over.set()
        self.thread.join(2 * PATIENCE)

    def _all_over(self) -> bool:
        with self._store_lock:
            return self.store.check([f"over/{rank}" for rank in range(self.size)])

    def claim(self, message: str) -> str:
        """Be the one who says why the run ends. Returns what was said first, by this rank or another."""
        try:
            with self._store_lock:
                return self.store.compare_set("fault", "", message).decode()
        except (RuntimeError, dist.DistError):
            return message

    def who(self) -> str:
        """After an operation failed: which rank is to blame, in words. Empty when all are alive."""
        self._trouble.set()
        self._tell("trouble", "yes")
        self.verdict.wait(3 * PATIENCE)
        return self.reason

    def linger(self) -> None:
        """Before this rank leaves a broken run: rank 0, who has the store, stays until the others have read it."""
        self._tell(f"left/{self.rank}", "yes")
        deadline = time.monotonic() + 2 * PATIENCE
        while self.rank == 0 and time.monotonic() < deadline:
            with self._store_lock:
                left = sum(self.store.check([f"left/{rank}"]) for rank in range(self.size))
            if left >= self.size - 1:  # all but the one who is lost
                return
            time.sleep(0.05)

    def _tell(self, key: str, value: str) -> None:
        try:
            with self._store_lock:
                self.store.set(key, value)
        except (RuntimeError, dist.DistError):
            self._trouble.set()  # the thread finds out that rank 0 is gone

    def _run(self) -> None:
        beats, seen, silent = 0, [-1] * self.size, [time.monotonic()] * self.size
        while not self._over.wait(BEAT):
            beats += 1
            try:
                with self._store_lock:
                    self.store.set(f"alive/{self.rank}", str(beats))
                    if self.rank == 0:
                        self._look(seen, silent)
                    if self.store.check(["fault"]):
                        self.reason = self.store.get("fault").decode()
            except (RuntimeError, dist.DistError):
                if not self._over.is_set():
                    self.reason = "rank 0 is lost: its store does not answer"
            if self.reason:
                return self._end()

    def _look(self, seen: list[int], silent: list[float]) -> None:
        """Rank 0: who has been silent for too long?"""
        now = time.monotonic()
        limit = PATIENCE if self.store.check(["trouble"]) else self.lost_after
        for rank in range(1, self.size):
            key = f"alive/{rank}"
            beat = int(self.store.get(key)) if self.store.check([key]) else 0
            if beat != seen[rank]:
                seen[rank], silent[rank] = beat, now
            elif now - silent[rank] > limit and not self.store.check([f"over/{rank}"]):
                self.store.compare_set("fault", "", f"rank {rank} is lost: no sign of life for {limit:.0f} s")

    def _end(self) -> None:
        """Give the main thread, which may be stuck in an operation for ever, a moment to end by itself."""
        self.verdict.set()
        if not self._over.wait(PATIENCE):
            self.linger()
            leave(f"train: rank {self.rank} ends: {self.reason}", EXIT_LOST)


@contextmanager
def guarded(store: dist.Store | None, rank: int, size: int, lost_after: float) -> Iterator[None]:
    """Run the body; when it fails, on this rank or another, say so in one line and end this process.

    Exit codes: 2 for a mistake in the recipe, `EXIT_LOST` for a fault, 1 with a traceback for anything else.
    """
    if store is None:
        yield
        return
    watch = Watch(store, rank, size, lost_after)
    try:
        yield
        watch.close()
    except BaseException as error:
        message, code = _last_words(watch, error)
        watch.linger()
        leave(message, code)


def _last_words(watch: Watch, error: BaseException) -> tuple[str, int]:
    """What this rank says at its end, and its exit code. What every rank finds wrong is told once."""
    if isinstance(error, KeyboardInterrupt):
        return "", 130
    if isinstance(error, ValueError | OSError | Fault):
        code = EXIT_LOST if isinstance(error, Fault) else 2
        mine = f"rank {watch.rank} ends the run: {error}"
        said = watch.claim(mine)
        if said == mine:
            return f"train: error: {said}", code
        return "" if said.endswith(f" ends the run: {error}") else f"train: rank {watch.rank} ends: {said}", code
    network = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
    reason = watch.who() if isinstance(error, RuntimeError) and network else ""
    if reason:
        return f"train: rank {watch.rank} ends: {reason}", EXIT_LOST
    watch.claim(f"rank {watch.rank} failed: {type(error).__name__}: {str(error).splitlines()[:1]}")
    return "".join(traceback.format_exception(error)), 1


def leave(message: str, code: int) -> None:
    """End this process at once: after a fault nothing that waits for another rank may be asked to finish."""
    if message:
        tell(message)
    sys.stdout.flush()
    os._exit(code)


def tell(message: str) -> None:
    """A line on stderr, in one write: `print` takes two, and the ranks share a terminal."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def check_replicas(buckets: Sequence[Bucket], mesh: Mesh) -> int:
    """Compare the weights that several ranks hold, by SHA-256: data-parallel replicas, and what tensor-parallel ranks
    or first and last stage hold in common. Returns how many digests this rank compared.

    Raises Fault when they differ: a broken machine, or a mistake in the program.
    """
    compared = 0
    for number, bucket in enumerate(buckets):
        raw = bucket.flat[: bucket.used].detach().cpu().view(torch.uint8).numpy().tobytes()
        digest = torch.frombuffer(bytearray(hashlib.sha256(raw).digest()), dtype=torch.uint8)
        for axis in (mesh.data, bucket.kind.held_by):
            compared += _compare(digest.to(mesh.device), axis, number)
    return compared


def _compare(digest: torch.Tensor, axis: Axis, number: int) -> int:
    if axis.size == 1:
        return 0
    everyone = start_gather(digest, axis).wait().view(axis.size, -1)
    differ = [rank for rank, other in zip(axis.ranks, everyone, strict=True) if not torch.equal(other, everyone[0])]
    if differ:
        raise Fault(
            f"the weights of rank {axis.ranks[0]} and rank {differ[0]} differ in bucket {number}, and must not; "
            "go back to a checkpoint and check these machines' memory"
        )
    return axis.size
