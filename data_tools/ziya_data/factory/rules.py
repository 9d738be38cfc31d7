"""Part 3: the rules, coarse to fine: documents are dropped, paragraphs and sentences removed, the rest repaired."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from ziya_data._factory import FACTS
from ziya_data.document import Document
from ziya_data.factory.page import Facts, Page, Pages
from ziya_data.factory.rules_document import DOCUMENT_RULES, Limits, Rule, too_short
from ziya_data.factory.rules_paragraph import PARAGRAPH_RULES
from ziya_data.factory.rules_text import REPAIR_RULES, SENTENCE_RULES, TextRule
from ziya_data.factory.words import measure

TEXT_RULES: tuple[TextRule, ...] = (*PARAGRAPH_RULES, *SENTENCE_RULES, *REPAIR_RULES)
RULES: tuple[Rule | TextRule, ...] = (*DOCUMENT_RULES, *TEXT_RULES)
"""Every rule by its name in the recipe; `ziya factory explain` shows each one's value for a document."""

assert Facts._fields == FACTS, "page.Facts must name the counts of csrc/factory_measure.h in order"


def pages(texts: list[str], language: str) -> Pages:
    """Measures texts of one language in one batch."""
    return Pages(texts, language, measure(language)(texts))


def apply_rules(documents: list[Document], limits: dict[str, Limits], struck: Counter[str]) -> list[str]:
    """Applies the rules to a batch in place; one reason a document, `""` when it stays.

    `limits` is rule -> language -> limit (None: off). `struck` counts what paragraph, sentence and repair rules did.
    """
    reasons = [""] * len(documents)
    for language in sorted({document.language for document in documents}):
        group = [i for i, document in enumerate(documents) if document.language == language]
        found = pages([documents[i].text for i in group], language)
        for rule in DOCUMENT_RULES:
            limit = limits[rule.name].get(language)
            if limit is None:
                continue
            values = rule.measure(found)
            for at in np.flatnonzero(values > limit if rule.above else values < limit).tolist():
                if not reasons[group[at]]:  # the first rule that is broken is the reason
                    reasons[group[at]] = f"rules.{rule.name}"
                    why = f"{values[at]:.4g} {'>' if rule.above else '<'} {limit:g}"
                    documents[group[at]].metadata["why"] = why
        may = possible(found, limits)
        for at in np.flatnonzero(may.any(axis=0)).tolist():
            place = group[at]
            if not reasons[place]:
                reasons[place] = change(documents[place], found[at], limits, struck, may[:, at].tolist())
    return reasons


def possible(found: Pages, limits: dict[str, Limits]) -> NDArray[np.bool_]:
    """[TEXT_RULES, N] which rules may change which pages; most pages no rule needs to look at."""
    rows = np.zeros((len(TEXT_RULES), len(found.texts)), bool)
    for row, rule in zip(rows, TEXT_RULES, strict=True):
        limit = limits[rule.name].get(found.language)
        if limit is not None:
            row[:] = rule.may(found, limit)
    return rows


def change(document: Document, page: Page, limits: dict[str, Limits], struck: Counter[str], may: list[bool]) -> str:
    """The paragraph, sentence and repair rules that `may` strike; a reason when they leave too little."""
    for rule, here in zip(TEXT_RULES, may, strict=True):
        limit = limits[rule.name].get(page.language)
        if limit is not None and (here or page.stirred):
            document.text, times = rule.change(document.text, page, limit)
            if times:
                page.stirred = page.stirred or rule.level != "paragraph"
                struck[f"rules.{rule.name}"] += times
    shortest = limits[too_short.name].get(page.language)
    if shortest is not None and len(document.text) < len(page.text):
        left = len("".join(document.text.split()))
        if left < shortest:
            document.metadata["why"] = f"{left} < {shortest:g} after paragraphs were removed"
            document.text = page.text
            return f"rules.{too_short.name}"
    return ""
