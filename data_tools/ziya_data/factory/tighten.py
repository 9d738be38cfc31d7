"""After a failed gate: which thresholds to move, in what order, and what each move would cost.

The gate's sample is drawn again, and every threshold of the recipe is tried on it: the move that drops the most
documents that a failed metric counts, for the fewest others, comes first, and the next is sought among what is left.
Costs are the sample's, scaled to what was kept.
"""

import heapq
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from ziya_data.document import Document
from ziya_data.factory import recipe as recipes
from ziya_data.factory import score, storage
from ziya_data.factory.evaluate import METRICS, OF_THE_PAGE, chosen, flags
from ziya_data.factory.look import finished, kept
from ziya_data.factory.recipe import LANGUAGES, Recipe
from ziya_data.factory.rules import DOCUMENT_RULES, TEXT_RULES, pages
from ziya_data.factory.rules_document import too_short

REPAIRS = {
    "privacy": ("mask_mail", "mask_identity", "mask_card", "mask_phone"),
    "toxic": ("sentence_toxic",),
    "advert": ("paragraph_advert", "paragraph_pitch"),
    "webpage": ("html_residue",),
}
"""Rules that take out what a metric counts; where one is off, switching it on comes before any threshold."""
OWN = {
    "advert": ("advert_words",),
    "toxic": ("toxic_words",),
    "perplexity": ("score.medium",),
    "readability": ("unpunctuated", "ellipsis_lines"),
    "language": ("han_ratio", "letter_ratio", "other_scripts"),
    "length": ("too_short", "too_long"),
}
"""Thresholds on what a metric is about: they go before one that tells its documents by chance, for up to twice the
cost."""
LIFT = 3.0
"""Among what such a threshold drops, documents that the metric counts must be so many times as frequent as anywhere;"""
WORTH = 0.2
"""among what any other drops, they must be this share: it has nothing to do with them, and may only fit this sample."""


Threshold = tuple[str, float | None, float, NDArray[np.float64]]
"""Knob, its limit, 1 or -1, each document's value times that: larger is worse; NaN where it does not apply."""


@dataclass(frozen=True)
class Move:
    metric: str
    knob: str
    """As in the recipe: rules.NAME.LANGUAGE or score.medium."""
    old: float | None
    new: float
    caught: int
    """Documents of the sample that the metric counts and that go, or are repaired;"""
    targets: int
    """of so many that it still counted."""
    documents: int
    """Documents of the sample that go with it, those included."""
    size: int


@dataclass
class Proposal:
    sample: int
    sample_bytes: int
    documents: int
    """Kept documents of the whole run, for scaling; size likewise, in bytes."""
    size: int
    failed: dict[str, tuple[int, float]]
    """Metric -> documents that count against it, and how many may."""
    moves: list[Move] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)
    """Metric -> ids for which no threshold was found."""


class Sample:
    """The gate's sample, measured: which thresholds would drop which of its documents."""

    def __init__(self, out: Path, recipe: Recipe, report: dict[str, Any]) -> None:
        wanted = max(recipe.evaluate.share * report["totals"][-1]["documents"], recipe.evaluate.at_least)
        prose = (document for document in kept(out) if document.kind == "text")
        self.documents: list[Document] = heapq.nsmallest(
            int(wanted), prose, key=lambda item: (chosen(item.id, recipe.run.seed, "evaluate"), item.id)
        )
        self.recipe = recipe
        self.models = score.load_models(recipe.score)
        self.flagged = flags(self.documents, recipe.evaluate, self.models)
        self.place = {document.id: i for i, document in enumerate(self.documents)}
        self.sizes = np.array([len(document.text.encode()) for document in self.documents], np.int64)
        self.gone = np.zeros(len(self.documents), bool)
        self.where = {
            language: np.array([i for i, item in enumerate(self.documents) if item.language == language], np.int64)
            for language in LANGUAGES
        }
        self.pages = {
            language: pages([self.documents[i].text for i in where], language) for language, where in self.where.items()
        }
        self.ranks = self.ranks_of(report)

    def ranks_of(self, report: dict[str, Any]) -> NDArray[np.float64]:
        """[documents] share of its source and language that reads better; NaN where documents are not ranked."""
        ranks = np.full(len(self.documents), np.nan)
        ranked = [row for row in report["score"] if row["high"] is not None]
        rows = {(row["source"], row["language"]): row["histogram"] for row in ranked}
        for i, document in enumerate(self.documents):
            histogram = rows.get((document.source, document.language))
            place_here = score.place_of(document)
            if histogram and place_here is not None:
                mine = place_here * 10 / score.STEP
                below = sum(n * min(max(mine - int(place), 0.0), 1.0) for place, n in histogram.items())
                ranks[i] = min(below / sum(histogram.values()), self.recipe.score.medium)
        return ranks

    def thresholds(self) -> Iterator[Threshold]:
        """Of every threshold that could be moved; a rule that has no default for a language is none."""
        yield "score.medium", self.recipe.score.medium, 1.0, self.ranks
        names = {source.name for source in self.recipe.source if "rules" not in source.skip}
        ruled = np.array([document.source in names for document in self.documents])
        for rule in DOCUMENT_RULES:
            for language in LANGUAGES:
                if rule.limits.get(language) is None:
                    continue
                sign = 1.0 if rule.above else -1.0
                values = np.full(len(self.documents), np.nan)
                values[self.where[language]] = sign * rule.measure(self.pages[language])
                values[~ruled] = np.nan
                yield f"rules.{rule.name}.{language}", self.recipe.rules.limits[rule.name][language], sign, values


def propose(out: Path) -> Proposal:
    """Raises FileNotFoundError when `out` holds no finished run, ValueError when it kept no prose."""
    report = storage.read_json(finished(out) / "report.json")
    recipe = recipes.load(out / "recipe.toml")
    sample = Sample(out, recipe, report)
    if not sample.documents:
        raise ValueError(f"{out} kept no prose: there is nothing to tighten")
    total = report["totals"][-1]
    levels = {1: recipe.evaluate.level_1, 2: recipe.evaluate.level_2, 3: recipe.evaluate.level_3}
    count = len(sample.documents)
    failed = {
        name: (len(sample.flagged[name]), levels[metric.level] * count)
        for name, metric in METRICS.items()
        if len(sample.flagged[name]) > levels[metric.level] * count
    }
    found = Proposal(count, int(sample.sizes.sum()), total["documents"], total["bytes"], failed)
    thresholds = list(sample.thresholds())
    moved: dict[str, float] = {}
    for metric in failed:
        targets = np.zeros(count, bool)
        targets[[sample.place[name] for name in sample.flagged[metric]]] = True
        found.moves += repairs(sample, metric, targets)
        while (targets & ~sample.gone).sum() > levels[METRICS[metric].level] * (~sample.gone).sum():
            move = best_move(
                sample, metric, targets, [(k, moved.get(k, old), sign, values) for k, old, sign, values in thresholds]
            )
            if move is None:
                found.left[metric] = [sample.documents[i].id for i in np.flatnonzero(targets & ~sample.gone)]
                break
            moved[move.knob] = move.new
            same = [i for i, other in enumerate(found.moves) if (other.metric, other.knob) == (metric, move.knob)]
            if same:
                found.moves[same[0]] = joined(found.moves[same[0]], move)
            else:
                found.moves.append(move)
    return found


def repairs(sample: Sample, metric: str, targets: NDArray[np.bool_]) -> list[Move]:
    """Switches on what would take out what the metric counts; takes the repaired documents off `targets`."""
    moves = []
    for rule in TEXT_RULES:
        for language in LANGUAGES:
            limit = rule.limits.get(language)
            off = sample.recipe.rules.limits[rule.name].get(language) is None
            if rule.name not in REPAIRS.get(metric, ()) or limit is None or not off:
                continue
            before, caught, size = int(targets.sum()), 0, 0
            shortest = sample.recipe.rules.limits[too_short.name].get(language) or 0
            gone = sample.gone.copy()
            for i, page in zip(sample.where[language].tolist(), sample.pages[language], strict=True):
                if gone[i]:
                    continue
                text, times = rule.change(page.text, page, limit)
                gone[i] = len("".join(text.split())) < shortest  # the rules drop what too little is left of
                size += len(page.text.encode()) - (0 if gone[i] else len(text.encode()))
                if times and targets[i] and not OF_THE_PAGE[metric](pages([text], language)[0]):
                    targets[i], caught = False, caught + 1
            if caught:
                knob, documents = f"rules.{rule.name}.{language}", int(gone.sum() - sample.gone.sum())
                moves.append(Move(metric, knob, None, limit, caught, before, documents, size))
                sample.gone = gone
    return moves


def best_move(
    sample: Sample,
    metric: str,
    targets: NDArray[np.bool_],
    thresholds: list[Threshold],
) -> Move | None:
    """The threshold that catches most targets for the fewest other documents; its documents are marked as gone."""
    there = ~sample.gone
    wanted = targets & there
    chance = wanted.sum() / there.sum()
    best: tuple[float, str, float | None, float, NDArray[np.bool_]] | None = None
    for knob, old, sign, values in thresholds:
        for value in np.unique(values[wanted & ~np.isnan(values)]):
            limit = rounded(value, sign)
            looser = old is not None and sign * limit >= sign * old
            if looser or (knob == "score.medium" and limit < sample.recipe.score.high):
                continue
            drops = there & (values > sign * limit)
            caught, others = (drops & wanted).sum(), (drops & ~wanted).sum()
            own = any(name in knob for name in OWN.get(metric, ()))
            gain = float(caught / (1 + others)) * (1 + own)
            least = min(LIFT * chance, 1.0) if own else max(LIFT * chance, WORTH)
            if caught and caught >= least * (caught + others) and (best is None or gain > best[0]):
                best = (gain, knob, old, limit, drops)
    if best is None:
        return None
    _, knob, old, limit, drops = best
    sample.gone |= drops
    caught, size = int((drops & wanted).sum()), int(sample.sizes[drops].sum())
    return Move(metric, knob, old, limit, caught, int(wanted.sum()), int(drops.sum()), size)


def joined(first: Move, then: Move) -> Move:
    """One move for two of the same threshold, one after the other."""
    return replace(
        first,
        new=then.new,
        caught=first.caught + then.caught,
        documents=first.documents + then.documents,
        size=first.size + then.size,
    )


def rounded(value: float, sign: float) -> float:
    """A limit of three digits just short of `sign * value`, so that a document with this value goes."""
    if value == 0:
        return -sign * 0.001
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    below = (math.ceil(value / step) - 1) * step
    return float(f"{sign * below:.6g}")


def lines(found: Proposal) -> list[str]:
    """For the terminal."""
    if not found.failed:
        return [f"the gate is passed: no metric counts more of the {found.sample:,} documents than it may"]
    said = [
        f"{name}: {count} of {found.sample:,} documents, at most {int(allowed)} may be"
        for name, (count, allowed) in found.failed.items()
    ]
    for move in found.moves:
        old = "off" if move.old is None else f"{move.old:g}"
        part, weight = move.documents / found.sample, move.size / max(found.sample_bytes, 1)
        said.append(
            f"{move.metric:16} {move.knob:28} {old:>8} -> {move.new:<8g} catches {move.caught} of {move.targets}; "
            f"costs about {part * found.documents:,.0f} documents ({100 * part:.2f} %), "
            f"{weight * found.size / 1e6:,.2f} MB ({100 * weight:.2f} %)"
        )
    for metric, names in found.left.items():
        said.append(
            f"{metric}: no threshold tells {len(names)} documents from the others; look at {', '.join(names[:3])}"
        )
    return said


def write(out: Path, found: Proposal, path: Path) -> None:
    """The recipe with the moves made, for a folder of its own. Raises ValueError when `path` is there already."""
    if path.exists():
        raise ValueError(f"{path} is there already; give another name")
    table = tomllib.loads((out / "recipe.toml").read_text(encoding="utf-8"))
    for move in found.moves:
        section, *names = move.knob.split(".")
        place = table[section]
        for name in names[:-1]:
            place = place[name]
        place[names[-1]] = move.new
    table["run"]["output"] = str(table["run"]["output"]).rstrip("/") + "-tight"  # the run it is made of stays
    head = "".join(f"# {line}\n" for line in lines(found))
    with storage.replacing(path) as temporary:
        temporary.write_text(
            f"# {out}'s recipe, tightened by `ziya factory tighten`:\n{head}{tomli_w.dumps(table)}", encoding="utf-8"
        )
