"""The entry of training, read top to bottom: check, run, save, go on, main. `trainer.py` has set-up and step.

    torchrun --nproc-per-node 4 -m megatron_ziya.train recipe.toml --run.steps 100

`ziya train recipe.toml --processes 4` does the same and checks the recipe before it starts the processes.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_ziya import batches, checks, config, faults, metrics, process, report
from megatron_ziya.checkpoint import distributed as checkpoint
from megatron_ziya.checkpoint import training
from megatron_ziya.checkpoint.format import read_manifest
from megatron_ziya.config import Architecture, Recipe
from megatron_ziya.model import parallelize
from megatron_ziya.parallel import invariant
from megatron_ziya.parallel import mesh as meshes
from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.parallel.trace import Trace
from megatron_ziya.precision import TYPES, unhealthy
from megatron_ziya.trainer import Trainer, setup, train_step
from ziya_data.indexed.mix import Mix

EXIT_STOPPED = 130  # asked to stop before the last step, as a shell says it of Ctrl-C


# --- Before it starts -----------------------------------------------------------------------------------------------


def start_of(recipe: Recipe) -> Path | None:
    """The checkpoint that `model.load` names. None without one, and when it is gone but the run has come further.

    Raises FileNotFoundError when it is gone and needed.
    """
    if not recipe.model.load:
        return None
    try:
        return checkpoint.resolve(recipe.model.load)
    except FileNotFoundError:
        if own_steps(recipe):
            return None
        raise


def own_steps(recipe: Recipe) -> list[Path]:
    """The checkpoints of the run that it may go on from, oldest first."""
    return checkpoint.steps(Path(recipe.run.directory) / "checkpoints") if recipe.checkpoint.resume else []


def architecture_of(recipe: Recipe) -> Architecture:
    """The model's shape: of the checkpoint it starts from, else the recipe's."""
    start = start_of(recipe)
    if start is not None:
        return checkpoint.Reader(start, check=False).architecture
    newest = newest_whole(recipe) if recipe.model.load else None
    return newest.architecture if newest else recipe.model.architecture()


def check(recipe: Recipe, world_size: int) -> Architecture:
    """Everything that can be wrong with a recipe, before any process waits for another.

    Returns the model's shape. Raises ValueError or FileNotFoundError with what to do.
    """
    architecture = architecture_of(recipe)
    checks.check(recipe, architecture, world_size)
    directory = Path(recipe.run.directory)
    done = checkpoint.steps(directory / "checkpoints")
    if done and not recipe.checkpoint.resume:
        raise ValueError(
            f"{done[-1]} is there and checkpoint.resume=false would overwrite it; choose another run.directory"
        )
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"run.directory={directory} is a file; choose another")
    newest = newest_whole(recipe)
    mix = batches.open_mix(recipe, architecture, *drawn(recipe, newest))
    for model in start_of(recipe), newest:
        if model:
            checkpoint.check_tokenizer(model, mix.tokenizer)
    return architecture


# --- The run --------------------------------------------------------------------------------------------------------


def train(recipe: Recipe, mesh: Mesh, architecture: Architecture, stop: process.StopRequest | None = None) -> Trainer:
    """The whole run on this rank: from the newest checkpoint, or from the start, to the last step or to `stop`."""
    directory = Path(recipe.run.directory)
    begin = time.monotonic()
    trainer = setup(recipe, mesh, architecture, fill=not own_steps(recipe))
    trainer.stop = stop or trainer.stop
    log = metrics.rank_logger(directory, mesh.rank)
    reader = resume(trainer, log)
    mix = batches.open_mix(recipe, architecture, *drawn(recipe, reader))
    announce(trainer, mix, log)
    if mesh.rank == 0 and trainer.step < recipe.run.steps:  # a run that has nothing to do keeps what was in force
        (directory / "recipe.toml").write_text(config.to_toml(recipe), encoding="utf-8")
    dtype = TYPES[recipe.precision.weights]
    peak = metrics.peak_flops(recipe.log, mesh.device, dtype)
    flops = architecture.flops_per_token(recipe.data.sequence_length)
    writer = metrics.Metrics(directory, recipe.log, mesh.rank == 0, trainer.step)
    log.info(f"ready after {time.monotonic() - begin:.1f} s")
    if trainer.step >= recipe.run.steps:
        log.info(f"finished already: step {trainer.step} of {recipe.run.steps}; raise run.steps to go on")
    traced = min(trainer.step + 2, recipe.run.steps - 1)  # the third: nothing is done for the first time
    begin, first = time.monotonic(), trainer.step + 1
    for micro_batches, counted in batches.steps(mix, trainer.step, recipe, mesh):
        tracing = recipe.log.trace and trainer.step == traced
        trainer.pipeline.trace = Trace(mesh) if tracing else None
        result = train_step(trainer, micro_batches, counted)
        if trainer.pipeline.trace is not None:
            trainer.pipeline.trace.write(directory)
        check_health(trainer, result, log)
        if result["written"]:
            trainer.saver.publish()
        if trainer.step == first and trainer.kernels.cost():
            log.info(f"{trainer.kernels.cost()}, in the first step")
        tokens = recipe.data.rows(trainer.step - 1) * recipe.data.sequence_length
        seconds, begin = time.monotonic() - begin, time.monotonic()
        row = {
            "step": trainer.step,
            "stage": recipe.run.stage,
            "loss": result["loss"],
            "grad_norm": result["grad_norm"],
            "learning_rate": result["learning_rate"],
            "tokens": recipe.data.rows_before(trainer.step) * recipe.data.sequence_length,
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
            "memory_gib": metrics.memory_gib(mesh.device),
            "mfu": flops * tokens / seconds / (peak * mesh.size),
            "skipped": trainer.skipped,
            "loss_scale": trainer.loss_scale.value,
        }
        writer.write(row, recipe.run.steps)
        due = recipe.checkpoint.every and trainer.step % recipe.checkpoint.every == 0
        if due or result["stop"] or trainer.step == recipe.run.steps:
            save(trainer, directory, mix, log)
            begin = time.monotonic()
        if result["stop"] and trainer.step < recipe.run.steps:
            log.info(f"stopped after step {trainer.step} of {recipe.run.steps}; the same command goes on from there")
            break
    trainer.data.arrive()
    trainer.saver.wait()
    writer.close()
    if mesh.rank == 0 and recipe.log.report:
        report.write_run(directory)
    return trainer


def check_health(trainer: Trainer, result: dict[str, Any], log: Any) -> None:
    """Log a skipped step and compare replicas when it is time. Raises Fault when the run cannot go on."""
    run, what = trainer.recipe.run, unhealthy(result["loss"], result["grad_norm"])
    if what:
        scale = f"; loss scale now {trainer.loss_scale.value:g}" if trainer.loss_scale.window else ""
        log.warning(f"step {trainer.step}: {what}, update skipped ({trainer.skipped} in all){scale}")
    if trainer.failures >= run.stop_after:
        raise faults.Fault(
            f"{trainer.failures} steps in a row had a loss or gradient that is not finite; "
            "lower optimizer.learning_rate or go back to an earlier checkpoint"
        )
    if run.check_replicas_every and trainer.step % run.check_replicas_every == 0:
        trainer.data.arrive()
        compared = faults.check_replicas(trainer.data.buckets, trainer.mesh)
        log.info(f"step {trainer.step}: {compared} copies of weights compared, all equal")


def announce(trainer: Trainer, mix: Mix, log: Any) -> None:
    """Say what runs, before it runs."""
    recipe, mesh, a = trainer.recipe, trainer.mesh, trainer.architecture
    p, d = recipe.parallel, recipe.data
    sources = ", ".join(f"{name} {count}" for name, count in mix.counts(len(mix)).items())
    log.info(
        f"model: {a.parameters() / 1e6:.2f} M weights, {a.layers} layers, hidden {a.hidden_size}, "
        f"vocabulary {a.vocabulary_size}, from {trainer.resumed or recipe.model.load or 'new weights'}\n"
        f"layout: tensor {p.tensor} x pipeline {p.pipeline} x data {mesh.data.size} on {mesh.size} process(es), "
        f"{p.schedule}, sequence parallel {'on' if p.sequence and p.tensor > 1 else 'off'}"
        f"{f', head spread over {mesh.head.size} ranks' if p.spread_head else ''}\n"
        f"batch: {d.global_batch_size} sequences of {d.sequence_length} tokens a step, {recipe.run.steps} steps; "
        f"samples: {sources}\n"
        f"{trainer.kernels.describe()}"
    )
    if p.invariant:
        log.info(invariant.cost(trainer.data.buckets, max(trainer.plans)))


# --- Checkpoints ----------------------------------------------------------------------------------------------------


def save(trainer: Trainer, directory: Path, mix: Mix, log: Any) -> None:
    """Write `checkpoints/step_N`: every rank its own shares, each logical element once."""
    trainer.data.arrive()
    recipe, folder = trainer.recipe, directory / "checkpoints"
    begin = time.monotonic()
    consumed = mix.counts(recipe.data.rows_before(trainer.step))
    health = {"skipped": trainer.skipped, "failures": trainer.failures, "loss_scale": trainer.loss_scale.state()}
    rows = recipe.data.rows_before(trainer.step)
    extra = {"stage": recipe.run.stage, "consumed_samples": consumed, "rows": rows, "mix": mix.history, **health}
    extra["tokenizer"] = mix.tokenizer
    start = start_of(recipe) or next(reversed(own_steps(recipe)), None)
    travels = start / "huggingface" if start else None
    toml = config.to_toml(recipe)
    segments = training.owned_segments(trainer.optimizer.states, trainer.pieces())
    origin = checkpoint.Origin(trainer.run_id, trainer.step)

    def saved(path: Path) -> None:
        checkpoint.prune(folder, recipe.checkpoint.keep, path, recipe.checkpoint.keep_every)
        total = read_manifest(path)["weights_sum"]
        log.info(f"saved {path} in {time.monotonic() - begin:.1f} s, sum of the weights {total}")

    if recipe.checkpoint.asynchronous:
        trainer.saver.start(origin, trainer.architecture, segments, toml, extra, travels, saved)
        return
    path = checkpoint.save(folder, origin, trainer.architecture, segments, trainer.mesh.rank, toml, extra, travels)
    if trainer.mesh.rank == 0:
        saved(path)


def newest_whole(recipe: Recipe) -> checkpoint.Reader | None:
    """The newest checkpoint of the run whose manifest and headers are good; None when there is no checkpoint.

    Raises ValueError when there are some and none can be opened.
    """
    found = own_steps(recipe)
    refused: list[str] = []
    for path in reversed(found):
        try:
            return checkpoint.Reader(path, check=False)
        except (ValueError, OSError) as error:
            refused.append(str(error))
    if refused:
        raise training.none_good(found, refused)
    return None


def drawn(recipe: Recipe, reader: checkpoint.Reader | None) -> tuple[list[dict[str, Any]], int]:
    """The mixes the run has had and the samples it has drawn, of the checkpoint it goes on from; ([], 0) without one.

    Raises ValueError if the recipe's batch sizes make other samples of the steps that were done.
    """
    if reader is None:
        return [], 0
    at = recipe.data.rows_before(reader.step)
    if reader.manifest.get("rows", at) != at:
        raise ValueError(
            f"{reader.path} has drawn {reader.manifest['rows']} samples, this recipe's batches would make it {at}: "
            "samples would be lost or repeated; keep data.global_batch_size and the ramp-up"
        )
    return reader.manifest.get("mix", []), at


def resume(trainer: Trainer, log: Any) -> checkpoint.Reader | None:
    """Go on from the newest good checkpoint of the run directory, if there are any: weights, masters, moments, step.

    A checkpoint that any rank refuses is told, and the one before it used. Raises ValueError when none is good.
    """
    found = own_steps(trainer.recipe)
    trainer.run_id = training.new_run(trainer.mesh.device)
    if not found:
        return None

    def load(reader: checkpoint.Reader) -> None:
        for chunk in trainer.chunks:
            parallelize.fill_pieces(chunk, trainer.mesh, training.weights_of(reader))
        training.restore(reader, trainer.optimizer.states, trainer.pieces())

    def check(reader: checkpoint.Reader) -> str:
        return training.check_weights(reader, trainer.data.buckets, trainer.pieces(), trainer.mesh)

    reader, refused = training.load_newest(found, trainer.architecture, load, check)
    if refused and trainer.mesh.rank == 0:
        log.warning(f"{'; '.join(refused)}: going on from {reader.path} instead")
        checkpoint.move_latest(reader.path)
    if trainer.mesh.rank == 0 and (changed := config.differences(reader.path / "recipe.toml", trainer.recipe)):
        log.info(f"changed since {reader.path.name} was saved: {', '.join(changed)}")
    trainer.step, trainer.resumed, trainer.run_id = reader.step, str(reader.path), reader.run
    trainer.skipped, trainer.failures = reader.manifest.get("skipped", 0), reader.manifest.get("failures", 0)
    trainer.loss_scale.restore(reader.manifest.get("loss_scale", {}))
    return reader


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
        device = process.prepare(recipe.run.device, recipe.run.threads, recipe.run.deterministic)
        with meshes.distributed(recipe.run, device) as store:
            speaks = True
            guard = faults.guarded(store, rank, world_size, recipe.run.lost_after_seconds)
            with guard, checkpoint.locked(Path(recipe.run.directory)), process.StopRequest() as stop:
                p = recipe.parallel
                mesh = meshes.build(p.tensor, p.pipeline, device, architecture.tied, p.spread_head)
                trainer = train(recipe, mesh, architecture, stop)
    except faults.Fault as error:
        faults.tell(f"train: error: {error}")
        return faults.EXIT_LOST
    except (ValueError, OSError, dist.DistNetworkError) as error:
        if speaks:
            faults.tell(f"train: error{f' on rank {rank}' if rank else ''}: {error}")
        return 2
    except KeyboardInterrupt:
        return EXIT_STOPPED
    return 0 if trainer.step >= recipe.run.steps else EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(main())
