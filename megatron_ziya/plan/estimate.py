"""Memory, bubble, FLOPs and time of a recipe, by arithmetic alone.

Memory follows ZeRO-1 (arXiv 1910.02054) and, for activations, arXiv 2205.05198, section 4, with flash attention:
per layer and token the inputs of the matrices and norms are kept, whatever tensor parallel does not split is split by
sequence parallel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_ziya.config import Architecture, Recipe
from megatron_ziya.parallel.slices import halves
from megatron_ziya.parallel.verify import most_held, planned

BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}


@dataclass(frozen=True)
class Estimate:
    """GiB are per rank of the fullest stage."""

    parameters: int
    parameters_per_rank: int
    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    bubble: float
    tokens_per_step: int
    flops_per_token: float

    @property
    def total_gib(self) -> float:
        return self.weights_gib + self.gradients_gib + self.optimizer_gib + self.activations_gib

    def seconds(self, tokens: float, ranks: int, flops_per_second: float) -> float:
        """Time for `tokens` at `flops_per_second` per rank while it works, the bubble added."""
        return tokens * self.flops_per_token / (ranks * flops_per_second * (1 - self.bubble))


def estimate(recipe: Recipe, a: Architecture, ranks: int) -> Estimate:
    """The estimate of one recipe on `ranks` processes."""
    p, d = recipe.parallel, recipe.data
    data_ranks = ranks // (p.tensor * p.pipeline)
    micro_batches = d.global_batch_size // (data_ranks * d.micro_batch_size)
    schedule, _, verdict = planned(p, a, d.sequence_length, micro_batches)
    cuts = halves(p, a.layers)
    held = max(sum(_weights(a, cuts, number) for number in numbers) for numbers in schedule.placement) // p.tensor
    width = BYTES[recipe.precision.weights]
    wide = max(4, width)
    optimizer = held * (2 * wide + (wide if wide != width else 0)) / data_ranks
    live = max(most_held(schedule, [len(part) / 2 for part in cuts]))  # micro-batches x layers
    return Estimate(
        parameters=a.parameters(),
        parameters_per_rank=held,
        weights_gib=held * width / 2**30,
        gradients_gib=held * wide / 2**30,
        optimizer_gib=optimizer / 2**30,
        activations_gib=live * activation_bytes(recipe, a) / 2**30,
        bubble=verdict.bubble,
        tokens_per_step=d.global_batch_size * d.sequence_length,
        flops_per_token=a.flops_per_token(d.sequence_length),
    )


def _weights(a: Architecture, cuts: Sequence[range], number: int) -> int:
    """Weights of a slice; a tied head on another stage than the embedding holds them a second time."""
    h, table = a.hidden_size, a.vocabulary_size * a.hidden_size
    halves_of = (2 * h * h + 2 * h * a.kv_heads * a.head_size + h, 3 * h * a.intermediate_size + h)
    ends = (table if number == 0 else 0) + (h if number == len(cuts) - 1 else 0)
    head = table if number == len(cuts) - 1 and not (a.tied and number == 0) else 0
    return sum(halves_of[half % 2] for half in cuts[number]) + ends + head


def activation_bytes(recipe: Recipe, a: Architecture) -> float:
    """What one layer keeps for the backward pass of one micro-batch on one rank."""
    p = recipe.parallel
    width, tokens = BYTES[recipe.precision.weights], recipe.data.micro_batch_size * recipe.data.sequence_length
    between = tokens * a.hidden_size * width / (p.tensor if p.sequence else 1)
    if p.recompute == "full":
        return between
    keys = a.kv_heads * a.head_size
    # kept whole or as a share of the tokens: input of each norm, and of the matrices after them; split over the
    # tensor axis: query, key, value, attention's output, gate, up, and their product
    inside = tokens * (2 * a.hidden_size + 2 * keys + 3 * a.intermediate_size) * width / p.tensor
    return 4 * between + inside
