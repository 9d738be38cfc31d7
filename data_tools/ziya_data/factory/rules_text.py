"""Rules below the paragraph: sentences that go, and what is repaired in place.

Each takes the text and gives it back changed, with how often it struck.
"""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass

from ziya_data.factory.rules_document import Limits, Page
from ziya_data.factory.words import words

Change = Callable[[str, Page, float], tuple[str, int]]


@dataclass(frozen=True)
class TextRule:
    """`change(text, page, limit)` -> (new text, times it struck)."""

    name: str
    level: str
    what: str
    limits: Limits
    change: Change


def rule(level: str, zh: float | None, en: float | None) -> Callable[[Change], TextRule]:
    return lambda f: TextRule(f.__name__, level, (f.__doc__ or "").strip(), {"zh": zh, "en": en}, f)


SENTENCE = re.compile(r"(?<=[。！？!?…])(?![。！？!?…”’」』）)\"])|(?<=[.!?][ \n])|(?<=\n)")


@rule("sentence", zh=1, en=1)
def sentence_toxic(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes the sentences with at least so many explicit, violent or hateful phrases (lists/toxic.*)."""
    if not page.facts.toxic:
        return text, 0
    sentences = SENTENCE.split(text)
    counts = words("toxic", page.language).count(sentences).tolist()
    kept = [s if n < limit else "\n" * s.endswith("\n") for n, s in zip(counts, sentences, strict=True)]
    return "".join(kept).strip(), sum(n >= limit for n in counts)


TEASER = re.compile(
    r"(?mi)(?:\.{3}|…)[.…]* ?[\[（(【]? ?"
    r"(?:阅读全文|查看全文|查看更多|更多|详细|read more|continue reading|more) ?[\]）)】>»]*$"
)
SENTENCE_START = re.compile(r"(?:.*[。！？!?.] ?(?=[^。！？!?.]))?", re.DOTALL)


@rule("sentence", zh=1, en=1)
def sentence_cut(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Removes a last sentence that was cut with `... read more` (Ziya2, Fig. 8: cut sentences are unreadable)."""
    if "..." not in text and "…" not in text:
        return text, 0
    kept, done, struck = [], 0, 0
    for match in TEASER.finditer(text):
        line = text.rfind("\n", 0, match.start()) + 1
        start = SENTENCE_START.match(text, line, match.start())
        kept.append(text[done : start.end() if start else line])
        done, struck = match.end(), struck + 1
    return ("".join([*kept, text[done:]]).strip(), struck) if struck else (text, 0)


REPEATED_SENTENCE = re.compile(r"(?m)(?:^|(?<=[。！？!?])|(?<=[.!?] ))([^。！？!?.\n]{4,80}[。！？!?.]+ ?)\1+")


@rule("sentence", zh=1, en=1)
def sentence_repeated(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Keeps one of a sentence said several times on end."""
    # Only a text whose pairs repeat can hold one; the pattern itself is slow.
    return (
        REPEATED_SENTENCE.subn(r"\1", text) if page.facts.repeated_grams > 0.01 or page.facts.tokens < 50 else (text, 0)
    )


TAG = re.compile(
    r"</?(?:a|b|br|div|em|font|form|h[1-6]|hr|i|img|input|li|ol|p|script|span|strong|style|table|tbody|td|th|tr|u|ul)\b[^<>]{0,300}>",
    re.I,
)
ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{2,6}|#x[0-9a-fA-F]{2,5});")


@rule("repair", zh=1, en=1)
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


@rule("repair", zh=1, en=1)
def mask_mail(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Puts [email] in the place of an e-mail address."""
    return MAIL.subn("[email]", text) if "@" in text else (text, 0)


def may_hold(text: str, page: Page, digits: int) -> bool:
    """Whether a number of so many digits can be there: the page was counted before other rules changed it."""
    return page.facts.longest_number >= digits or page.stirred


IDENTITY = re.compile(
    r"(?<![0-9A-Za-z])[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![0-9A-Za-z])"
)


@rule("repair", zh=1, en=1)
def mask_identity(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Puts [identity] in the place of a Chinese identity number (18 digits with a date of birth)."""
    return IDENTITY.subn("[identity]", text) if may_hold(text, page, 17) else (text, 0)


CARD = re.compile(r"(?<![\d.-])(?:\d{4}[ -]?){3}\d{1,7}(?![\d.-])")


def luhn(number: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in reversed(number)]
    return sum(digits[::2]) % 10 == -sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2]) % 10


@rule("repair", zh=1, en=1)
def mask_card(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Puts [card] in the place of 13 to 19 digits that pass the check of card numbers."""
    if not may_hold(text, page, 13):
        return text, 0
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


@rule("repair", zh=1, en=1)
def mask_phone(text: str, page: Page, limit: float) -> tuple[str, int]:
    """Puts [phone] in the place of a Chinese or North American telephone number."""
    return PHONE.subn("[phone]", text) if may_hold(text, page, 10) else (text, 0)


MARK_RUN = re.compile(r"([！？!?。，,、~～；;])\1{2,}|([-_=*#—])\2{3,}|\.{7,}|…{3,}")


@rule("repair", zh=1, en=1)
def mark_runs(text: str, page: Page, limit: float) -> tuple[str, int]:
    """One mark for three and more of it on end; three of those that draw lines, six dots for an ellipsis."""

    def shorter(match: re.Match[str]) -> str:
        if match.group(1):
            return match.group(1)
        return match.group()[: 3 if match.group(2) else 6 if match.group()[0] == "." else 2]

    return MARK_RUN.subn(shorter, text) if page.facts.mark_runs or page.stirred else (text, 0)


SENTENCE_RULES: tuple[TextRule, ...] = (sentence_toxic, sentence_cut, sentence_repeated)
REPAIR_RULES: tuple[TextRule, ...] = (html_residue, mask_mail, mask_identity, mask_card, mask_phone, mark_runs)
