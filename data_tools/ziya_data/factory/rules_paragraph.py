"""Rules on paragraphs: adverts, menus, buttons, links, repeats go. A paragraph is a line.

Each takes the text and gives it back changed, with how often it struck.
"""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ziya_data.factory.page import Page, Pages
from ziya_data.factory.rules_text import TextRule, counted, holding, rule
from ziya_data.factory.words import hints, menu, words


def without(text: str, goes: Callable[[list[str]], list[bool]]) -> tuple[str, int]:
    """The text without the lines for which `goes` says so."""
    lines = text.split("\n")
    marks = goes(lines)
    if not any(marks):
        return text, 0
    return "\n".join(line for line, gone in zip(lines, marks, strict=True) if not gone).strip("\n"), sum(marks)


def without_lines(text: str, numbers: list[int]) -> tuple[str, int]:
    """The text without the lines of these numbers, from 0 on."""
    if not numbers:
        return text, 0
    lines = text.split("\n")
    for number in reversed(numbers):
        del lines[number]
    return "\n".join(lines).strip("\n"), len(numbers)


@rule("paragraph", zh=60, en=160, may=counted("advert"))
def paragraph_advert(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes a paragraph with an advertising phrase (lists/advert.*) when it is shorter than the limit and does not
    read like a report (lists/hints.*), or holds two of them."""

    def goes(lines: list[str]) -> list[bool]:
        counts = words("advert", page.language).count(lines).tolist()
        scores = hints(page.language).score(lines).tolist()
        found = zip(counts, scores, lines, strict=True)
        return [n >= 2 or (n == 1 and score > 0 and len(line) < limit) for n, score, line in found]

    return without(text, goes)


REACH = {"zh": 25, "en": 60}
"""Characters for which one hint may speak: hints thinly spread over a long paragraph say nothing."""
SHORT = {"zh": 24, "en": 30}
"""Characters up to which a paragraph that is no whole sentence needs one hint less: `scan for our app` has no room."""


def pitched(pages: Pages, limit: float) -> NDArray[np.bool_]:
    if pages.language not in REACH:
        return np.zeros(len(pages.texts), bool)
    found = hints(pages.language)
    return found.strike(pages.texts, limit, REACH[pages.language], SHORT[pages.language])


@rule("paragraph", zh=4, en=4, may=pitched)
def paragraph_pitch(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes a paragraph with so many hints that it sells something (lists/hints.*: calls to act, urgency, offers,
    contacts, a seller's voice, trades; at most two of a kind count, and what tells or reports counts against)."""
    language = page.language
    if language not in REACH:
        return text, 0
    return without_lines(text, hints(language).lines(text, limit, REACH[language], SHORT[language]))


@rule("paragraph", zh=30, en=60, may=counted("navigation"))
def paragraph_navigation(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes a paragraph with a phrase of menus and footers that is shorter than the limit."""

    def goes(lines: list[str]) -> list[bool]:
        counts = words("navigation", page.language).count(lines).tolist()
        return [n >= 1 and len(line) < limit * n for n, line in zip(counts, lines, strict=True)]

    return without(text, goes)


MENU_MARK = re.compile(r"\s*[|｜›»>]\s*|\s+/\s+")


def is_menu(line: str, limit: float) -> bool:
    items = [item for item in MENU_MARK.split(line) if item]
    short = len(items) >= 3 and sum(map(len, items)) <= limit * len(items)
    return short and not line.startswith("|") and line[-1] not in "。！？.!?…"


@rule("paragraph", zh=8, en=20, may=holding("bar", "slash"))
def paragraph_menu(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes a paragraph of three items and more between |, > or / that are at most so long on average and end no
    sentence: a menu, a trail of crumbs. A row of a Markdown table, which begins with |, stays."""
    return without(text, lambda lines: [is_menu(line, limit) for line in lines])


ITEMS = {"zh": 4, "en": 3}
"""Phrases of a bar: preprocessing has closed the gaps between Chinese ones, and three may be a title."""
LONGEST_BAR = 300
"""Bytes of UTF-8."""


def barred(pages: Pages, limit: float) -> NDArray[np.bool_]:
    return menu(pages.language).strike(pages.texts, limit, ITEMS.get(pages.language, 3), LONGEST_BAR)


@rule("paragraph", zh=0.8, en=0.8, may=barred)
def paragraph_buttons(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes a paragraph that ends no sentence and stands, to this share, in lists of what bars, buttons, pagers and
    bylines say (lists/menu.*, lists/navigation.*): three English words and more, four Chinese ones."""
    least = ITEMS.get(page.language, 3)
    return without_lines(text, menu(page.language).bars(text, limit, least, LONGEST_BAR))


LINK_LINE = re.compile(r"(?m)^\s*(?:\S{0,12}[:：]\s*)?(?:https?://|www\.)\S+\s*$")


@rule("paragraph", zh=1, en=1, may=holding("scheme", "www"))
def paragraph_link(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes a paragraph that is nothing but a web address."""
    return without(text, lambda lines: [bool(LINK_LINE.match(line)) for line in lines])


NO_WORD = re.compile(r"(?m)^[^\w\n]{4,}$")


@rule("paragraph", zh=1, en=1, may=counted("wordless_lines"))
def paragraph_marks(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes a paragraph of marks alone: separators, `| | |`, `----`."""
    return without(text, lambda lines: [bool(NO_WORD.match(line)) for line in lines])


@rule("paragraph", zh=20, en=40, may=counted("repeated_line_characters"))
def paragraph_repeated(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Keeps the first of equal paragraphs that are at least so long."""
    seen: set[str] = set()

    def goes(lines: list[str]) -> list[bool]:
        marks = []
        for line in lines:
            marks.append(len(line) >= limit and line in seen)
            seen.add(line)
        return marks

    return without(text, goes)


PARAGRAPH_RULES: tuple[TextRule, ...] = (
    paragraph_advert, paragraph_pitch, paragraph_navigation, paragraph_menu, paragraph_buttons, paragraph_link,
    paragraph_marks, paragraph_repeated,
)  # fmt: skip
