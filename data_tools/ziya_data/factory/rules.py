"""Part 3: the rules, coarse to fine: documents are dropped, paragraphs and sentences removed, the rest repaired."""

from collections import Counter

from ziya_data._factory import FACTS
from ziya_data.document import Document
from ziya_data.factory.rules_document import DOCUMENT_RULES, Facts, Limits, Page, Rule, too_short
from ziya_data.factory.rules_text import TEXT_RULES, TextRule
from ziya_data.factory.words import measure, words

RULES: tuple[Rule | TextRule, ...] = (*DOCUMENT_RULES, *TEXT_RULES)
"""Every rule by its name in the recipe; `ziya factory explain` shows each one's value for a document."""

assert Facts._fields == FACTS, "rules_document.Facts must name the counts of csrc/factory_measure.h in order"


def pages(texts: list[str], language: str) -> list[Page]:
    """Measures texts of one language in one batch."""
    facts = [Facts._make(row) for row in measure()(texts).tolist()]
    counts = [words(name, language).count(texts).tolist() for name in ("advert", "toxic", "navigation")]
    return [Page(text, language, fact, *found) for text, fact, *found in zip(texts, facts, *counts, strict=True)]


def apply_rules(documents: list[Document], limits: dict[str, Limits], struck: Counter[str]) -> list[str]:
    """Applies the rules to a batch in place; one reason a document, `""` when it stays.

    `limits` is rule -> language -> limit (None: off). `struck` counts what paragraph, sentence and repair rules did.
    """
    reasons = [""] * len(documents)
    for language in sorted({document.language for document in documents}):
        places = [i for i, document in enumerate(documents) if document.language == language]
        for place, page in zip(places, pages([documents[i].text for i in places], language), strict=True):
            reasons[place] = apply_to(documents[place], page, limits, struck)
    return reasons


def apply_to(document: Document, page: Page, limits: dict[str, Limits], struck: Counter[str]) -> str:
    for rule in DOCUMENT_RULES:
        limit = limits[rule.name].get(page.language)
        if limit is not None and rule.broken(page, limit):
            document.metadata["why"] = f"{rule.measure(page):.4g} {'>' if rule.above else '<'} {limit:g}"
            return f"rules.{rule.name}"
    for change in TEXT_RULES:
        limit = limits[change.name].get(page.language)
        if limit is not None:
            document.text, times = change.change(document.text, page, limit)
            if times:
                struck[f"rules.{change.name}"] += times
    shortest = limits[too_short.name].get(page.language)
    if shortest is not None and len(document.text) < len(page.text):
        left = len("".join(document.text.split()))
        if left < shortest:
            document.metadata["why"] = f"{left} < {shortest:g} after paragraphs were removed"
            document.text = page.text
            return f"rules.{too_short.name}"
    return ""
