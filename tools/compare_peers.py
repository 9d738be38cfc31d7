"""CPU seconds of a training step, ours beside transformers and plain torch, in one run.

    python tools/compare_peers.py --rounds 7 --json peers.json --markdown peers.md

Every system lives in processes of its own, one thread each, and all take turns: so a busy machine slows everyone
alike, and ratios within a run hold. CPU seconds (user + system, all threads, children and ranks) are what counts, since
wall time on a shared machine says what the neighbours do. Per system the median of the rounds is taken.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer_start
import torch
import torch.distributed as dist
from machine import processor
from peer_systems import PEER, SYSTEMS, Size, System

from megatron_ziya.launch import free_port

EXAMPLE = "example:\n  python tools/compare_peers.py --rounds 7 --json peers.json --markdown peers.md"


@dataclass(frozen=True)
class Cost:
    """Of one step, over all ranks."""

    cpu: float
    wall: float


# --- Processes ------------------------------------------------------------------------------------------------------


class Fleet:
    """The processes of one system; they sleep on a pipe between turns."""

    def __init__(self, system: System, size: Size) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["peer_systems", "megatron_ziya.train"])
        port = free_port()
        self.pipes, self.processes = [], []
        for rank in range(system.ranks):
            here, there = context.Pipe()
            process = context.Process(target=_live, args=(there, rank, port, system, size), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)
        try:
            self._answers()
        except RuntimeError:
            self.close()
            raise

    def run(self, steps: int) -> Cost:
        """Cost of a step, mean over `steps` of them."""
        for pipe in self.pipes:
            pipe.send(steps)
        answers = self._answers()
        return Cost(sum(cpu for cpu, _ in answers) / steps, max(wall for _, wall in answers) / steps)

    def _answers(self) -> list[Any]:
        answers = [pipe.recv() for pipe in self.pipes]
        failures = [answer for answer in answers if isinstance(answer, str)]
        if failures:
            raise RuntimeError(failures[0])
        return answers

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _live(pipe: Any, rank: int, port: int, system: System, size: Size) -> None:
    """One rank: build, say so, then run as many steps as asked, again and again."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(system.ranks), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        if system.ranks > 1:
            dist.init_process_group("gloo")
        step = system.build(system, size)
        step()  # warm-up: memory, tables, connections
        pipe.send((0.0, 0.0))
        while True:
            steps = pipe.recv()
            if system.ranks > 1:
                dist.barrier()
            cpu, wall = cpu_seconds(), time.perf_counter()
            for _ in range(steps):
                step()
            pipe.send((cpu_seconds() - cpu, time.perf_counter() - wall))
    except EOFError:
        return
    except BaseException:
        pipe.send(traceback.format_exc())
        raise


def cpu_seconds() -> float:
    """User and system time of this process, all its threads, and its children that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


# --- Measurements ---------------------------------------------------------------------------------------------------


def measure(names: Sequence[str], size: Size, rounds: int, steps: int) -> dict[str, list[Cost]]:
    """Costs of a step of each system, one a round, the systems taking turns."""
    fleets: dict[str, Fleet] = {}
    try:
        for name in names:
            fleets[name] = Fleet(SYSTEMS[name], size)
            print(f"ready: {name}", file=sys.stderr, flush=True)
        costs: dict[str, list[Cost]] = {name: [] for name in names}
        for number in range(rounds):
            for name, fleet in fleets.items():
                costs[name].append(fleet.run(steps))
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        return costs
    finally:
        for fleet in fleets.values():
            fleet.close()


def overhead(rounds: int) -> dict[str, float]:
    """Microseconds that a layer costs a micro-batch, forward and backward, when there is next to nothing to compute.

    The difference between 12 and 4 layers of hidden size 16 on 8 tokens: what Python and torch's dispatch take.
    """
    found = {}
    for name in (f"{PEER}, fp32", "ours, fp32", "ours tp2 + sequence parallel"):
        times = []
        for layers in (4, 12):
            size = Size(hidden=16, layers=layers, heads=2, intermediate=32, vocabulary=128, sequence=8, sequences=64)
            fleet = Fleet(SYSTEMS[name], size)
            try:
                times.append(min(fleet.run(4).cpu for _ in range(rounds)) / SYSTEMS[name].ranks)
            finally:
                fleet.close()
        found[name] = (times[1] - times[0]) / 8 / 64 * 1e6
    return found


# --- The table ------------------------------------------------------------------------------------------------------


def summarise(costs: dict[str, list[Cost]]) -> list[dict[str, Any]]:
    """A row a system: medians, and the share of transformers on one process with the same type.

    Shares are medians over rounds of the ratio within a round, which a busy neighbour moves least. `speedup` is in wall
    seconds, so it means something only while as many cores are idle as the system has processes.
    """
    table = []
    for name, found in costs.items():
        system = SYSTEMS[name]
        base, one = costs.get(f"{PEER}, {system.dtype}"), costs.get(f"ours, {system.dtype}")
        table.append(
            {
                "system": name,
                "processes": system.ranks,
                "dtype": system.dtype,
                "cpu_seconds": statistics.median(c.cpu for c in found),
                "cpu_seconds_least": min(c.cpu for c in found),
                "wall_seconds": statistics.median(c.wall for c in found),
                "share": base and statistics.median(a.cpu / b.cpu for a, b in zip(found, base, strict=True)),
                "speedup": one and statistics.median(b.wall / a.wall for a, b in zip(found, one, strict=True)),
                "target": system.target,
            }
        )
    return table


def markdown(result: dict[str, Any]) -> str:
    m, size = result["machine"], result["size"]
    lines = [
        f"{result['date']}, {m['cores']} cores ({m['cpu']}), torch {m['torch']}, load average "
        f"{result['load_before']:.1f} before and {result['load_after']:.1f} after; {result['rounds']} rounds of "
        f"{result['steps']} steps, one thread a process.",
        f"Hidden {size['hidden']}, {size['layers']} layers, {size['heads']} heads, FFN {size['intermediate']}, "
        f"vocabulary {size['vocabulary']}, sequence {size['sequence']}, "
        f"{size['sequences']} sequences a step, micro-batch 1.",
        "",
        "| system | processes | type | CPU s a step | least | wall s | times as fast as ours on one process | "
        "share of transformers | at most |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["table"]:
        share = f"{row['share']:.3f}" if row["share"] else "-"
        speedup = f"{row['speedup']:.2f}" if row["speedup"] else "-"
        target = f"{row['target']:.2f}" if row["target"] else ""
        lines.append(
            f"| {row['system']} | {row['processes']} | {row['dtype']} | {row['cpu_seconds']:.3f} | "
            f"{row['cpu_seconds_least']:.3f} | {row['wall_seconds']:.3f} | {speedup} | {share} | {target} |"
        )
    if result["overhead_microseconds"]:
        lines += ["", "Python and dispatch, microseconds a layer and micro-batch (forward and backward, a rank):"]
        lines += [f"- {name}: {value:.0f}" for name, value in result["overhead_microseconds"].items()]
    if result["start"]:
        seconds, cpu = result["start"].values()
        lines += [
            "",
            f"Four processes, tiny model: first step after {seconds:.1f} s; the whole run took {cpu:.1f} CPU s.",
        ]
    return "\n".join(lines) + "\n"


def write(path: str, text: str) -> None:
    """Whole or not at all."""
    temporary = Path(path + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="CPU seconds of a training step, ours beside transformers and plain torch.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every system")
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="systems whose name has one of these in it")
    parser.add_argument("--overhead", action="store_true", help="also what Python costs a layer and micro-batch")
    parser.add_argument("--start", action="store_true", help="also the time to a tiny model's first step")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script itself")
    options = parser.parse_args(arguments)
    names = [n for n in SYSTEMS if not options.only or any(word in n for word in options.only)]
    if not names:
        parser.error(f"--only {' '.join(options.only)} fits no system; there are: {'; '.join(SYSTEMS)}")
    size = Size(32, 2, 2, 64, 128, 16, 8) if options.small else Size()
    before = os.getloadavg()[0]
    start = peer_start.first_step() if options.start else {}
    python = overhead(options.rounds) if options.overhead else {}
    costs = measure(names, size, options.rounds, options.steps)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": {"cores": len(os.sched_getaffinity(0)), "cpu": processor(), "torch": torch.__version__},
        "load_before": before,
        "load_after": os.getloadavg()[0],
        "rounds": options.rounds,
        "steps": options.steps,
        "size": vars(size),
        "table": summarise(costs),
        "overhead_microseconds": python,
        "start": start,
    }
    print(markdown(result), end="")
    if options.json:
        write(options.json, json.dumps(result, indent=1) + "\n")
    if options.markdown:
        write(options.markdown, markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
