"""`ziya train`: checks a recipe before any process starts, then starts one process a rank on this machine.

Everything that can be wrong with a recipe, a layout or a port is told here in one line. torchrun, needed for several
machines, starts the same program; it wraps each end of a run in messages of its own and takes two seconds longer.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from megatron_ziya import config

EXAMPLE = "example:\n  ziya train examples/demo/stage1.toml --processes 4 --run.steps 20"
GRACE = 15.0  # seconds that the other ranks have to end by themselves when one has failed


def train(arguments: Sequence[str]) -> int:
    """`ziya train RECIPE [--processes N] [--port P] [--section.key value ...]`; returns the run's exit code."""
    parser = argparse.ArgumentParser(
        prog="ziya train",
        description="Run a training recipe on this machine. For several machines use torchrun (README).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="TOML file; --section.key value goes over it")
    parser.add_argument("--processes", type=int, help="default: one per GPU, or one")
    parser.add_argument("--port", type=int, help="for the processes to meet; default: a free one")
    options, overrides = parser.parse_known_args(list(arguments))
    recipe = config.load(options.recipe, overrides)
    from megatron_ziya.process import choose_device
    from megatron_ziya.train import check

    device = choose_device(recipe.run.device)
    for name, value in ("--processes", options.processes), ("--port", options.port):
        if value is not None and not 1 <= value <= 65535:
            raise ValueError(f"{name}={value} must be 1 to 65535")
    processes = options.processes or (_gpus() if device.type == "cuda" else 1)
    check(recipe, processes)
    port = options.port or free_port()
    check_port(port)
    command = [sys.executable, "-m", "megatron_ziya.train", options.recipe, *overrides]
    return run_ranks(command, processes, port, recipe.run.threads)


def run_ranks(command: Sequence[str], processes: int, port: int, threads: int) -> int:
    """Start `command` once a rank and wait for all. Returns 0, or the exit code of the first rank that failed.

    When one rank fails the others get `GRACE` seconds to say what they saw; then they are ended.
    """
    # one OpenMP thread a process, as recipe.run.threads says
    common = {"TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ  # else a lost rank is told with a C++ stack, by each rank
    common |= {"OMP_NUM_THREADS": str(threads), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks: list[subprocess.Popen[bytes]] = []
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            # a group of its own: a terminal's Ctrl-C reaches this process alone, which then asks each rank once
            ranks.append(subprocess.Popen(list(command), env=common | own, process_group=0))
        return _wait(ranks)
    except KeyboardInterrupt:
        return _stop(ranks)
    finally:
        _end(ranks, signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


def _wait(ranks: Sequence["subprocess.Popen[bytes]"]) -> int:
    deadline, first = float("inf"), 0
    while time.monotonic() < deadline:
        codes = [process.poll() for process in ranks]
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        if failed and not first:
            rank, first = failed[0]
            deadline = time.monotonic() + GRACE
            if first < 0:
                name = signal.Signals(-first).name
                print(f"ziya train: rank {rank} was ended by {name}", file=sys.stderr, flush=True)
        if None not in codes:
            break
        time.sleep(0.05)
    return 128 - first if first < 0 else first


def _stop(ranks: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Let the ranks finish their step and save; a second Ctrl-C or SIGTERM ends them at once."""
    print("ziya train: stopping after this step; once more to end now", file=sys.stderr, flush=True)
    for process in ranks:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in ranks:
        process.wait()
    return 130


def _end(ranks: Sequence["subprocess.Popen[bytes]"], how: signal.Signals) -> None:
    """Ask what still runs to end, and make it end after five seconds."""
    running = [process for process in ranks if process.poll() is None]
    for process in running:
        process.send_signal(how)
    for process in running:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return int(s.getsockname()[1])


def check_port(port: int) -> None:
    """Raises ValueError when the port is taken."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("localhost", port))
        except OSError:
            raise ValueError(f"port {port} is in use; give another with --port, or none for a free one") from None
