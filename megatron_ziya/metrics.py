"""What a step prints and writes: `metrics.jsonl` (a line a step), TensorBoard events, a line on the terminal."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch

from megatron_ziya import config

# Dense BF16 peaks in TFLOP/s, from the data sheets
DATA_SHEETS = {"A100": 312.0, "A800": 312.0, "H100": 989.4, "H200": 989.4, "H800": 989.4, "L40S": 362.0, "4090": 165.2}


class Metrics:
    """Only the rank that has the loss writes; on the others every method does nothing."""

    def __init__(self, directory: Path, options: config.Log, writes: bool, first_step: int) -> None:
        self.options = options
        self.file: TextIO | None = None
        self.board: Any = None
        if not writes:
            return
        path = directory / "metrics.jsonl"
        _forget_after(path, first_step)
        self.file = path.open("a", encoding="utf-8", buffering=1)
        self.directory, self.first_step = directory, first_step

    def write(self, row: dict[str, Any], steps: int) -> None:
        if self.file is None:
            return
        self.file.write(json.dumps(row) + "\n")
        if self.options.tensorboard and self.board is None:  # after a step: the import takes 0.14 s
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.directory / "tensorboard"), purge_step=self.first_step)
        if self.board is not None:
            for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second"):
                self.board.add_scalar(f"train/{name}", row[name], row["step"])
        if row["step"] % self.options.every == 0 or row["step"] == steps:
            print(
                f"{row['stage']}  step {row['step']:>{len(str(steps))}}/{steps}  loss {row['loss']:.4f}  "
                f"norm {row['grad_norm']:.3f}  rate {row['learning_rate']:.2e}  "
                f"{row['tokens_per_second']:,.0f} tokens/s",
                flush=True,
            )

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()


def _forget_after(path: Path, step: int) -> None:
    """A run that goes on from `step` drops the lines of later steps: they are trained again."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def rank_logger(directory: Path, rank: int) -> logging.Logger:
    """Logs to `logs/rank_N.log`; rank 0 also to the terminal, and warnings of any rank too."""
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger(f"megatron_ziya.rank{rank}")
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO)
    file = logging.FileHandler(directory / "logs" / f"rank_{rank}.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen = logging.StreamHandler(sys.stdout)
    screen.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.addHandler(file)
    logger.addHandler(screen)
    return logger


def peak_flops(options: config.Log, device: torch.device, dtype: torch.dtype) -> float:
    """What counts as 100 % for `mfu`, FLOP/s per process: the recipe's, the data sheet's, or a matmul measured now."""
    if options.peak_tflops:
        return options.peak_tflops * 1e12
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [peak for key, peak in DATA_SHEETS.items() if key in name]
        if known:
            return known[0] * 1e12
    size, best = 512, float("inf")
    a, b = torch.ones(size, size, dtype=dtype, device=device), torch.ones(size, size, dtype=dtype, device=device)
    for _ in range(5):
        begin = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def memory_gib(device: torch.device) -> float:
    """Most memory this process has held: of the GPU, or resident in all on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
