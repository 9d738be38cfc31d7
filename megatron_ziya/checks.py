"""Hold a recipe against the ranges of its knobs, the model and the number of processes, before anything runs."""

import math
import sys

from megatron_ziya.config import Architecture, Data, Parallel, Recipe
from megatron_ziya.strict import divides, require

ABOVE_0, BELOW_1, ANY = math.nextafter(0.0, 1.0), math.nextafter(1.0, 0.0), math.inf
FINITE = sys.float_info.max

RANGES: dict[str, tuple[float, float, str]] = {
    "run.steps": (1, ANY, "1 or more"),
    "run.seed": (0, ANY, "0 or more"),
    "run.threads": (1, ANY, "1 or more"),
    "run.timeout_seconds": (1, ANY, "1 or more"),
    "run.stop_after": (1, ANY, "1 or more"),
    "run.check_replicas_every": (0, ANY, "0 (never) or more"),
    "run.lost_after_seconds": (5, ANY, "5 or more"),
    "model.max_positions": (1, ANY, "1 or more"),
    "model.rms_norm_eps": (ABOVE_0, BELOW_1, "above 0 and below 1"),
    "model.rope_theta": (ABOVE_0, ANY, "above 0"),
    "model.rope_scaling": (ABOVE_0, ANY, "above 0"),
    "parallel.tensor": (1, ANY, "1 or more"),
    "parallel.pipeline": (1, ANY, "1 or more"),
    "parallel.virtual": (1, ANY, "1 or more"),
    "parallel.bucket_mib": (ABOVE_0, ANY, "above 0"),
    "parallel.recompute_layers": (0, ANY, "0 (all) or more"),
    "data.sequence_length": (1, ANY, "1 or more"),
    "data.global_batch_size": (1, ANY, "1 or more"),
    "data.micro_batch_size": (1, ANY, "1 or more"),
    "data.pad_id": (0, ANY, "0 or more"),
    "optimizer.learning_rate": (0, FINITE, "0 or more, and a finite number"),
    "optimizer.minimum": (0, FINITE, "0 or more, and a finite number"),
    "optimizer.warmup": (0, 1, "a share of the steps, 0 to 1"),
    "optimizer.decay": (0, 1, "a share of the steps, 0 to 1"),
    "optimizer.beta1": (0, BELOW_1, "0 or more and below 1"),
    "optimizer.beta2": (0, BELOW_1, "0 or more and below 1"),
    "optimizer.eps": (ABOVE_0, 1, "above 0"),
    "optimizer.weight_decay": (0, 1e3, "0 or more"),
    "optimizer.clip": (0, ANY, "0 (no clipping) or more"),
    "precision.loss_scale": (1, 2.0**100, "1 or more"),
    "precision.loss_scale_window": (1, ANY, "1 or more"),
    "checkpoint.every": (0, ANY, "0 (only at the end) or more"),
    "checkpoint.keep": (0, ANY, "0 (all) or more"),
    "checkpoint.keep_every": (0, ANY, "0 (none) or more"),
    "log.every": (1, ANY, "1 or more"),
    "log.peak_tflops": (0, ANY, "0 (found out) or more"),
}
"""Smallest and largest value of a knob, and the rule in words."""


def _check_ranges(recipe: Recipe) -> None:
    for name, (low, high, words) in RANGES.items():
        section, _, key = name.partition(".")
        value = getattr(getattr(recipe, section), key)
        require(low <= value <= high, f"{name}={value} must be {words}")  # false for nan too
    o = recipe.optimizer
    require(
        o.minimum <= o.learning_rate or o.schedule == "constant",
        f"optimizer.minimum={o.minimum:g} is above optimizer.learning_rate={o.learning_rate:g}; lower it",
    )
    for number, source in enumerate(recipe.data.sources):
        require(bool(source.name), f"data.sources[{number}] has no name; give one, it seeds the order of its samples")


def _check_layout(layout: tuple[float, ...], slices: int, layers: int) -> None:
    told = f"parallel.layout={list(layout)}"
    if layout:
        require(len(layout) == slices, f"{told}: give one number for each of the {slices} slices (pipeline x virtual)")
        whole = all(size >= 0.5 and (size * 2).is_integer() for size in layout)
        require(whole, f"{told} must be half layers; use 0.5, 1, 1.5, ...")
        require(sum(layout) == layers, f"{told} adds up to {sum(layout):g}; the model has {layers} layers")


def check(recipe: Recipe, architecture: Architecture, world_size: int) -> None:
    """Hold the recipe against the model and the number of processes. Raises ValueError with what to do."""
    _check_ranges(recipe)
    p, d = recipe.parallel, recipe.data
    divides("parallel.tensor", p.tensor, architecture.kv_heads, "heads of keys and values")
    divides("parallel.tensor", p.tensor, architecture.intermediate_size, "the intermediate size")
    stages = p.pipeline * p.virtual
    require(
        stages <= architecture.layers,
        f"parallel.pipeline x virtual = {stages} is more than the {architecture.layers} layers; use fewer",
    )
    fits = {"interleaved": p.virtual > 1, "zb-v": p.virtual == 2}.get(p.schedule, p.virtual == 1)
    require(
        fits,
        f"parallel.schedule={p.schedule} with virtual={p.virtual}: interleaved needs 2 or more, zb-v 2, the others 1",
    )
    _check_layout(p.layout, stages, architecture.layers)
    layout = p.tensor * p.pipeline
    require(
        world_size % layout == 0,
        f"{world_size} processes do not fit tensor x pipeline = {layout}; start a multiple of {layout}",
    )
    replicas = world_size // layout
    share = replicas * d.micro_batch_size
    for name in ("global_batch_size", "ramp_up_start", "ramp_up_increment"):
        require(
            getattr(d, name) % share == 0,
            f"data.{name}={getattr(d, name)} is not a multiple of data-parallel ranks x micro-batch = "
            f"{replicas} x {d.micro_batch_size}; use a multiple of {share}",
        )
    micro_batches = (d.ramp_up_start or d.global_batch_size) // share
    require(
        p.schedule != "interleaved" or micro_batches % p.pipeline == 0,
        f"{micro_batches} micro-batches: the interleaved schedule needs a multiple of parallel.pipeline={p.pipeline}",
    )
    require(
        d.sequence_length <= architecture.max_positions,
        f"data.sequence_length={d.sequence_length} is longer than the model's {architecture.max_positions} positions",
    )
    tokens = d.micro_batch_size * d.sequence_length
    require(
        not p.sequence or tokens % p.tensor == 0,
        f"sequence parallel: {tokens} tokens a micro-batch do not split over parallel.tensor={p.tensor}",
    )
    vocabulary = architecture.vocabulary_size
    require(d.pad_id < vocabulary, f"data.pad_id={d.pad_id} is no id of the model's vocabulary of {vocabulary}")
    require(len(d.sources) > 0, "data.sources is empty; name at least one indexed dataset")
    _check_ramp_up(d)
    _check_training(recipe, architecture)


def _check_ramp_up(d: Data) -> None:
    numbers = (d.ramp_up_start, d.ramp_up_increment, d.ramp_up_steps)
    require(min(numbers) >= 0, f"data.ramp_up_*={numbers} must not be negative")
    require(
        bool(d.ramp_up_start) == bool(d.ramp_up_steps),
        f"data.ramp_up_start={d.ramp_up_start} and ramp_up_steps={d.ramp_up_steps} go together; set both or neither",
    )
    growth, increment = d.global_batch_size - d.ramp_up_start, d.ramp_up_increment or d.ramp_up_start
    require(
        not d.ramp_up_start or (growth >= 0 and growth % increment == 0),
        f"from data.ramp_up_start={d.ramp_up_start} in steps of {increment} the batch never becomes "
        f"global_batch_size={d.global_batch_size}; use an increment that divides {growth}",
    )


def _check_training(recipe: Recipe, architecture: Architecture) -> None:
    p, o, r = recipe.parallel, recipe.optimizer, recipe.run
    require(
        not p.recompute_layers or p.recompute != "none",
        f"parallel.recompute_layers={p.recompute_layers} does nothing with parallel.recompute=none; use full",
    )
    require(
        not (p.invariant and architecture.tied and p.pipeline > 1),
        "parallel.invariant with a tied embedding: the sum of its two gradients depends on the stages; use pipeline=1",
    )
    require(
        not p.invariant or r.threads == 1,
        f"parallel.invariant with run.threads={r.threads}: threads cut sums by the size of a share; use threads=1",
    )
    _check_spread_head(p, architecture)
    require(0.0 <= o.warmup + o.decay <= 1.0, f"optimizer.warmup + decay = {o.warmup + o.decay} must be 1 or less")


def _check_spread_head(p: Parallel, architecture: Architecture) -> None:
    told = "parallel.spread_head"
    require(not p.spread_head or p.pipeline > 1, f"{told} with pipeline=1: one stage has nothing to share; turn it off")
    require(
        not (p.spread_head and architecture.tied),
        f"{told} with a tied embedding: the head's weight lies with the embedding; turn it off or untie them",
    )
    require(
        not (p.spread_head and p.invariant),
        f"{told} with parallel.invariant: sums over the shares depend on the stages; turn one of them off",
    )
