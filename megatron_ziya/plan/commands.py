"""`ziya plan`: what a recipe costs, printed before anything runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_ziya import checks, config
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
    architecture = architecture_of(recipe)
    p, d = recipe.parallel, recipe.data
    ranks = options.ranks or p.tensor * p.pipeline
    checks.check(recipe, architecture, ranks)
    e = estimate(recipe, architecture, ranks)
    data_ranks = ranks // (p.tensor * p.pipeline)
    micro_batches = d.global_batch_size // (data_ranks * d.micro_batch_size)
    rows = [
        ("weights", f"{e.parameters / 1e9:.3f} B in all, {e.parameters_per_rank / 1e9:.3f} B on the fullest rank"),
        ("layout", f"tensor {p.tensor} x pipeline {p.pipeline} x data {data_ranks} = {ranks} ranks"),
        ("schedule", f"{p.schedule}, {micro_batches} micro-batches, bubble {e.bubble:.1%} (FLOPs alone)"),
        ("memory per rank", f"weights {e.weights_gib:.2f} + gradients {e.gradients_gib:.2f} + optimizer "
         f"{e.optimizer_gib:.2f} + activations {e.activations_gib:.2f} = {e.total_gib:.2f} GiB"),
        ("step", f"{e.tokens_per_step:,} tokens, {e.tokens_per_step * e.flops_per_token / 1e12:,.3f} TFLOP"),
    ]  # fmt: skip
    tokens = options.tokens or e.tokens_per_step * recipe.run.steps
    if options.tflops:
        days = e.seconds(tokens, ranks, options.tflops * 1e12) / 86400
        rows.append(("time", f"{tokens:,.0f} tokens at {options.tflops:g} TFLOP/s a rank: {days:.2f} days"))
    for name, text in rows:
        print(f"{name:<16} {text}")
    if options.draw_schedule:
        schedule, _, _ = planned(p, architecture, d.sequence_length, micro_batches)
        draw(schedule, options.draw_schedule, f"{p.schedule}, {p.pipeline} stages, {micro_batches} micro-batches")
        print(f"{'drawing':<16} {options.draw_schedule}")
    return 0


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
