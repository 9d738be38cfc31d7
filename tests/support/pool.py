"""Worker processes that stay: many jobs over gloo for one start, each on the first `size` workers."""

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 300  # seconds a job may take


class Pool:
    """`size` processes. A job that fails ends them all; the next job starts new ones."""

    def __init__(self, size: int = 8) -> None:
        self.size, self.jobs, self.workers = size, 0, []
        self.store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(*arguments)` on `size` workers joined by gloo; returns each rank's result."""
        if not self.workers:
            self._start()
        self.jobs += 1
        ours = [connection for _, connection in self.workers[:size]]
        for connection in ours:
            connection.send((self.jobs, size, function, arguments))
        found: dict[int, Any] = {}
        try:
            while len(found) < size:
                ready = wait([c for i, c in enumerate(ours) if i not in found], TIMEOUT)
                assert ready, f"only ranks {sorted(found)} of {size} answered within {TIMEOUT} s"
                for connection in ready:
                    failure, value = connection.recv()
                    rank = ours.index(connection)
                    assert not failure, f"rank {rank} failed:\n{failure}"
                    found[rank] = pickle.loads(value)
        except BaseException:
            self.stop()
            raise
        return [found[rank] for rank in range(size)]

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["megatron_ziya.train"])
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(rank, self.store.port, there), daemon=True)
            process.start()
            there.close()
            self.workers.append((process, here))

    def stop(self) -> None:
        for process, connection in self.workers:
            process.kill()
            process.join()
            connection.close()
        self.workers = []


def _work(rank: int, port: int, connection: Any) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("localhost", port, is_master=False)
    while True:
        try:
            job, size, function, arguments = connection.recv()
        except EOFError:
            return
        try:
            if size > 1:
                prefix = dist.PrefixStore(str(job), store)
                dist.init_process_group(
                    "gloo", store=prefix, rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT)
                )
            connection.send(("", pickle.dumps(function(*arguments))))
        except Exception:
            connection.send((traceback.format_exc(), b""))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
