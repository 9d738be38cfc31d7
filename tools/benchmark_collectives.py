"""CPU microseconds that an exchange between the ranks of one machine takes each of them, three ways, in one run.

    python tools/benchmark_collectives.py --ranks 2 --kib 128

Shared memory is what `parallel/collectives.py` uses on a CPU, messages what it uses where a slot is too small; gloo's
own collectives are for comparison. Every rank gathers KIB from each, or adds up KIB from each; the ways take turns, and
the median of the rounds counts. User and system time of all threads.
"""

import argparse
import os
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from machine import here

from megatron_ziya.launch import free_port
from megatron_ziya.parallel import collectives
from megatron_ziya.parallel import mesh as meshes
from megatron_ziya.parallel.shared import SLOT

EXAMPLE = "example:\n  python tools/benchmark_collectives.py --ranks 2 --kib 128"


def ways(ranks: int, kib: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is timed: operation -> way -> a call of it."""
    axis = meshes.build(ranks, 1, torch.device("cpu")).tensor
    messages = replace(axis, board=None)
    share, whole = torch.ones(kib * 256), torch.ones(ranks * kib * 256)
    found: dict[str, dict[str, Callable[[], Any]]] = {
        "gather": {
            "messages": lambda: collectives.start_gather(share, messages).wait(),
            "gloo": lambda: dist.all_gather_single(whole, share, group=axis.group),
        },
        "reduce-scatter": {
            "messages": lambda: collectives.start_reduce_scatter(whole, messages).wait(),
            "gloo": lambda: dist.reduce_scatter_single(share, whole, group=axis.group),
        },
    }
    if axis.board is not None and share.nbytes <= SLOT:
        found["gather"]["shared memory"] = lambda: collectives.start_gather(share, axis).wait()
    if axis.board is not None and whole.nbytes <= SLOT:
        found["reduce-scatter"]["shared memory"] = lambda: collectives.start_reduce_scatter(whole, axis).wait()
    return found


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(rank: int, ranks: int, port: int, kib: int, rounds: int) -> None:
    """One rank; the first prints the table."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    calls = 200
    costs: dict[tuple[str, str], list[float]] = {}
    timed = ways(ranks, kib)
    for number in range(rounds + 1):  # the first warms up
        for operation, by_way in timed.items():
            for way, call in by_way.items():
                dist.barrier()
                begin = cpu_seconds()
                for _ in range(calls):
                    call()
                if number:
                    costs.setdefault((operation, way), []).append((cpu_seconds() - begin) / calls * 1e6)
    if rank == 0:
        print("| operation | way | CPU us a rank, median | least |\n|---|---|---|---|")
        for (operation, way), found in costs.items():
            print(f"| {operation} | {way} | {statistics.median(found):.0f} | {min(found):.0f} |")
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="CPU time of an exchange between ranks of one machine, three ways.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--kib", type=int, default=128, help="KiB from each rank to each other")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.ranks < 2:
        parser.error(f"--ranks {options.ranks}: one rank has nobody to talk to; use 2 or more")
    print(f"{here()}, load average {os.getloadavg()[0]:.1f}; {options.ranks} ranks, {options.kib} KiB each way\n")
    sys.stdout.flush()
    multiprocessing.spawn(measure, (options.ranks, free_port(), options.kib, options.rounds), nprocs=options.ranks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
