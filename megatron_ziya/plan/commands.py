"""`ziya plan`: what a recipe costs, printed before anything runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_ziya import checks, config
from megatron_ziya.config import Architecture, Recipe
from megatron_ziya.parallel.verify import planned
from megatron_ziya.plan.drawing import draw
from megatron_ziya.plan.estimate import estimate
from megatron_ziya.plan.trace import compare
from megatron_ziya.train import architecture_of

EXAMPLE = """example:
  ziya plan examples/ziya2-13b/base.toml --ranks 80 --tokens 650e9 --tflops 163 --draw-schedule schedule.png
  ziya plan --trace runs/run"""


def plan(arguments: Sequence[str]) -> int:
    """`ziya plan RECIPE [--ranks N] [--tokens T] [--tflops F] [--draw-schedule PNG] [--section.key value ...]`, or
    `ziya plan --trace RUN_DIR`."""
    parser = argparse.ArgumentParser(
        prog="ziya plan",
        description="Memory per rank, pipeline bubble, FLOPs and time of a recipe.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--ranks", type=int, help="processes in all; default: tensor x pipeline")
    parser.add_argument("--tokens", type=float, help="tokens of the whole run; default: those of the recipe's steps")
    parser.add_argument("--tflops", type=float, help="TFLOP/s that a rank reaches while it works; gives the time")
    parser.add_argument("--sizes", metavar="RECIPE", help="take the model's sizes from here, not from model.load")
    parser.add_argument("--draw-schedule", type=Path, metavar="PNG", help="draw the pipeline schedule")
    parser.add_argument(
        "--trace", type=Path, metavar="RUN_DIR", help="lay the prediction over a run's trace (trained with log.trace)"
    )
    options, overrides = parser.parse_known_args(list(arguments))
    if options.trace is not None:
        return show_trace(options.trace)
    if options.recipe is None:
        raise ValueError("which recipe? write ziya plan RECIPE, or ziya plan --trace RUN_DIR")
    recipe = config.load(options.recipe, overrides)
    architecture = sizes(recipe, options.sizes)
    p = recipe.parallel
    ranks = options.ranks or p.tensor * p.pipeline
    checks.check(recipe, architecture, ranks)
    for name, text in rows(recipe, architecture, ranks, options.tokens, options.tflops):
        print(f"{name:<16} {text}")
    if options.draw_schedule:
        d = recipe.data
        micro_batches = d.global_batch_size // (ranks // (p.tensor * p.pipeline) * d.micro_batch_size)
        schedule, _, _ = planned(p, architecture, d.sequence_length, micro_batches)
        draw(schedule, options.draw_schedule, f"{p.schedule}, {p.pipeline} stages, {micro_batches} micro-batches")
        print(f"{'drawing':<16} {options.draw_schedule}")
    return 0


def sizes(recipe: Recipe, other: str | None) -> Architecture:
    """The model's shape: of the recipe `other` if given, else as the run will find it."""
    if other is not None:
        return architecture_of(config.load(other))
    try:
        return architecture_of(recipe)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; to plan before it is there, give a recipe with --sizes") from None


def rows(
    recipe: Recipe, a: Architecture, ranks: int, tokens: float | None, tflops: float | None
) -> list[tuple[str, str]]:
    """What `ziya plan` prints: a name and a line each."""
    device = "cpu" if recipe.run.device == "cpu" else "cuda"
    e = estimate(recipe, a, ranks, device)
    p, d, m = recipe.parallel, recipe.data, e.memory
    data_ranks = ranks // (p.tensor * p.pipeline)
    micro_batches = d.global_batch_size // (data_ranks * d.micro_batch_size)
    size, unit = (2**30, "GiB") if m.total >= 2**30 else (2**20, "MiB")
    parts = ("weights", "gradients", "optimizer", "activations", "working")
    listed = ", ".join(f"{part} {getattr(m, part) / size:.2f}" for part in parts)
    fullest = f", stage {m.stage} of {p.pipeline}, the fullest" if p.pipeline > 1 else ""
    found = [
        ("model", f"{count(e.parameters)} weights, {count(e.parameters_per_rank)} a rank"),
        ("layout", f"tensor {p.tensor} x pipeline {p.pipeline} x data {data_ranks} = {ranks} ranks"),
        ("batch", f"{d.global_batch_size} sequences of {d.sequence_length:,} tokens = {e.tokens_per_step:,} tokens, "
         f"{micro_batches} micro-batches of {d.micro_batch_size} a rank"),
        ("memory a rank", f"{m.total / size:.2f} {unit} on a {'CPU' if device == 'cpu' else 'GPU'}{fullest}"),
        ("", listed),
    ]  # fmt: skip
    if p.pipeline > 1:
        ramp = f", {e.first_bubble:.1%} at the first step" if d.ramp_up_start else ""
        found.append(("bubble", f"{e.bubble:.1%} of a step with {p.schedule}{ramp} (FLOPs alone, no communication)"))
    again = f", recomputation {e.recomputed_per_token / e.flops_per_token:.0%} on top" if e.recomputed_per_token else ""
    work = e.tokens_per_step * e.flops_per_token / 1e12
    found.append(("step", f"{work:,.{0 if work >= 100 else 3}f} TFLOP{again}"))
    whole = tokens or e.tokens
    ramp = f" (the first {d.ramp_up_steps} with fewer sequences, from {d.ramp_up_start})" if d.ramp_up_start else ""
    steps = "" if tokens else f" in {recipe.run.steps:,} steps{ramp}"
    found.append(("run", f"{count(whole)} tokens{steps}"))
    if tflops:
        hours = e.seconds(whole, ranks, tflops * 1e12) / 3600
        time = f"{hours / 24:.2f} days" if hours >= 48 else f"{hours:.2f} hours"
        found.append(("time", f"{time} at {tflops:g} TFLOP/s a rank while it works"))
    return found


def count(number: float) -> str:
    """1.50 M, 13.02 B."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def show_trace(directory: Path) -> int:
    """Print a traced step beside its prediction and draw both into `RUN_DIR/trace.png`."""
    recipe = config.load(directory / "recipe.toml")
    found = compare(directory, recipe, architecture_of(recipe))
    (measured, predicted), (difference, where) = found.seconds, found.largest()
    told, wanted = found.live, found.verdict.live
    milliseconds = [" ".join(f"{1000 * t:.2f}" for t in times) for times in found.times]
    rows = [
        ("step", f"measured {measured:.4f} s, predicted {predicted:.4f} s: {predicted / measured - 1:+.1%}"),
        ("starts", f"largest difference {difference:.4f} s ({difference / measured:.1%} of the step), {where}"),
        ("live", f"measured {told}, predicted {wanted}: {'equal' if told == wanted else 'NOT EQUAL'}"),
        ("bubble", f"{found.verdict.bubble:.1%} predicted with these times"),
        ("times in ms", f"of each slice: forward {milliseconds[0]}; backward {milliseconds[1]}; "
         f"weight {milliseconds[2]}; message {1000 * found.delay:.2f}"),
    ]  # fmt: skip
    for name, text in rows:
        print(f"{name:<16} {text}")
    picture = directory / "trace.png"
    found.draw(picture)
    print(f"{'drawing':<16} {picture}")
    return 0
