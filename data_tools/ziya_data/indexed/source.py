"""Source: one kind of data in a mix, and the arithmetic of how much of it the mix takes.

A source says its part in one of three ways:

    weight      a share of the samples, relative to the other weights
    tokens      a budget: about so many tokens of the whole run, never more
    replay      that many times the tokens of all sources that are not replay (Ziya2's stages 2 and 3 replay as many
                tokens of the earlier data as they bring new ones: replay = 1)

and may bound itself with `max_epochs`. Everything is computed in fractions, so every machine mixes alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

PACKINGS = ("stream", "documents")
ORDERS = ("ziya", "megatron")
WEIGHT_UNITS = 1 << 40  # weights become integers of this sum, so that every machine mixes alike


@dataclass(frozen=True)
class Source:
    """One kind of data."""

    name: str
    paths: tuple[str, ...]
    """Prefixes of datasets; their documents are numbered on through them."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources. Counts only where neither tokens nor replay is given."""
    packing: str = "stream"
    """`stream`: documents run on, cut every S tokens. `documents`: whole documents, best-fit packed and padded."""
    order: str = "ziya"
    """`ziya`: ours, an epoch after the other. `megatron`: that of megatron-core's GPT dataset, to the bit."""
    tokens: float = 0.0
    """Budget of the whole run; 0 = none."""
    replay: float = 0.0
    """Times the tokens of all sources without replay; 0 = this is no replay."""
    max_epochs: float = 0.0
    """Never more than so many passes over the source (`start` counts); 0 = as often as needed."""
    prompt_loss: bool = True
    """False: the tokens of a document's prompt are not predicted (`ziya index build --prompt-until` marks them)."""
    start: int = 0
    """Samples of this source that were drawn before this mix: it goes on behind them."""


@dataclass(frozen=True)
class Size:
    """How large a source is, in samples of the mix's length."""

    tokens: int
    tokens_a_sample: float
    """Mean, without padding."""

    @property
    def samples(self) -> Fraction:
        """Of one epoch."""
        return Fraction(self.tokens) / Fraction(self.tokens_a_sample)


def check(sources: Sequence[Source]) -> None:
    """Raises ValueError, in one line, for a source that says something impossible."""
    if not sources:
        raise ValueError("a mix of no sources; give one at least")
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:
            raise ValueError(f"source {source.name!r} is given {names.count(source.name)} times; name each differently")
        if not source.paths:
            raise ValueError(f"source {source.name!r} has no paths; give the prefix of a dataset")
        if not (math.isfinite(source.weight) and source.weight > 0):
            raise ValueError(f"source {source.name!r} has weight={source.weight}; it must be above 0, or leave it out")
        if source.packing not in PACKINGS:
            raise ValueError(f"source {source.name!r} has packing={source.packing!r}; use {' or '.join(PACKINGS)}")
        if source.order not in ORDERS:
            raise ValueError(f"source {source.name!r} has order={source.order!r}; use {' or '.join(ORDERS)}")
        if source.order == "megatron" and source.packing != "stream":
            raise ValueError(f"source {source.name!r}: Megatron's order has no packing={source.packing!r}; use stream")
        for knob in ("tokens", "replay", "max_epochs", "start"):
            value = getattr(source, knob)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"source {source.name!r} has {knob}={value}; it must be 0 or more")
        if source.tokens and source.replay:
            raise ValueError(f"source {source.name!r} has both tokens and replay; give one")
    if all(source.replay for source in sources):
        raise ValueError("every source is replay, there is no new data to compare with; give one of them a weight")


def integer_weights(weights: Sequence[float] | Sequence[Fraction]) -> list[int]:
    """Weights as integers that add up to about WEIGHT_UNITS, by exact arithmetic."""
    total = sum(Fraction(weight) for weight in weights)
    return [max(1, round(Fraction(weight) / total * WEIGHT_UNITS)) for weight in weights]


def shares(sources: Sequence[Source], sizes: Sequence[Size], samples: int) -> list[Fraction]:
    """What part of `samples` each source gets; they add up to 1.

    Raises ValueError when budgets and caps cannot fill `samples`, or budgets alone are more than them.
    """
    plain = not any(source.tokens or source.replay or source.max_epochs for source in sources)
    if plain or samples == 0:
        total = sum(Fraction(source.weight) for source in sources)
        return [Fraction(source.weight) / total for source in sources]
    per_sample = [Fraction(size.tokens_a_sample) for size in sizes]
    bounds = [_bound(source, size) for source, size in zip(sources, sizes, strict=True)]
    new = [s for s, source in enumerate(sources) if not source.replay]
    fixed = {s: Fraction(sources[s].tokens) / per_sample[s] for s in new if sources[s].tokens}
    weighted = {s: Fraction(sources[s].weight) for s in new if not sources[s].tokens}
    wanted = Fraction(samples)

    def with_replay(taken: dict[int, Fraction]) -> dict[int, Fraction]:
        """The replay that `taken` samples of new data bring with them, added."""
        tokens = sum((count * per_sample[s] for s, count in taken.items()), Fraction(0))
        return taken | {s: Fraction(r.replay) * tokens / per_sample[s] for s, r in enumerate(sources) if r.replay}

    budget = sum(with_replay(fixed).values())
    if weighted:
        if budget > samples:
            raise ValueError(
                f"the token budgets and their replay take {math.ceil(budget)} samples, the run has {samples}; "
                "lengthen the run or lower data.sources.tokens"
            )
        one = with_replay({s: weight / sum(weighted.values()) for s, weight in weighted.items()})
        rest = wanted - budget
        drawn = {s: rest * part / sum(one.values()) for s, part in one.items()}
        taken = [drawn.get(s, Fraction(0)) + with_replay(fixed).get(s, Fraction(0)) for s in range(len(sources))]
    else:
        if samples > math.ceil(budget):
            raise ValueError(
                f"the token budgets and their replay are used up after {math.ceil(budget)} samples, the run has "
                f"{samples}; shorten the run or raise data.sources.tokens"
            )
        taken = [count * wanted / budget for _, count in sorted(with_replay(fixed).items())]
    filled = _below(taken, bounds, set(weighted), sources, samples)
    return [count / wanted for count in filled]


def _bound(source: Source, size: Size) -> Fraction | None:
    """Samples that `max_epochs` still allows; None = any number."""
    if not source.max_epochs:
        return None
    return max(Fraction(0), Fraction(source.max_epochs) * size.samples - source.start)


def _below(
    taken: list[Fraction], bounds: list[Fraction | None], may_grow: set[int], sources: Sequence[Source], samples: int
) -> list[Fraction]:
    """Cuts each source at its bound; the weighted sources with room share what is left by weight, again and again."""
    while True:
        over = Fraction(0)
        for s, bound in enumerate(bounds):
            if bound is not None and taken[s] > bound:
                over += taken[s] - bound
                taken[s] = bound
        if not over:
            return taken
        growing = [s for s in may_grow if bounds[s] is None or taken[s] < bounds[s]]  # type: ignore[operator]
        if not growing:
            capped = ", ".join(source.name for source in sources if source.max_epochs)
            raise ValueError(
                f"max_epochs leaves only {math.floor(sum(taken))} of {samples} samples ({capped}); raise it, add data "
                "or shorten the run"
            )
        total = sum(Fraction(sources[s].weight) for s in growing)
        for s in growing:
            taken[s] += over * Fraction(sources[s].weight) / total
