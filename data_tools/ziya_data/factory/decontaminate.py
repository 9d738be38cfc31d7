"""Documents that quote a benchmark: a model trained on them could not be measured with it."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ziya_data._factory import GramSet
from ziya_data.document import Document
from ziya_data.factory.read import records
from ziya_data.factory.recipe import Decontaminate

BEFORE = re.compile(r"^\W+")
NOT_CONTENT = ("id", "url", "source", "kind", "language", "language_name")
"""Keys of a record that hold no text of the benchmark."""


def decontaminate(documents: list[Document], settings: Decontaminate) -> list[str]:
    """One reason a document, `""` when it stays."""
    if not settings.files or not documents:
        return [""] * len(documents)
    grams, _ = grams_of(settings, stamps(settings))
    reasons = []
    for document, (hits, owner, begin, end) in zip(
        documents, grams.find([document.text for document in documents]).tolist(), strict=True
    ):
        reasons.append("decontaminate.benchmark" if hits >= settings.hits else "")
        if reasons[-1]:
            quoted = " ".join(BEFORE.sub("", document.text.encode()[begin:end].decode()).split())
            document.metadata["why"] = f"{hits} quotations, the first of {settings.files[owner]}: {quoted[:200]}"
    return reasons


def stamps(settings: Decontaminate) -> tuple[int, ...]:
    """Raises FileNotFoundError for a benchmark file that is not there."""
    for name in settings.files:
        if not Path(name).is_file():
            raise FileNotFoundError(f"decontaminate.files: {name} is missing; check the recipe")
    return tuple(Path(name).stat().st_mtime_ns for name in settings.files)


@lru_cache(maxsize=1)
def grams_of(settings: Decontaminate, changed: tuple[int, ...]) -> tuple[GramSet, Counter[str]]:
    """All runs of tokens of the benchmark files, and of each file how many texts were too short; a process reads them
    once. Raises ValueError for a file that holds no text or is damaged: nothing would be looked for, in silence."""
    grams = GramSet(settings.grams, settings.shortest)
    short: Counter[str] = Counter()
    for owner, name in enumerate(settings.files):
        taken = 0
        for place, record, broken in records(Path(name)):
            if broken:
                raise ValueError(f"decontaminate.files: {broken}; give a whole file ({place})")
            texts = [text for key, value in record.items() if key not in NOT_CONTENT for text in strings(value)]
            long = sum(grams.add(text, owner) for text in texts)
            taken, short[name] = taken + long, short[name] + len(texts) - long
        if not taken:
            raise ValueError(f"decontaminate.files: {name} holds no text of at least {settings.shortest} tokens")
    return grams, short


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)
