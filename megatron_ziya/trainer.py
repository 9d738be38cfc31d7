"""What a step needs on this rank, how it is set up, and the step itself; `train.py` is the run around it."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ziya_kernels
from megatron_ziya import optimizer, process
from megatron_ziya.checkpoint import distributed as checkpoint
from megatron_ziya.checkpoint import training
from megatron_ziya.checkpoint.background import Saver
from megatron_ziya.config import Architecture, Recipe
from megatron_ziya.model import parallelize
from megatron_ziya.model.llama import Llama, MicroBatch
from megatron_ziya.parallel.data import DataParallel, Kind
from megatron_ziya.parallel.mesh import Axis, Mesh
from megatron_ziya.parallel.pipeline import Pipeline
from megatron_ziya.parallel.schedule import Schedule
from megatron_ziya.parallel.stale import StaleGuard
from megatron_ziya.parallel.verify import planned
from megatron_ziya.precision import TYPES, LossScale, unhealthy


@dataclass
class Trainer:
    """Everything a step needs, on this rank."""

    recipe: Recipe
    architecture: Architecture
    mesh: Mesh
    chunks: list[Llama]
    data: DataParallel
    optimizer: optimizer.AdamW
    pipeline: Pipeline
    kernels: ziya_kernels.Kernels
    plans: dict[int, tuple[Schedule, int]]
    """For each number of micro-batches (one, without batch ramp-up) the schedule and the receives it needs posted."""
    loss_scale: LossScale
    saver: Saver
    step: int = 0
    skipped: int = 0
    """Steps of the whole run whose update was skipped."""
    failures: int = 0
    """Steps in a row, the last ones, whose loss or gradient was not finite."""
    stop: process.StopRequest = field(default_factory=process.StopRequest)
    resumed: str = ""
    """The checkpoint that the run goes on from."""
    run_id: str = ""
    """Random, made at the run's first start and kept in its checkpoints: all its segments carry it."""

    def pieces(self) -> dict[torch.nn.Parameter, list[parallelize.Piece]]:
        """Which logical pieces each local weight is made of."""
        return {weight: parts for chunk in self.chunks for weight, parts in parallelize.pieces(chunk, self.mesh)}


def setup(recipe: Recipe, mesh: Mesh, architecture: Architecture, fill: bool = True) -> Trainer:
    """Model, buckets, optimizer and pipeline of this rank, with weights from the seed or from `model.load`.

    Without `fill` the weights are zero: a checkpoint of the run's own comes next.
    """
    p, d, dtype = recipe.parallel, recipe.data, TYPES[recipe.precision.weights]
    kernels = ziya_kernels.select(recipe.precision.kernels, mesh.device)
    chunks = parallelize.build(architecture, p, mesh, kernels, dtype)
    source = checkpoint.Reader(checkpoint.resolve(recipe.model.load)) if recipe.model.load and fill else None

    def initial(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return parallelize.initial_weight(name, shape, architecture, recipe.run.seed)

    for chunk in chunks:
        if not fill:
            for weight in chunk.parameters():
                weight.detach().zero_()
        elif source is not None:
            parallelize.fill_pieces(chunk, mesh, training.weights_of(source))
        else:
            parallelize.fill(chunk, mesh, initial)
    gradient_type = torch.promote_types(dtype, torch.float32)
    weights = weights_by_kind(chunks, mesh, p.sequence)
    data = DataParallel(weights, mesh, p.bucket_mib * 2**20, gradient_type, p.invariant)
    for chunk in chunks:
        data.arrive_before_use(chunk)
    plans = {}
    for rows in sorted({d.rows(step) for step in range(max(1, d.ramp_up_steps + 1))}):
        micro_batches = rows // (mesh.data.size * d.micro_batch_size)
        schedule, _, verdict = planned(p, architecture, d.sequence_length, micro_batches)
        plans[micro_batches] = schedule, verdict.ahead
    tokens = d.micro_batch_size * d.sequence_length // (mesh.tensor.size if p.sequence else 1)
    shape = (tokens, architecture.hidden_size)
    pipeline = Pipeline(chunks, mesh, *plans[micro_batches], shape, dtype)
    adamw = optimizer.AdamW(data, recipe.optimizer, mesh, kernels)
    scale = LossScale.of(recipe.precision)
    saver = Saver(Path(recipe.run.directory) / "checkpoints", mesh.rank)
    return Trainer(recipe, architecture, mesh, chunks, data, adamw, pipeline, kernels, plans, scale, saver)


def weights_by_kind(chunks: Sequence[Llama], mesh: Mesh, sequence: bool) -> Iterator[tuple[Any, Kind, int]]:
    """`(weight, kind, gradients a micro-batch)` of every local weight, in forward order."""
    tied = chunks[0].architecture.tied
    uses = sum((chunk.embedding is not None) + (chunk.head is not None) for chunk in chunks)  # of a tied embedding
    seen = set()  # a V-shaped placement has embedding and head on one stage, in two chunks
    for chunk in chunks:
        for weight, pieces in parallelize.pieces(chunk, mesh):
            name = pieces[0].name
            if weight in seen:
                continue
            seen.add(weight)
            if weight.dim() == 1:  # norms: every tensor-parallel rank has all of them
                axis = mesh.tensor if sequence else Axis()
                yield weight, Kind(False, sum_over=axis, held_by=mesh.tensor, counted=mesh.tensor.index == 0), 1
            elif tied and name == "embedding.weight":
                apart = mesh.tied if uses == 1 else Axis()
                yield weight, Kind(True, sum_over=apart, held_by=apart, counted=apart.index == 0), uses
            else:
                yield weight, Kind(decay=True), 1


# --- A step ---------------------------------------------------------------------------------------------------------


def train_step(trainer: Trainer, micro_batches: Sequence[MicroBatch], counted: int) -> dict[str, Any]:
    """Forward, backward, reduce, clip, update. Returns loss, gradient norm, learning rate and counted tokens, whether
    to stop, and whether a checkpoint that was begun is written.

    A step whose loss or gradient is not finite changes no weight, and counts in `trainer.skipped`.
    """
    recipe, mesh, loss_scale = trainer.recipe, trainer.mesh, trainer.loss_scale
    trainer.pipeline.follow(*trainer.plans[len(micro_batches)])
    trainer.data.start_step(len(micro_batches))
    if loss_scale.value != 1.0:
        micro_batches = [replace(b, loss_scale=b.loss_scale * loss_scale.value) for b in micro_batches]
    with StaleGuard(trainer.data) if recipe.run.debug else nullcontext():
        losses = trainer.pipeline.run(micro_batches)
    trainer.data.finish_step()
    loss, tokens, stop, written = total_loss(losses, counted, mesh, trainer.stop.asked, trainer.saver.written())
    rate = optimizer.learning_rate(trainer.step, recipe.run.steps, recipe.optimizer)
    # each token's gradient was seeded with 1 / all tokens; only now is it known how many count
    scale = recipe.data.rows(trainer.step) * recipe.data.sequence_length / max(tokens, 1) / loss_scale.value
    trainer.saver.copied()
    norm = trainer.optimizer.step(trainer.step + 1 - trainer.skipped, rate, scale, loss)
    trainer.step += 1
    finite = not unhealthy(loss, norm)
    mends = loss_scale.update(finite)
    if not finite:
        trainer.skipped += 1
    if not mends:  # FP16 finds its scale by overflowing
        trainer.failures = 0 if finite else trainer.failures + 1
    flags = {"stop": stop, "written": written}
    return {"loss": loss, "grad_norm": norm, "learning_rate": rate, "counted": tokens} | flags


def total_loss(
    losses: Sequence[torch.Tensor], counted: int, mesh: Mesh, stop: bool = False, written: bool = True
) -> tuple[float, int, bool, bool]:
    """Mean loss of the tokens that count, over all ranks, their number, whether any rank was asked to stop, and whether
    all have written their part of a checkpoint. Every rank gets all four.
    """
    here = bool(losses) and mesh.tensor.index == 0  # of the stage with the last slice, which need not be the last one
    local = torch.zeros(4, dtype=torch.float64, device=mesh.device)
    local[2], local[3] = stop, not written
    if here:
        local[0] = torch.cat(list(losses)).sum(dtype=torch.float64)
        local[1] = counted
    if mesh.size > 1:
        dist.all_reduce(local)
    total, count, stops, writing = local.tolist()
    return total / max(count, 1.0), int(count), stops > 0, writing == 0
