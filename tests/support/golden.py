"""The golden curve: 30 steps of one process, in FP32, on data that is a formula. Run this file to record it anew.

A refactor must give the same bits. Another BLAS or another vector width sums in another order, so the bits belong to
a machine kind, and tests/golden/curve.json holds one recording a kind.
"""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranks import RandomSample

from megatron_ziya import batches
from megatron_ziya.config import Data, Model, Optimizer, Precision, Recipe, Run
from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.trainer import setup, train_step

FILE = Path(__file__).resolve().parents[1] / "golden/curve.json"
STEPS, LENGTH, VOCABULARY = 30, 32, 100


class FormulaMix:
    """Each piece follows from the one before it, but for one in eight, which is drawn by a linear congruence."""

    def __getitem__(self, number: int) -> RandomSample:
        state, token, tokens = 2 * number + 1, number % VOCABULARY, []
        for _ in range(LENGTH + 1):
            state = (6364136223846793005 * state + 1442695040888963407) % 2**64  # Knuth's MMIX
            token = (state >> 33) % VOCABULARY if (state >> 61) == 0 else (3 * token + 7) % VOCABULARY
            tokens.append(token)
        starts = np.zeros(LENGTH, np.int32)
        starts[10 + number % 12 :] = 10 + number % 12
        mask = np.ones(LENGTH, bool)
        mask[9 + number % 12] = False  # a document's first piece is not predicted from the document before it
        return RandomSample(np.array(tokens, np.int64), starts, mask)


def recipe(weights: str) -> Recipe:
    model = Model(
        vocabulary_size=VOCABULARY, hidden_size=64, intermediate_size=96, layers=3, heads=4, kv_heads=2,
        max_positions=LENGTH,
    )  # fmt: skip
    return Recipe(
        run=Run(steps=STEPS, device="cpu"),
        model=model,
        data=Data(sequence_length=LENGTH, global_batch_size=8, micro_batch_size=2),
        optimizer=Optimizer(learning_rate=1e-2, minimum=1e-3, warmup=0.1, clip=1.0),
        precision=Precision(weights=weights),
    )


def curve(weights: str) -> dict[str, list[float]]:
    """Losses and gradient norms. One thread: sums are cut differently for each number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wanted, mesh, mix = recipe(weights), Mesh(), FormulaMix()
    trainer = setup(wanted, mesh, wanted.model.architecture())
    rows = [
        train_step(trainer, *batches.read_step(mix, step, wanted.data, mesh))  # type: ignore[arg-type]
        for step in range(STEPS)
    ]
    torch.set_num_threads(threads)
    return {"loss": [row["loss"] for row in rows], "norm": [row["grad_norm"] for row in rows]}


def machine() -> str:
    """What decides about the bits: torch with its BLAS, the vector width it uses, and the processor BLAS looks at."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        processor = " ".join(fields.get(key, "?") for key in ("vendor_id", "cpu family", "model"))
    except OSError:
        processor = platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {platform.machine()}, {capability}, {processor}"


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def record() -> None:
    """Write this machine's curve, in hexadecimal so that no bit is lost, beside the FP64 one."""
    kept = read() if FILE.exists() else {"machines": {}}
    exact = curve("fp64")
    hexadecimal = {what: [value.hex() for value in values] for what, values in curve("fp32").items()}
    kept = {"fp64": exact, "machines": kept["machines"] | {machine(): hexadecimal}}
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    temporary.replace(FILE)


if __name__ == "__main__":
    record()
    print(f"recorded {FILE.name} for {machine()}")
