"""Memory, bubble, FLOPs and time of a recipe, by arithmetic alone. Memory is `memory.py`'s."""

from dataclasses import dataclass

from megatron_ziya.config import Architecture, Recipe
from megatron_ziya.parallel.slices import halves
from megatron_ziya.parallel.verify import planned
from megatron_ziya.plan.memory import Memory, memory


@dataclass(frozen=True)
class Estimate:
    parameters: int
    parameters_per_rank: int
    """On a rank of the fullest stage, padding included."""
    memory: Memory
    """Of a rank of the fullest stage."""
    bubble: float
    first_bubble: float
    """Of the first step, when the batch ramps up; else the same."""
    tokens_per_step: int
    tokens: int
    """Of all steps of the recipe, ramp-up included."""
    flops_per_token: float
    """Of the model: forward and backward."""
    recomputed_per_token: float
    """What the backward pass computes a second time."""

    def seconds(self, tokens: float, ranks: int, flops_per_second: float) -> float:
        """Time for `tokens` at `flops_per_second` per rank while it works; bubble and recomputation added."""
        flops = tokens * (self.flops_per_token + self.recomputed_per_token)
        return flops / (ranks * flops_per_second * (1 - self.bubble))


def estimate(recipe: Recipe, a: Architecture, ranks: int, device: str = "cuda") -> Estimate:
    """The estimate of one recipe on `ranks` processes; `device` is cpu or cuda, which keep different things."""
    p, d = recipe.parallel, recipe.data
    share = ranks // (p.tensor * p.pipeline) * d.micro_batch_size
    bubbles = [
        planned(p, a, d.sequence_length, rows // share)[2].bubble
        for rows in dict.fromkeys((d.rows(0), d.global_batch_size))
    ]
    fullest = memory(recipe, a, ranks, device)
    return Estimate(
        parameters=a.parameters(),
        parameters_per_rank=fullest.parameters,
        memory=fullest,
        bubble=bubbles[-1],
        first_bubble=bubbles[0],
        tokens_per_step=d.global_batch_size * d.sequence_length,
        tokens=d.rows_before(recipe.run.steps) * d.sequence_length,
        flops_per_token=a.flops_per_token(d.sequence_length),
        recomputed_per_token=recomputed_flops(recipe, a),
    )


def recomputed_flops(recipe: Recipe, a: Architecture) -> float:
    """FLOPs of the second forward pass for one token, over all stages."""
    p, sequence = recipe.parallel, recipe.data.sequence_length
    if p.recompute == "none":
        return 0.0
    scores = 2.0 * sequence * a.hidden_size  # the causal half
    matrices = 4 * a.hidden_size * (a.hidden_size + a.kv_heads * a.head_size) + 6 * a.hidden_size * a.intermediate_size
    total = 0.0
    for cut in halves(p, a.layers):
        layers = sorted({half // 2 for half in cut})[: p.recompute_layers or None]
        share = sum(half // 2 in layers for half in cut) / 2
        total += share * (scores if p.recompute == "selective" else scores + matrices)
    return total
