"""The parity grid: every layout that fits in eight processes, held against one process in FP64.

`AXES`, `KNOBS` and `DRAWN` are the lists to extend: a new value of a knob is one more entry. Which combinations exist
is asked of `checks.check`; a cell that it refuses is not part of the grid.
"""

import dataclasses
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from ranks import RandomMix, logical_tensors

from megatron_ziya import batches, checks, faults
from megatron_ziya.config import Data, Model, Optimizer, Parallel, Precision, Recipe, Run, Source
from megatron_ziya.model import parallelize
from megatron_ziya.parallel import mesh as meshes
from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.precision import TYPES
from megatron_ziya.trainer import setup, train_step

PROCESSES, STEPS = 8, 3
SEQUENCE = 8
BOUND = 1e-12  # see docs/parity.md


@dataclass(frozen=True)
class Cell:
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    schedule: str = "1f1b"
    virtual: int = 1
    sequence: bool = True
    recompute: str = "none"
    kv_heads: int = 8
    tied: bool = False
    documents: bool = True
    micro: int = 1
    clip: float = 0.0
    halves: bool = False
    """Half a layer more on even slices, half a layer less on odd ones: cuts between attention and MLP."""
    invariant: bool = False
    spread_head: bool = False

    @property
    def processes(self) -> int:
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        """What differs from one process that does nothing special."""
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return " ".join(f"{name}={getattr(self, name)}" for name in changed) or "one process"


AXES: dict[str, tuple[Any, ...]] = {
    "schedule": ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"),
    "virtual": (1, 2),
    "sequence": (True, False),
    "recompute": ("none", "selective", "full", "first layer"),
}
"""What the engine does, beside the layout: all combinations."""
KNOBS: dict[str, tuple[Any, ...]] = {
    "kv_heads": (8, 4),
    "tied": (False, True),
    "documents": (True, False),
    "micro": (1, 2),
    "clip": (0.0, 0.5),
}
"""What it works on. 0.5 is under the gradient's norm (about 1), so every step is clipped."""
DRAWN: dict[str, tuple[Any, ...]] = {
    "halves": (False, True),
    "invariant": (False, False, False, True),
    "spread_head": (False, True),
}
"""Knobs that do not multiply the grid: each cell draws its values by its name."""


def layouts() -> Iterator[tuple[int, int, int]]:
    """Every (tensor, pipeline, data) of at most eight processes; eight heads split over 1, 2, 4 or 8."""
    sizes = range(1, PROCESSES + 1)
    for tensor, pipeline, data in itertools.product((1, 2, 4, 8), sizes, sizes):
        if tensor * pipeline * data <= PROCESSES:
            yield tensor, pipeline, data


def part(chosen: Sequence[Cell], number: int, of: int) -> list[Cell]:
    """Part `number` (from 0) of `of`: drawn by the cell's name, so that every knob occurs in every part."""
    return [cell for cell in chosen if zlib.crc32(str(cell).encode()) % of == number]


def cells(layout: tuple[int, int, int], whole: bool = False) -> list[Cell]:
    """The cells of a layout. Knobs that do nothing there (the schedule of one stage, …) take one value.

    With each combination of `AXES` come either all combinations of `KNOBS` or a quarter of them that has every pair
    of values (an orthogonal array: the last two knobs follow from the first three); which quarter, the draw decides.
    """
    tensor, pipeline, _ = layout
    axes = dict(AXES)
    if pipeline == 1:
        axes |= {"schedule": ("1f1b",), "virtual": (1,)}
    if tensor == 1:
        axes["sequence"] = (True,)
    found = []
    for values in itertools.product(*axes.values()):
        engine = dict(zip(axes, values, strict=True))
        shift = draw(layout, engine)
        for picks in itertools.product(*(range(len(values)) for values in KNOBS.values())):
            a, b, c, d, e = picks
            if whole or ((a + b + d + shift) % 2 == 0 and (a + c + e + shift // 2) % 2 == 0):
                knobs = {name: KNOBS[name][i] for name, i in zip(KNOBS, picks, strict=True)}
                drawn = {name: v[draw(name, layout, engine, knobs) % len(v)] for name, v in DRAWN.items()}
                found.append(Cell(*layout, **engine, **knobs, **drawn))
    return [cell for cell in map(possible, found) if fits(cell)]


def draw(*of: Any) -> int:
    return zlib.crc32(repr(of).encode()) >> 8


def possible(cell: Cell) -> Cell:
    """Without the drawn knobs that do not go with the others."""
    if cell.pipeline == 1:
        cell = dataclasses.replace(cell, halves=False, spread_head=False)
    if cell.micro > 1 or (cell.tied and cell.pipeline > 1):
        cell = dataclasses.replace(cell, invariant=False)
    if cell.tied or cell.invariant:
        cell = dataclasses.replace(cell, spread_head=False)
    return cell


def fits(cell: Cell) -> bool:
    wanted = recipe(cell)
    try:
        checks.check(wanted, wanted.model.architecture(), cell.processes)
    except ValueError:
        return False
    return True


def recipe(cell: Cell, weights: str = "fp64") -> Recipe:
    """A tiny run. The layers never divide evenly over the stages; 300 vocabulary rows leave ranks with padding.

    One micro-batch more than stages; the interleaved schedule wants a multiple of them. AdamW's eps is 1e-4: with the
    usual 1e-8 an element whose gradient is 1e-10 moves by rounding noise / eps, 2e-11 of the weights (seen once).
    """
    slices = cell.pipeline * cell.virtual
    micro_batches = cell.pipeline + 1 if cell.virtual == 1 else cell.pipeline * (2 if cell.pipeline < 4 else 1)
    model = Model(
        vocabulary_size=300, hidden_size=32, intermediate_size=24, layers=slices + 1, heads=8,
        kv_heads=cell.kv_heads, tied=cell.tied, max_positions=SEQUENCE,
    )  # fmt: skip
    halves = [1 + (0.5 if i % 2 == 0 else -0.5) for i in range(slices)]
    halves[-1] += slices + 1 - sum(halves)
    recompute = "full" if cell.recompute == "first layer" else cell.recompute
    parallel = Parallel(
        tensor=cell.tensor, pipeline=cell.pipeline, virtual=cell.virtual, schedule=cell.schedule,
        sequence=cell.sequence, bucket_mib=0.02, invariant=cell.invariant, layout=tuple(halves) if cell.halves else (),
        recompute=recompute, recompute_layers=int(cell.recompute == "first layer"), spread_head=cell.spread_head,
    )  # fmt: skip
    data = Data(
        sequence_length=SEQUENCE, global_batch_size=cell.data * micro_batches * cell.micro,
        micro_batch_size=cell.micro, document_mask=cell.documents, sources=(Source("random", ("random",)),),
    )  # fmt: skip
    return Recipe(
        Run(steps=STEPS, device="cpu"), model, parallel, data,
        Optimizer(learning_rate=1e-3, warmup=0.0, clip=cell.clip, eps=1e-4), Precision(weights=weights),
    )  # fmt: skip


def alone(cell: Cell) -> Recipe:
    """The same run on one process, one sequence at a time, nothing recomputed: the truth of the cell."""
    whole = recipe(cell)
    return dataclasses.replace(whole, parallel=Parallel(), data=dataclasses.replace(whole.data, micro_batch_size=1))


# --- What a rank does ---------------------------------------------------------------------------------------------


def trained(wanted: Recipe, mesh: Mesh) -> tuple[dict[str, Any], Any]:
    """Three steps: losses, norms, the gradients of the first by logical name (rank 0), and the trainer."""
    trainer = setup(wanted, mesh, wanted.model.architecture())
    mix = RandomMix(wanted.model.vocabulary_size, SEQUENCE)
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        micro_batches, counted = batches.read_step(mix, step, wanted.data, mesh)
        row = train_step(trainer, micro_batches, counted)
        losses.append(row["loss"])
        norms.append(row["grad_norm"])
        if step == 0:
            tokens = wanted.data.global_batch_size * wanted.data.sequence_length
            gradients = logical_tensors(trainer, tokens / row["counted"], "gradient")
    trainer.data.arrive()
    for state in trainer.optimizer.states:
        share = state.bucket.flat[state.bucket.share]
        assert torch.equal(share, state.master.to(share.dtype)), "weights are not the rounded masters"
    faults.check_replicas(trainer.data.buckets, mesh)  # and the other ranks have the same
    return {"loss": losses, "norm": norms, "gradients": gradients}, trainer


def run_cells(chosen: Sequence[Cell], folder: Path) -> list[dict[str, float]]:
    """The cells of one layout on this rank. Returns, a cell, the largest relative differences this rank sees."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    wanted = {truth_path(cell, folder): alone(cell) for cell in chosen}
    for path in list(wanted)[rank::size]:
        if not path.exists():
            write_truth(wanted[path], path)
    if size > 1:
        dist.barrier()
    truths = {path: torch.load(path, weights_only=True) for path in wanted}
    mesh = meshes.build(chosen[0].tensor, chosen[0].pipeline, torch.device("cpu"), tied=True, spread_head=True)
    found = []
    for cell in chosen:
        found.append(differences(*trained(recipe(cell), mesh), truths[truth_path(cell, folder)], rank))
    return found


def truth_path(cell: Cell, folder: Path) -> Path:
    r = alone(cell)
    key = (r.model.layers, r.model.kv_heads, r.model.tied, r.data.global_batch_size, cell.documents, cell.clip)
    return folder / ("-".join(map(str, key)) + ".pt")


def write_truth(wanted: Recipe, path: Path) -> None:
    result, trainer = trained(wanted, Mesh())
    weights = {p.name: p.of_local(w.detach()).clone() for w, pieces in trainer.pieces().items() for p in pieces}
    temporary = path.with_suffix(f".{os.getpid()}")
    torch.save(result | {"weights": weights}, temporary)
    temporary.replace(path)


def differences(result: dict[str, Any], trainer: Any, truth: dict[str, Any], rank: int) -> dict[str, float]:
    """Largest relative differences: of a number to itself, of a tensor's elements to its largest element.

    Weights are those that the next forward pass would use, on every rank: replicas and gathered shares too.
    """
    found = {what: _largest(result[what], truth[what]) for what in ("loss", "norm")}
    pieces = [(piece, piece.of_local(weight.detach())) for weight, all_ in trainer.pieces().items() for piece in all_]
    found["weights"] = max(
        (_of_tensor(local, piece.of_logical(truth["weights"][piece.name]), truth["weights"][piece.name])
         for piece, local in pieces if piece.size), default=0.0,
    )  # fmt: skip
    if rank == 0:
        assert result["gradients"].keys() == truth["gradients"].keys()
        found["gradients"] = max(
            _of_tensor(result["gradients"][name], expected, expected) for name, expected in truth["gradients"].items()
        )
    return found


def _largest(found: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) if a == a else float("inf") for a, b in zip(found, expected, strict=True))


def _of_tensor(found: torch.Tensor, expected: torch.Tensor, whole: torch.Tensor) -> float:
    largest = (found - expected).abs().max() / whole.abs().max()
    return float(largest) if bool(torch.isfinite(largest)) else float("inf")


def rounding(cell: Cell, weights: str) -> dict[str, tuple[float, float]]:
    """Errors against FP64 from the same rounded weights, in a narrower type: `(of the layout, of one process)`.

    Losses of all steps and norm of the first relative; gradients as the norm of the error over the norm of the
    gradient, a logical tensor each.
    """
    dtype, drawn = TYPES[weights], parallelize.initial_weight

    def rounded(*arguments: Any) -> torch.Tensor:
        return drawn(*arguments).to(dtype).float()

    with mock.patch.object(parallelize, "initial_weight", rounded):
        mesh = meshes.build(cell.tensor, cell.pipeline, torch.device("cpu"), tied=True, spread_head=True)
        ours, _ = trained(recipe(cell, weights), mesh)
        if mesh.rank:
            return {}
        narrow, _ = trained(dataclasses.replace(alone(cell), precision=Precision(weights=weights)), Mesh())
        exact, _ = trained(alone(cell), Mesh())
    pairs = [
        {what: _largest(one[what][:steps], exact[what][:steps]) for what, steps in (("loss", STEPS), ("norm", 1))}
        | {n: float((one["gradients"][n].double() - g).norm() / g.norm()) for n, g in exact["gradients"].items()}
        for one in (ours, narrow)
    ]
    return {what: (pairs[0][what], pairs[1][what]) for what in pairs[0]}


# --- Running it -----------------------------------------------------------------------------------------------------


def run(pool: Any, chosen: Sequence[Cell], folder: Path) -> dict[Cell, dict[str, float]]:
    """Cells of one layout: the largest difference that any rank sees."""
    ranks = pool.run(chosen[0].processes, run_cells, list(chosen), folder)
    return {
        cell: {what: max(rank[i].get(what, 0.0) for rank in ranks) for what in ranks[0][i]}
        for i, cell in enumerate(chosen)
    }


def worst(found: Iterable[dict[str, float]]) -> dict[str, float]:
    """The largest of each difference."""
    rows = list(found)
    return {what: max(row[what] for row in rows) for what in ("loss", "norm", "gradients", "weights")}


def too_far(found: dict[Cell, dict[str, float]], bound: float = BOUND) -> list[str]:
    """A line for each cell that differs by more than `bound`."""
    return [
        f"{cell}: " + ", ".join(f"{what} {value:.1e}" for what, value in values.items())
        for cell, values in found.items()
        if not max(values.values()) <= bound
    ]
