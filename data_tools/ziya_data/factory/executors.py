"""Who does the work on shards: this process, processes of this machine, or a Ray cluster. The bytes are the same."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ziya_data.factory.partition import Ask, Partition, Spread, local
from ziya_data.factory.steps import Task, Workers
from ziya_data.factory.tally import Shard, Tally

NAMES = ("processes", "ray")
STORE = 1 << 28
"""Bytes of Ray's object store on a cluster that we start: it passes tallies, and fingerprints to the index."""
GRACE = 30
"""Seconds that tasks have to end in when a run on a cluster breaks off."""


@dataclass(frozen=True)
class Executor:
    run: Workers
    """Does a step's task on shards."""
    spread: Spread
    """Makes the partitions of an index, wherever they are to lie."""


def start(name: str, workers: int, address: str = "") -> AbstractContextManager[Executor]:
    """The one that is asked for. Raises ValueError for a name or a number that does not do, or where Ray is missing."""
    if name not in NAMES:
        raise ValueError(f"executor = {name!r} must be one of {', '.join(NAMES)}")
    if workers < 1:
        raise ValueError(f"workers = {workers} must be at least 1")
    if name == "processes":
        return processes(workers)
    if find_spec("ray") is None:
        raise ValueError("executor = 'ray' needs Ray; run pip install 'megatron-ziya[ray]'")
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:  # HOST:PORT, not `auto` or ray://; Ray itself would try for minutes
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ValueError(f"no Ray cluster answers at {address} ({error}); start one: ray start --head") from error
    return cluster(workers, address)


def timed(task: Task, shard: Shard) -> tuple[Tally, float]:
    begin = time.perf_counter()
    return task(shard), time.perf_counter() - begin


def in_this_process(task: Task, shards: list[Shard]) -> Iterator[tuple[int, Tally, float]]:
    for at, shard in enumerate(shards):
        yield at, *timed(task, shard)


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """`count` processes for all steps of a run; with one, this one. An index lies here as a whole."""
    if count == 1:
        yield Executor(in_this_process, local)
        return
    # spawn: a fork would carry over the threads that numpy and pyarrow may have started.
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:

        def run(task: Task, shards: list[Shard]) -> Iterator[tuple[int, Tally, float]]:
            if len(shards) == 1:
                yield from in_this_process(task, shards)
                return
            futures = {pool.submit(timed, task, shards[at]): at for at in large_first(shards)}
            for future in as_completed(futures):
                yield futures[future], *future.result()

        try:
            yield Executor(run, local)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def cluster(count: int, address: str) -> Iterator[Executor]:
    """A Ray cluster: the one that this process uses already, else that at `address` or where RAY_ADDRESS says, else one
    of `count` processors started here for the run.

    Its nodes see the same files under the same names, and have this package installed.
    """
    import ray

    ours = not ray.is_initialized()
    if ours and (address or "RAY_ADDRESS" in os.environ):
        ray.init(address=address or None, log_to_driver=False)
    elif ours:
        ray.init(num_cpus=count, include_dashboard=False, object_store_memory=STORE, log_to_driver=False)
    folder = str(Path.cwd())  # a recipe's paths may be relative
    begun: set[Any] = set()  # tasks that nobody has the answer of yet

    def run(task: Task, shards: list[Shard]) -> Iterator[tuple[int, Tally, float]]:
        remote = ray.remote(timed_in)
        positions = {remote.remote(folder, task, shards[at]): at for at in large_first(shards)}
        begun.update(positions)
        while positions:
            done, _ = ray.wait(list(positions))
            begun.discard(done[0])
            yield positions.pop(done[0]), *answers(done)[0]

    def spread(make: Callable[[int, int], Partition], parts: int) -> Ask:
        # An actor waits most of the time: it takes no processor from the tasks, but is put on another node if there is.
        actor: Any = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(PartitionActor)
        actors = [actor.remote() for _ in range(parts)]
        answers([each.make.remote(folder, make, part, parts) for part, each in enumerate(actors)])

        def ask(method: str, *arguments: Any) -> list[Any]:
            shared = [ray.put(argument) for argument in arguments]
            return answers([each.ask.remote(method, *shared) for each in actors])

        return ask

    def answers(references: list[Any]) -> list[Any]:
        try:
            found: list[Any] = ray.get(references)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # what the task itself raised, one line
        except ray.exceptions.RayError as error:  # a node or a process is gone, or has no memory left
            what = " ".join(str(error).split())[:300]
            raise ValueError(
                f"Ray lost a task or a part of the index ({type(error).__name__}: {what}); "
                "run this again when the cluster is well: what is done stays done"
            ) from error
        return found

    try:
        yield Executor(run, spread)
    finally:
        for reference in begun:  # only after a mistake: the cluster may outlive this run
            ray.cancel(reference)
        if begun:  # those that run are interrupted; nobody waits for a node that does not answer
            ray.wait(list(begun), num_returns=len(begun), timeout=GRACE)
        if ours:
            ray.shutdown()


class PartitionActor:
    """A partition in a process of a cluster."""

    partition: Partition

    def make(self, folder: str, make: Callable[[int, int], Partition], part: int, parts: int) -> None:
        """No constructor: of an actor that cannot be made Ray tells a page of its own."""
        os.chdir(folder)
        self.partition = make(part, parts)

    def ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self.partition, method)(*arguments)


def timed_in(folder: str, task: Task, shard: Shard) -> tuple[Tally, float]:
    os.chdir(folder)
    return timed(task, shard)


def large_first(shards: list[Shard]) -> list[int]:
    """Positions of the shards, the largest file first: a large one begun last would be waited for by all."""
    return sorted(range(len(shards)), key=lambda at: -size_of(shards[at].path))


def size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
