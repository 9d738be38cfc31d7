"""Part 2: perplexity by an n-gram model of the language, or a classifier's score, ranked within language and source."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ziya_data._factory import Classifier, ClassifierTrainer, LanguageModel, Trainer
from ziya_data.document import Document
from ziya_data.factory.recipe import Score
from ziya_data.factory.storage import replacing

ORDERS = {"zh": 4, "en": 3}
"""Tokens in the longest gram: Chinese is counted in characters, English in words."""
STEP = 64
"""Bins to a factor of e in the histogram of perplexities: ranks are right to 1.6 %, memory is a few hundred numbers."""
HIGHEST_BIN = 64 * 30
EVEN = 15.0
"""A classifier's log odds of -15 to 15 go into the same bins: a page as likely bad as good stands in the middle."""
PIECE = 16_000_000
"""Bytes of text that a classifier learns at a time."""

CLASSIFIER = b"ZIYALC1\0"
"""What a classifier's file begins with."""
Scorer = LanguageModel | Classifier
"""What a file made by `ziya factory train-scorer` holds; the file says which."""


def train(language: str, text: Path, out: Path, order: int = 0, prune: int = 1) -> LanguageModel:
    """Trains a scorer on a reference text, one sentence or paragraph a line, and writes it to `out`.

    Modified Kneser-Ney, interpolated. `order` 0 takes the language's own. Grams of three and more tokens that were
    seen `prune` times or less are left out: on a million characters that halves the file and moves no rank we saw.
    """
    if language not in ORDERS:
        raise ValueError(f"language = {language!r} has no scorer; use {' or '.join(ORDERS)}")
    trainer = Trainer(order or ORDERS[language], prune)
    with text.open(encoding="utf-8", errors="replace") as file:
        while block := file.readlines(1 << 22):
            trainer.add("".join(block))
    with replacing(out) as temporary:
        trainer.save(str(temporary), language)
    return LanguageModel(str(out))


def train_classifier(
    language: str, good: Path, bad: Path, out: Path, bits: int = 20, passes: int = 20
) -> tuple[Classifier, float]:
    """Trains a classifier of reference text `good` against web text `bad`, a sentence or paragraph a line, and writes
    it to `out`: 2**bits weights, in so many passes over both.

    Gives back with it the share of pairs of held-out examples in which the good one scores better (NaN without any).
    Twenty passes: the last ten still halved the pairs that were ranked wrong of English pages of ours held out.
    """
    if language not in ORDERS:
        raise ValueError(f"language = {language!r} has no scorer; use {' or '.join(ORDERS)}")
    if passes < 1:
        raise ValueError(f"passes = {passes} must be at least 1")
    trainer = ClassifierTrainer(bits)
    count = -(-max(good.stat().st_size, bad.stat().st_size, 1) // PIECE)
    for _ in range(passes):
        for pair in zip(pieces(good, count), pieces(bad, count), strict=True):
            trainer.learn(*pair)
    with replacing(out) as temporary:
        trainer.save(str(temporary), language)
    held = [[score for piece in pieces(path, count) for score in trainer.held_out(piece)] for path in (good, bad)]
    return Classifier(str(out)), told_apart(*held)


def pieces(path: Path, count: int) -> Iterator[str]:
    """The lines of a file in so many pieces of about the same size."""
    hint = path.stat().st_size // count + 1
    with path.open("rb") as file:
        for _ in range(count):
            yield b"".join(file.readlines(hint)).decode("utf-8", "replace")


def told_apart(good: Sequence[float], bad: Sequence[float]) -> float:
    """Share of pairs of a good and a bad text in which the good one's score is the lower (the area under the ROC curve;
    Fawcett 2006); ties count half."""
    if not len(good) or not len(bad):
        return math.nan
    ordered = np.sort(np.asarray(bad))
    below, upto = (np.searchsorted(ordered, np.asarray(good), side) for side in ("left", "right"))
    return float(1 - (below + upto).mean() / 2 / len(ordered))


def load_models(settings: Score) -> dict[str, Scorer]:
    """Raises FileNotFoundError for a model that is not there, ValueError for one of another language."""
    models: dict[str, Scorer] = {}
    for language, path in settings.models.items():
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"score.models.{language} = {path} is missing; run ziya factory train-scorer --language {language}"
            )
        models[language] = opened(path, Path(path).stat().st_mtime_ns)
        if models[language].language != language:
            raise ValueError(f"{path} is a scorer of {models[language].language}, not of {language}")
    return models


@lru_cache(maxsize=4)
def opened(path: str, changed: int) -> Scorer:
    """A process opens each scorer once; `changed` makes a file that was trained anew another one."""
    with Path(path).open("rb") as file:
        return Classifier(path) if file.read(len(CLASSIFIER)) == CLASSIFIER else LanguageModel(path)


def measure(documents: list[Document], models: dict[str, Scorer]) -> None:
    """Puts the perplexity of each document that has a language model into metadata["perplexity"]; the log odds that it
    is bad into metadata["score"] where it has a classifier. Of both, less is better."""
    for language, model in models.items():
        group = [document for document in documents if document.language == language]
        texts = [document.text for document in group]
        name = "score" if isinstance(model, Classifier) else "perplexity"
        values = model.score(texts) if isinstance(model, Classifier) else model.perplexity(texts)
        for document, value in zip(group, values.tolist(), strict=True):
            document.metadata[name] = value


def bin_of(perplexity: float) -> int:
    """The histogram's bin: log perplexity in steps of 1/64."""
    return min(int(math.log(max(perplexity, 1.0)) * STEP), HIGHEST_BIN) if math.isfinite(perplexity) else HIGHEST_BIN


def place_of(document: Document) -> int | None:
    """The document's bin by what `measure` found; None for one that was not scored."""
    if "score" in document.metadata:
        height = document.metadata["score"] + EVEN
        return int(min(max(height, 0.0) * STEP, HIGHEST_BIN))
    return bin_of(document.metadata["perplexity"]) if "perplexity" in document.metadata else None


def middle_of(place: int, name: str = "perplexity") -> float:
    """What the middle of a bin stands for: perplexity, or a classifier's score."""
    height = (place + 0.5) / STEP
    return math.exp(height) if name == "perplexity" else height - EVEN


def cuts(histogram: Counter[int], settings: Score) -> tuple[int, int] | None:
    """Last bin of `high` and last bin of `medium`; None for a group too small to rank.

    A streaming quantile: the bins stand for the sorted list, so memory does not grow with the corpus and the order of
    the shards does not matter.
    """
    total = sum(histogram.values())
    if total < settings.smallest_group:
        return None
    bounds = []
    for share in (settings.high, settings.medium):
        seen, last = 0, -1
        for place in sorted(histogram):
            # A bin belongs to the side that most of it lies on.
            if seen + histogram[place] / 2 > share * total:
                break
            seen += histogram[place]
            last = place
        bounds.append(last)
    return bounds[0], bounds[1]


def judge(document: Document, bounds: tuple[int, int] | None) -> str:
    """Sets metadata["quality"] to high or medium, or returns `score.low`."""
    place = place_of(document)
    if place is None:
        return ""
    if bounds is None:
        document.metadata["quality"] = "medium"
    elif place <= bounds[1]:
        document.metadata["quality"] = "high" if place <= bounds[0] else "medium"
    else:
        name = "score" if "score" in document.metadata else "perplexity"
        document.metadata["why"] = f"{name} {document.metadata[name]:.1f} > {middle_of(bounds[1], name):.1f}"
        return "score.low"
    return ""
