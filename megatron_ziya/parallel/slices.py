"""How the layers are cut into pipeline slices, and what each slice costs. Pure arithmetic.

A layer has two halves, attention and MLP, and a cut may go between them: half `2 i` is the attention of layer i, half
`2 i + 1` its MLP. The embedding is in the first slice, the last norm and the head in the last one.
"""

from collections.abc import Sequence
from typing import NamedTuple

from megatron_ziya.config import Architecture, Parallel


class Times(NamedTuple):
    """Time of each slice for one micro-batch, in one unit of any size."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    """Gradient of the input alone."""
    weight: tuple[float, ...]
    """Gradient of the weights."""
    scores: tuple[float, ...] = ()
    """`S` of each stage, when the head is spread over the stages."""
    scores_gradient: tuple[float, ...] = ()
    """`T` of each stage."""

    @classmethod
    def equal(cls, slices: int, forward: float = 1.0, backward: float = 1.0, weight: float = 1.0) -> "Times":
        return cls((forward,) * slices, (backward,) * slices, (weight,) * slices)


def cut(layers: int, slices: int) -> tuple[float, ...]:
    """Layers of each slice when none are given: what does not divide goes to the middle, away from embedding and head.

    `cut(10, 4)` is 2, 3, 3, 2 layers.
    """
    base, extra = divmod(layers, slices)
    first = (slices - extra) // 2
    return tuple(float(base + (first <= i < first + extra)) for i in range(slices))


def halves(p: Parallel, layers: int) -> list[range]:
    """The half layers of each slice: as `parallel.layout` says, else `cut` into whole layers.

    For `zb-v` it is the stages that `cut` makes even, and of a stage's two slices the later one, which on stage 0 has
    the head, gets the smaller part.
    """
    if p.layout:
        layout = p.layout
    elif p.schedule == "zb-v":
        stages = cut(layers, p.pipeline)
        layout = (*(float(-(-n // 2)) for n in stages), *(float(n // 2) for n in reversed(stages)))
    else:
        layout = cut(layers, p.pipeline * p.virtual)
    sizes = [round(2 * size) for size in layout]
    assert len(sizes) == p.pipeline * p.virtual and sum(sizes) == 2 * layers, "checks.check has looked at the layout"
    return [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]


def flops(a: Architecture, sequence: int, cuts: Sequence[range], recompute: bool = False, spread: int = 0) -> Times:
    """FLOPs of each slice for one token, the causal half of attention counted; norms and embedding are not counted.

    Attention's scores have no weights, so no weight gradient, and twice the work backward (flash attention's own
    recomputation is left out, as PaLM's count does). The head works out its gradients in its forward pass
    (`model/head.py`), so all three products of it count as forward. `recompute` adds the forward pass to the backward.
    With `spread` stages that share the head each has one product of its share in `S` and two in `T`.
    """
    keys = a.kv_heads * a.head_size
    matrices = (4 * a.hidden_size**2 + 4 * a.hidden_size * keys, 6 * a.hidden_size * a.intermediate_size)
    scores = (2 * sequence * a.hidden_size, 0)
    product = 2 * a.hidden_size * a.vocabulary_size
    head = 0 if spread else 3 * product
    forward, backward, weight = [], [], []
    for number, part in enumerate(cuts):
        products = sum(matrices[half % 2] for half in part)
        softmax = sum(scores[half % 2] for half in part)
        again = products + softmax if recompute else 0
        forward.append(float(products + softmax + (head if number == len(cuts) - 1 else 0)))
        backward.append(float(products + 2 * softmax + again))
        weight.append(float(products))
    share = (product / spread,) * spread if spread else ()
    return Times(tuple(forward), tuple(backward), tuple(weight), share, tuple(2 * part for part in share))
