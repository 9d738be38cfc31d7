"""`ziya train`: checks a recipe before any process starts, then hands over to torchrun.

Everything that can be wrong with a recipe, a layout or a port is told here in one line; with plain torchrun the same
line comes from rank 0, but between torchrun's own messages.
"""

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from megatron_ziya import config

EXAMPLE = "example:\n  ziya train examples/demo/stage1.toml --processes 4 --run.steps 20"


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
    parser.add_argument("--port", type=int, default=0, help="for the processes to meet; default: a free one")
    options, overrides = parser.parse_known_args(list(arguments))
    recipe = config.load(options.recipe, overrides)
    from megatron_ziya.process import choose_device
    from megatron_ziya.train import check

    device = choose_device(recipe.run.device)
    processes = options.processes or (_gpus() if device.type == "cuda" else 1)
    check(recipe, processes)
    port = options.port or free_port()
    check_port(port)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--master-addr", "localhost", "--master-port", str(port),
        "-m", "megatron_ziya.train", options.recipe, *overrides,
    ]  # fmt: skip
    if processes == 1:
        command = [sys.executable, "-m", "megatron_ziya.train", options.recipe, *overrides]
    # one OpenMP thread a process, as recipe.run.threads says; torchrun would print a warning about its own default
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(recipe.run.threads)}).returncode


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
