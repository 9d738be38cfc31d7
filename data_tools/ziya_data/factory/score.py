"""Part 2: perplexity by an n-gram model of the language, ranked within language and source."""

import math
from collections import Counter
from functools import lru_cache
from pathlib import Path

from ziya_data._factory import LanguageModel, Trainer
from ziya_data.document import Document
from ziya_data.factory.recipe import Score
from ziya_data.factory.storage import replacing

ORDERS = {"zh": 4, "en": 3}
"""Tokens in the longest gram: Chinese is counted in characters, English in words."""
STEP = 64
"""Bins to a factor of e in the histogram of perplexities: ranks are right to 1.6 %, memory is a few hundred numbers."""
HIGHEST_BIN = 64 * 30


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


def load_models(settings: Score) -> dict[str, LanguageModel]:
    """Raises FileNotFoundError for a model that is not there, ValueError for one of another language."""
    models = {}
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
def opened(path: str, changed: int) -> LanguageModel:
    """A process opens each scorer once; `changed` makes a file that was trained anew another one."""
    return LanguageModel(path)


def measure(documents: list[Document], models: dict[str, LanguageModel]) -> None:
    """Puts the perplexity of each document that has a model into metadata["perplexity"]."""
    for language, model in models.items():
        group = [document for document in documents if document.language == language]
        for document, value in zip(group, model.perplexity([item.text for item in group]), strict=True):
            document.metadata["perplexity"] = float(value)


def bin_of(perplexity: float) -> int:
    """The histogram's bin: log perplexity in steps of 1/64."""
    return min(int(math.log(max(perplexity, 1.0)) * STEP), HIGHEST_BIN) if math.isfinite(perplexity) else HIGHEST_BIN


def middle_of(place: int) -> float:
    return math.exp((place + 0.5) / STEP)


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
    if "perplexity" not in document.metadata:
        return ""
    place = bin_of(document.metadata["perplexity"])
    if bounds is None:
        document.metadata["quality"] = "medium"
    elif place <= bounds[1]:
        document.metadata["quality"] = "high" if place <= bounds[0] else "medium"
    else:
        document.metadata["why"] = f"perplexity {document.metadata['perplexity']:.1f} > {middle_of(bounds[1]):.1f}"
        return "score.low"
    return ""
