"""`ziya plan`: what a recipe costs, printed before anything runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_ziya import config
from megatron_ziya.parallel import schedule
from megatron_ziya.plan.drawing import draw
from megatron_ziya.plan.estimate import estimate
from megatron_ziya.train import architecture_of

EXAMPLE = """example:
  ziya plan examples/ziya2-13b/stage1.toml --ranks 80 --tokens 650e9 --tflops 163 --draw-schedule schedule.png"""


def plan(arguments: Sequence[str]) -> int:
    """`ziya plan RECIPE [--ranks N] [--tokens T] [--tflops F] [--draw-schedule PNG] [--section.key value ...]`."""
    parser = argparse.ArgumentParser(
        prog="ziya plan",
        description="Memory per rank, pipeline bubble, FLOPs and time of a recipe.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe")
    parser.add_argument("--ranks", type=int, help="processes in all; default: tensor x pipeline")
    parser.add_argument("--tokens", type=float, help="tokens of the whole run; default: those of the recipe's steps")
    parser.add_argument("--tflops", type=float, help="TFLOP/s that a rank reaches while it works; gives the time")
    parser.add_argument("--draw-schedule", type=Path, metavar="PNG", help="draw the pipeline schedule")
    options, overrides = parser.parse_known_args(list(arguments))
    recipe = config.load(options.recipe, overrides)
    architecture = architecture_of(recipe)
    p, d = recipe.parallel, recipe.data
    ranks = options.ranks or p.tensor * p.pipeline
    config.check(recipe, architecture, ranks)
    e = estimate(recipe, architecture, ranks)
    data_ranks = ranks // (p.tensor * p.pipeline)
    micro_batches = d.global_batch_size // (data_ranks * d.micro_batch_size)
    rows = [
        ("weights", f"{e.parameters / 1e9:.3f} B in all, {e.parameters_per_rank / 1e9:.3f} B on the fullest rank"),
        ("layout", f"tensor {p.tensor} x pipeline {p.pipeline} x data {data_ranks} = {ranks} ranks"),
        ("schedule", f"{p.schedule}, {micro_batches} micro-batches, bubble {e.bubble:.1%} (equal stages assumed)"),
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
        lists = schedule.make(p.schedule, p.pipeline, micro_batches, p.virtual)
        draw(
            lists, p.virtual, options.draw_schedule, f"{p.schedule}, {p.pipeline} stages, {micro_batches} micro-batches"
        )
        print(f"{'drawing':<16} {options.draw_schedule}")
    return 0
