"""Part 5: the gate of Ziya2's Table 1 on a random sample of what was kept. It filters nothing; it passes or fails."""

import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

from ziya_data.document import Document
from ziya_data.factory import score
from ziya_data.factory.language import identify
from ziya_data.factory.page import Page
from ziya_data.factory.recipe import Evaluate
from ziya_data.factory.rules import pages
from ziya_data.factory.rules_text import CARD, IDENTITY, MAIL, PHONE, TAG, luhn

LONGEST_SENTENCE = {"zh": 150, "en": 120}
"""Mean characters or words a sentence; prose has 20 to 40 of either."""
LENGTHS = (8, 300_000)
"""Characters or words a document may have."""
SHORTEST_KEY_WORD = 6
"""Letters of an English word that may name a topic."""


@dataclass(frozen=True)
class Metric:
    level: int
    what: str


METRICS = {
    "privacy": Metric(1, "e-mail address, telephone, identity or card number left"),
    "toxic": Metric(1, "explicit, violent or hateful phrase (lists/toxic.*)"),
    "advert": Metric(1, "more than 4 advertising phrases per 1,000 characters or words (lists/advert.*)"),
    "webpage": Metric(1, "HTML tag left"),
    "perplexity": Metric(2, "perplexity far above the median of its language and source: incoherent"),
    "informativeness": Metric(2, "perplexity far below the median of its language and source: says nothing new"),
    "readability": Metric(2, "sentences too long to read, or none at all"),
    "language": Metric(3, "reads as another language than its label"),
    "length": Metric(3, "shorter or longer than a document should be"),
    "topic": Metric(3, "documents that share their source's commonest key word, beyond 1 in 10"),
}
TOPIC_SHARE = 0.1
"""One key word may well head so much of a sample; beyond it, one topic crowds out the others."""


def chosen(name: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on nothing but these: the same documents are drawn whatever the workers."""
    digest = blake2b(f"{seed}:{purpose}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def evaluate(sample: list[Document], settings: Evaluate, models: dict[str, score.Scorer]) -> dict[str, Any]:
    """The gate's verdict on a sample: {passed, documents, failed, metrics: {name: {level, rate, limit, ...}}}."""
    flagged = flags(sample, settings, models)
    limits = {1: settings.level_1, 2: settings.level_2, 3: settings.level_3}
    metrics = {}
    for name, metric in METRICS.items():
        rate = len(flagged[name]) / max(len(sample), 1)
        limit = limits[metric.level]
        metrics[name] = {
            "level": metric.level,
            "what": metric.what,
            "rate": rate,
            "limit": limit,
            "passed": rate <= limit,
            "ids": flagged[name][:5],
        }
    failed = [name for name, metric in metrics.items() if not metric["passed"]]
    return {"passed": not failed and bool(sample), "documents": len(sample), "failed": failed, "metrics": metrics}


def flags(sample: list[Document], settings: Evaluate, models: dict[str, score.Scorer]) -> dict[str, list[str]]:
    """Metric -> ids of the documents that count against it. Puts each one's score into metadata; only a perplexity
    tells an incoherent text, or one that says nothing new."""
    flagged: dict[str, list[str]] = {name: [] for name in METRICS}
    groups: dict[tuple[str, str], list[Document]] = {}
    for document in sample:
        groups.setdefault((document.language, document.source), []).append(document)
    for (language, _), group in sorted(groups.items()):
        score.measure(group, {name: model for name, model in models.items() if name == language})
        flag(group, language, settings, flagged)
    return flagged


def flag(group: list[Document], language: str, settings: Evaluate, flagged: dict[str, list[str]]) -> None:
    """Add the ids of `group`, documents of one language, to the metrics of Table 1 that find fault with them."""
    measured = pages([document.text for document in group], language)
    found = identify([document.text for document in group])
    values = [item.metadata["perplexity"] for item in group if "perplexity" in item.metadata]
    median = statistics.median(values) if values else 0.0
    topics = topics_of([document.text for document in group], language)
    common, times = max(Counter(filter(None, topics)).items(), key=lambda item: item[1], default=("", 0))
    surplus = times - int(TOPIC_SHARE * len(group))
    for document, page, (label, _), topic in zip(group, measured, found, topics, strict=True):
        value = document.metadata.get("perplexity", median)
        tokens = page.facts.tokens
        against = {
            **{name: bad(page) for name, bad in OF_THE_PAGE.items()},
            "perplexity": value > settings.perplexity * median,
            "informativeness": value * settings.perplexity < median,
            "readability": tokens > LONGEST_SENTENCE.get(language, 150) * max(page.facts.sentence_ends, 1),
            "language": label != language,
            "length": not LENGTHS[0] <= tokens <= LENGTHS[1],
            "topic": surplus > 0 and topic == common,
        }
        surplus -= against["topic"]
        for name, counts in against.items():
            if counts:
                flagged[name].append(document.id)


def private(page: Page) -> bool:
    text = page.text
    if "@" in text and MAIL.search(text):
        return True
    if page.facts.longest_number < 10:
        return False
    cards = ("".join(filter(str.isdigit, match.group())) for match in CARD.finditer(text))
    return bool(PHONE.search(text) or IDENTITY.search(text)) or any(luhn(card) for card in cards if len(card) >= 13)


OF_THE_PAGE: dict[str, Callable[[Page], bool]] = {
    "privacy": private,
    "toxic": lambda page: page.facts.toxic > 0,
    "advert": lambda page: page.facts.advert * 1000 > 4 * page.facts.tokens,
    "webpage": lambda page: "<" in page.text and TAG.search(page.text) is not None,
}
"""The metrics that a page fails or passes by itself, whatever the others are like."""


def topics_of(texts: list[str], language: str) -> list[str]:
    """Of each text its key word: what comes three times and more in its beginning and is rare in the others
    (term frequency times inverse document frequency). `""` where nothing does."""
    counts = [Counter(candidates(text, language)) for text in texts]
    spread = Counter(word for count in counts for word in count)
    topics = []
    for count in counts:
        weights = {word: n * math.log(len(texts) / spread[word]) for word, n in count.items() if n >= 3}
        best = max(weights.items(), key=lambda item: (item[1], item[0]), default=("", 0.0))
        topics.append(best[0] if best[1] > 0 else "")
    return topics


def candidates(text: str, language: str) -> list[str]:
    """Pairs of Chinese characters, or English words of six letters and more."""
    if language == "zh":
        beginning = text[:1000]
        return [pair for pair in map("".join, pairwise(beginning)) if pair.isalpha()]
    return [word for word in text[:2000].lower().split() if len(word) >= SHORTEST_KEY_WORD and word.isalpha()]
