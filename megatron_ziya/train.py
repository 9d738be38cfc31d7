"""The entry of training, read top to bottom: set up, step, loop.

    torchrun --nproc-per-node 4 -m megatron_ziya.train recipe.toml --run.steps 100

`ziya train recipe.toml --processes 4` does the same and checks the recipe before it starts the processes.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ziya_kernels
from megatron_ziya import batches, config, metrics, optimizer, process, report
from megatron_ziya.checkpoint import distributed as checkpoint
from megatron_ziya.checkpoint import training
from megatron_ziya.config import Architecture, Recipe
from megatron_ziya.model import parallelize
from megatron_ziya.model.llama import Llama, MicroBatch
from megatron_ziya.parallel import mesh as meshes
from megatron_ziya.parallel import schedule
from megatron_ziya.parallel.data import DataParallel, Kind
from megatron_ziya.parallel.mesh import Axis, Mesh
from megatron_ziya.parallel.pipeline import Pipeline
from ziya_data.indexed.mix import Mix

TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
MOST_SKIPPED_STEPS = 10  # in a row, with a gradient that is not finite


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
    step: int = 0
    skipped: int = 0

    def pieces(self) -> dict[torch.nn.Parameter, list[parallelize.Piece]]:
        """Which logical pieces each local weight is made of."""
        return {weight: parts for chunk in self.chunks for weight, parts in parallelize.pieces(chunk, self.mesh)}


# --- Set-up ---------------------------------------------------------------------------------------------------------


def architecture_of(recipe: Recipe) -> Architecture:
    """The model's shape: of the checkpoint it starts from, else the recipe's."""
    if recipe.model.load:
        return checkpoint.Reader(checkpoint.resolve(recipe.model.load), check=False).architecture
    return recipe.model.architecture()


def check(recipe: Recipe, world_size: int) -> Architecture:
    """Everything that can be wrong with a recipe, before any process waits for another.

    Returns the model's shape. Raises ValueError or FileNotFoundError with what to do.
    """
    architecture = architecture_of(recipe)
    config.check(recipe, architecture, world_size)
    batches.open_mix(recipe, architecture)
    return architecture


def setup(recipe: Recipe, mesh: Mesh, architecture: Architecture) -> Trainer:
    """Model, buckets, optimizer and pipeline of this rank, with weights from the seed or from `model.load`."""
    p, d, dtype = recipe.parallel, recipe.data, TYPES[recipe.precision.weights]
    kernels = ziya_kernels.select(recipe.precision.kernels, mesh.device)
    chunks = parallelize.build(architecture, p, mesh, kernels, dtype)
    source = checkpoint.Reader(checkpoint.resolve(recipe.model.load)) if recipe.model.load else None

    def logical(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if source is not None:
            return source.read(name)
        return parallelize.initial_weight(name, shape, architecture, recipe.run.seed)

    for chunk in chunks:
        parallelize.fill(chunk, mesh, logical)
    gradient_type = torch.promote_types(dtype, torch.float32)
    data = DataParallel(weights_by_kind(chunks, mesh, p.sequence), mesh, p.bucket_mib * 2**20, gradient_type)
    micro_batches = d.global_batch_size // (mesh.data.size * d.micro_batch_size)
    lists = schedule.make(p.schedule, p.pipeline, micro_batches, p.virtual)
    schedule.verify(lists, p.virtual)
    tokens = d.micro_batch_size * d.sequence_length // (mesh.tensor.size if p.sequence else 1)
    shape = (tokens, architecture.hidden_size)
    pipeline = Pipeline(chunks, mesh, lists[mesh.pipeline.index], shape, dtype)
    adamw = optimizer.AdamW(data, recipe.optimizer, mesh, kernels)
    return Trainer(recipe, architecture, mesh, chunks, data, adamw, pipeline, kernels)


def weights_by_kind(chunks: Sequence[Llama], mesh: Mesh, sequence: bool) -> Iterator[tuple[Any, Kind, int]]:
    """`(weight, kind, gradients a micro-batch)` of every local weight, in forward order."""
    for chunk in chunks:
        tied = chunk.architecture.tied
        for weight, pieces in parallelize.pieces(chunk, mesh):
            name = pieces[0].name
            if weight.dim() == 1:  # norms: every tensor-parallel rank has all of them
                axis = mesh.tensor if sequence else Axis()
                yield weight, Kind(decay=False, sum_over=axis, counted=mesh.tensor.index == 0), 1
            elif tied and name == "embedding.weight":
                uses = (chunk.embedding is not None) + (chunk.head is not None)
                yield weight, Kind(decay=True, sum_over=mesh.tied, counted=mesh.tied.index == 0), uses
            else:
                yield weight, Kind(decay=True), 1


# --- A step ---------------------------------------------------------------------------------------------------------


def train_step(trainer: Trainer, micro_batches: Sequence[MicroBatch], counted: int) -> dict[str, Any]:
    """Forward, backward, reduce, clip, update. Returns loss, gradient norm, learning rate and counted tokens."""
    recipe, mesh = trainer.recipe, trainer.mesh
    trainer.data.start_step(len(micro_batches))
    losses = trainer.pipeline.run(micro_batches)
    trainer.data.finish_step()
    loss, tokens = total_loss(losses, counted, mesh)
    rate = optimizer.learning_rate(trainer.step, recipe.run.steps, recipe.optimizer)
    # each token's gradient was seeded with 1 / all tokens; only now is it known how many count
    scale = recipe.data.global_batch_size * recipe.data.sequence_length / max(tokens, 1)
    norm = trainer.optimizer.step(trainer.step + 1 - trainer.skipped, rate, scale)
    trainer.step += 1
    return {"loss": loss, "grad_norm": norm, "learning_rate": rate, "counted": tokens}


def total_loss(losses: Sequence[torch.Tensor], counted: int, mesh: Mesh) -> tuple[float, int]:
    """Mean loss of the tokens that count, over all ranks, and their number. Every rank gets both."""
    here = mesh.last_stage and mesh.tensor.index == 0
    local = torch.zeros(2, dtype=torch.float64, device=mesh.device)
    if here:
        local[0] = torch.cat(list(losses)).sum(dtype=torch.float64)
        local[1] = counted
    if mesh.size > 1:
        dist.all_reduce(local)
    tokens = int(local[1].item())
    return local[0].item() / max(tokens, 1), tokens


# --- The loop -------------------------------------------------------------------------------------------------------


def train(recipe: Recipe, mesh: Mesh, architecture: Architecture) -> Trainer:
    """The whole run on this rank: from the newest checkpoint, or from the start, to the last step."""
    directory = Path(recipe.run.directory)
    begin = time.monotonic()
    mix = batches.open_mix(recipe, architecture)
    trainer = setup(recipe, mesh, architecture)
    resume(trainer, directory)
    log = metrics.rank_logger(directory, mesh.rank)
    announce(trainer, mix, log)
    if mesh.rank == 0:
        (directory / "recipe.toml").write_text(config.to_toml(recipe), encoding="utf-8")
    dtype = TYPES[recipe.precision.weights]
    peak = metrics.peak_flops(recipe.log, mesh.device, dtype)
    flops = architecture.flops_per_token(recipe.data.sequence_length)
    tokens_per_step = recipe.data.global_batch_size * recipe.data.sequence_length
    writer = metrics.Metrics(directory, recipe.log, mesh.rank == 0, trainer.step)
    log.info(f"ready after {time.monotonic() - begin:.1f} s")
    begin, failures = time.monotonic(), 0
    for micro_batches, counted in batches.steps(mix, trainer.step, recipe, mesh):
        result = train_step(trainer, micro_batches, counted)
        failures = check_finite(trainer, result, failures, log)
        seconds, begin = time.monotonic() - begin, time.monotonic()
        row = {
            "step": trainer.step,
            "stage": recipe.run.stage,
            "loss": result["loss"],
            "grad_norm": result["grad_norm"],
            "learning_rate": result["learning_rate"],
            "tokens": trainer.step * tokens_per_step,
            "tokens_per_second": tokens_per_step / seconds,
            "seconds": seconds,
            "memory_gib": metrics.memory_gib(mesh.device),
            "mfu": flops * tokens_per_step / seconds / (peak * mesh.size),
        }
        writer.write(row, recipe.run.steps)
        due = recipe.checkpoint.every and trainer.step % recipe.checkpoint.every == 0
        if due or trainer.step == recipe.run.steps:
            save(trainer, directory, mix, log)
            begin = time.monotonic()
    writer.close()
    if mesh.rank == 0 and recipe.log.report:
        report.write_run(directory)
    return trainer


def check_finite(trainer: Trainer, result: dict[str, Any], failures: int, log: Any) -> int:
    """Count steps in a row whose gradient was not finite (their update was skipped); give up after ten."""
    if math.isfinite(result["grad_norm"]):
        return 0
    trainer.skipped += 1
    log.warning(f"step {trainer.step}: gradient norm {result['grad_norm']}, update skipped")
    if failures + 1 >= MOST_SKIPPED_STEPS:
        raise ValueError(
            f"{MOST_SKIPPED_STEPS} steps in a row had a gradient that is not finite; "
            "lower optimizer.learning_rate or go back to an earlier checkpoint"
        )
    return failures + 1


def announce(trainer: Trainer, mix: Mix, log: Any) -> None:
    """Say what runs, before it runs."""
    recipe, mesh, a = trainer.recipe, trainer.mesh, trainer.architecture
    p, d = recipe.parallel, recipe.data
    sources = ", ".join(f"{name} {count}" for name, count in mix.counts(len(mix)).items())
    log.info(
        f"model: {a.parameters() / 1e6:.2f} M weights, {a.layers} layers, hidden {a.hidden_size}, "
        f"vocabulary {a.vocabulary_size}, from {recipe.model.load or 'new weights'}\n"
        f"layout: tensor {p.tensor} x pipeline {p.pipeline} x data {mesh.data.size} on {mesh.size} process(es), "
        f"{p.schedule}, sequence parallel {'on' if p.sequence and p.tensor > 1 else 'off'}\n"
        f"batch: {d.global_batch_size} sequences of {d.sequence_length} tokens a step, {recipe.run.steps} steps; "
        f"samples: {sources}\n"
        f"{trainer.kernels.describe()}"
    )


# --- Checkpoints ----------------------------------------------------------------------------------------------------


def save(trainer: Trainer, directory: Path, mix: Mix, log: Any) -> None:
    """Write `checkpoints/step_N`: every rank its own shares, each logical element once."""
    recipe, folder = trainer.recipe, directory / "checkpoints"
    begin = time.monotonic()
    consumed = mix.counts(trainer.step * recipe.data.global_batch_size)
    extra = {"stage": recipe.run.stage, "skipped": trainer.skipped, "consumed_samples": consumed}
    travels = checkpoint.resolve(recipe.model.load) / "huggingface" if recipe.model.load else None
    toml = config.to_toml(recipe)
    segments = training.owned_segments(trainer.optimizer.states, trainer.pieces())
    path = checkpoint.save(
        folder, trainer.step, trainer.architecture, segments, trainer.mesh.rank, toml, extra, travels
    )
    if trainer.mesh.rank == 0:
        checkpoint.prune(folder, recipe.checkpoint.keep)
        log.info(f"saved {path} in {time.monotonic() - begin:.1f} s")


def resume(trainer: Trainer, directory: Path) -> None:
    """Go on from the newest checkpoint of the run directory, if there is one: weights, masters, moments, step."""
    found = checkpoint.steps(directory / "checkpoints") if trainer.recipe.checkpoint.resume else []
    if not found:
        return
    reader = checkpoint.Reader(found[-1])
    if reader.architecture != trainer.architecture:
        raise ValueError(f"{found[-1]} holds another architecture than the recipe; choose another run.directory")
    for chunk in trainer.chunks:
        parallelize.fill(chunk, trainer.mesh, lambda name, _: reader.read(name))
    training.restore(reader, trainer.optimizer.states, trainer.pieces())
    trainer.step, trainer.skipped = reader.step, reader.manifest.get("skipped", 0)


# --- Entry ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a recipe on this rank. Returns the exit code: 2 for a user's mistake, told in one line by rank 0."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    rank, world_size = meshes.environment()
    speaks = rank == 0  # what every rank finds wrong is told once; what goes wrong later, by whom it concerns
    try:
        recipe = config.load(arguments[0], arguments[1:])
        architecture = check(recipe, world_size)
        device = process.prepare(recipe.run.device, recipe.run.threads)
        with meshes.distributed(recipe.run, device):
            speaks = True
            mesh = meshes.build(recipe.parallel.tensor, recipe.parallel.pipeline, device, architecture.tied)
            train(recipe, mesh, architecture)
    except (ValueError, OSError, dist.DistNetworkError) as error:
        if speaks:
            print(f"train: error{f' on rank {rank}' if rank else ''}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
