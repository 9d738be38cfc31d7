"""Rules below the paragraph: sentences that go, and what is repaired in place.

Each takes the text and gives it back changed, with how often it struck.
"""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ziya_data.factory.page import Page, Pages
from ziya_data.factory.rules_document import Limits
from ziya_data.factory.words import words

Change = Callable[[str, Page, float], tuple[str, int]]
May = Callable[[Pages, float], NDArray[np.bool_]]


@dataclass(frozen=True)
class TextRule:
    """`change(text, page, limit)` -> (new text, times it struck); `may(pages, limit)` [N]: whether it could strike at
    all, from counts and signs alone."""

    name: str
    level: str
    what: str
    limits: Limits
    change: Change
    may: May


def rule(level: str, zh: float | None, en: float | None, may: May) -> Callable[[Change], TextRule]:
    return lambda f: TextRule(f.__name__, level, (f.__doc__ or "").strip(), {"zh": zh, "en": en}, f, may)


def counted(fact: str, least: int = 1) -> May:
    """Pages in which so many were counted."""
    return lambda pages, limit: np.asarray(getattr(pages.facts, fact) >= least)


def holding(*signs: str) -> May:
    """Pages that hold one of these signs."""
    return lambda pages, limit: pages.hold(*signs)


SENTENCE = re.compile(r"(?<=[。！？!?…])(?![。！？!?…”’」』）)\"])|(?<=[.!?][ \n])|(?<=\n)")


@rule("sentence", zh=1, en=1, may=counted("toxic"))
def sentence_toxic(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes the sentences with at least so many explicit, violent or hateful phrases (lists/toxic.*)."""
    sentences = SENTENCE.split(text)
    counts = words("toxic", page.language).count(sentences).tolist()
    struck = sum(n >= limit for n in counts)
    kept = [s if n < limit else "\n" * s.endswith("\n") for n, s in zip(counts, sentences, strict=True)]
    return ("".join(kept).strip(), struck) if struck else (text, 0)


TEASER = re.compile(
    r"(?mi)(?:\.{3}|…)[.…]* ?[\[（(【]? ?"
    r"(?:阅读全文|查看全文|查看更多|更多|详细|read more|continue reading|more) ?[\]）)】>»]*$"
)
SENTENCE_START = re.compile(r"(?:.*[。！？!?.] ?(?=[^。！？!?.]))?", re.DOTALL)


@rule("sentence", zh=1, en=1, may=holding("dots", "ellipsis"))
def sentence_cut(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes a last sentence that was cut with `... read more` (Ziya2, Fig. 8: cut sentences are unreadable)."""
    kept, done, struck = [], 0, 0
    for match in TEASER.finditer(text):
        line = text.rfind("\n", 0, match.start()) + 1
        start = SENTENCE_START.match(text, line, match.start())
        kept.append(text[done : start.end() if start else line])
        done, struck = match.end(), struck + 1
    return ("".join([*kept, text[done:]]).strip(), struck) if struck else (text, 0)


REPEATED_SENTENCE = re.compile(r"(?m)(?:^|(?<=[。！？!?])|(?<=[.!?] ))([^。！？!?.\n]{4,80}[。！？!?.]+ ?)\1+")


def repetitive(pages: Pages, limit: float) -> NDArray[np.bool_]:
    """The pattern is slow, so only a text in which one in a hundred runs of tokens repeats is looked at: a short
    sentence that a long page says three times on end stays."""
    return np.asarray((pages.facts.repeated_grams > 0.01) | (pages.facts.tokens < 50))


@rule("sentence", zh=1, en=1, may=repetitive)
def sentence_repeated(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Keeps one of a sentence said several times on end."""
    return REPEATED_SENTENCE.subn(r"\1", text)


TAG = re.compile(
    r"</?(?:a|b|br|div|em|font|form|h[1-6]|hr|i|img|input|li|ol|p|script|span|strong|style|table|tbody|td|th|tr|u|ul)\b[^<>]{0,300}>",
    re.I,
)
ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{2,6}|#x[0-9a-fA-F]{2,5});")


@rule("repair", zh=1, en=1, may=holding("mark-up"))
def html_residue(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Takes HTML tags out and turns entities (&nbsp; &#39;) into what they stand for."""
    entities = tags = 0
    if "&" in text:
        text, entities = ENTITY.subn(lambda match: html.unescape(match.group()).replace("\xa0", " "), text)
    if "<" in text:
        text, tags = TAG.subn("", text)
    return text, entities + tags


MAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,12}(?![A-Za-z0-9-])", re.ASCII
)


@rule("repair", zh=1, en=1, may=holding("at"))
def mask_mail(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Puts [email] in the place of an e-mail address."""
    return MAIL.subn("[email]", text)


IDENTITY = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![0-9A-Za-z])"
)


@rule("repair", zh=1, en=1, may=counted("longest_number", 17))
def mask_identity(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Puts [identity] in the place of a Chinese identity number (18 digits with a date of birth)."""
    return IDENTITY.subn("[identity]", text)


CARD = re.compile(r"(?<![\d.-])(?:\d{4}[ -]?){3}\d{1,7}(?![\d.-])", re.ASCII)


def luhn(number: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in reversed(number)]
    return sum(digits[::2]) % 10 == -sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2]) % 10


@rule("repair", zh=1, en=1, may=counted("longest_number", 13))
def mask_card(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Puts [card] in the place of 13 to 19 digits that pass the check of card numbers."""
    struck = 0

    def mask(match: re.Match[str]) -> str:
        nonlocal struck
        number = re.sub("[ -]", "", match.group())
        if not 13 <= len(number) <= 19 or not luhn(number):
            return match.group()
        struck += 1
        return "[card]"

    return CARD.sub(mask, text), struck


PHONE = re.compile(
    r"(?<![\w.-])(?:(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}|0\d{2,3}-\d{7,8}|[48]00-\d{3}-?\d{4}|"
    r"(?:\+?1[-. ]?)?\(?[2-9]\d{2}\)?[-. ][2-9]\d{2}[-. ]\d{4})(?![\w-]|\.\d)",
    re.ASCII,
)


@rule("repair", zh=1, en=1, may=counted("longest_number", 10))
def mask_phone(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Puts [phone] in the place of a Chinese or North American telephone number."""
    return PHONE.subn("[phone]", text)


MARK_RUN = re.compile(r"([！？!?。，,、~～；;])\1{2,}|([-_=*#—])\2{3,}|\.{7,}|…{3,}")


@rule("repair", zh=1, en=1, may=counted("mark_runs"))
def mark_runs(text: str, page: Page, limit: float) -> tuple[str, int]:
    """One mark for three and more of it on end; three of those that draw lines, six dots for an ellipsis."""

    def shorter(match: re.Match[str]) -> str:
        if match.group(1):
            return match.group(1)
        return match.group()[: 3 if match.group(2) else 6 if match.group()[0] == "." else 2]

    return MARK_RUN.subn(shorter, text)


SENTENCE_RULES: tuple[TextRule, ...] = (sentence_toxic, sentence_cut, sentence_repeated)
REPAIR_RULES: tuple[TextRule, ...] = (html_residue, mask_mail, mask_identity, mask_card, mask_phone, mark_runs)
