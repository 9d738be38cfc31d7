"""Rules on a whole document: each measures one thing; the recipe's limit decides.

Loosely after Gopher and C4 for English, with limits of their own for Chinese, where a character says as much as two
or three letters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Facts(NamedTuple):
    """Counts of one text, in the order of `ziya_data._factory.FACTS`; all are characters unless the name says else."""

    characters: float
    han: float
    kana: float
    hangul: float
    latin: float
    other_letters: float
    digits: float
    spaces: float
    punctuation: float
    symbols: float
    uppercase: float
    brackets: float
    braces: float
    replacement: float
    url_characters: float
    sentence_ends: float
    longest_run: float
    lines: float
    short_lines: float
    bullet_lines: float
    ellipsis_lines: float
    ended_lines: float
    code_lines: float
    longest_line: float
    repeated_line_characters: float
    words: float
    word_characters: float
    tokens: float
    distinct_tokens: float
    stop_words: float
    repeated_grams: float
    top_pair: float


@dataclass(slots=True)
class Page:
    """A document under the rules; `advert`, `toxic`, `navigation` are how many listed phrases it holds."""

    text: str
    language: str
    facts: Facts
    advert: int = 0
    toxic: int = 0
    navigation: int = 0


Limits = dict[str, float | None]


@dataclass(frozen=True)
class Rule:
    """`measure(page)` beyond the limit of the page's language (`above` or `below` it) drops the document."""

    name: str
    level: str
    what: str
    limits: Limits
    measure: Callable[[Page], float]
    above: bool = True

    def broken(self, page: Page, limit: float) -> bool:
        value = self.measure(page)
        return value > limit if self.above else value < limit


Measured = Callable[[Page], float]


def above(zh: float | None, en: float | None) -> Callable[[Measured], Rule]:
    return lambda f: Rule(f.__name__, "document", (f.__doc__ or "").strip(), {"zh": zh, "en": en}, f)


def below(zh: float | None, en: float | None) -> Callable[[Measured], Rule]:
    return lambda f: Rule(f.__name__, "document", (f.__doc__ or "").strip(), {"zh": zh, "en": en}, f, above=False)


def visible(page: Page) -> float:
    """Visible characters, but at least 40: a bracket or a date in a short remark is no table."""
    return max(page.facts.characters - page.facts.spaces, 40.0)


@below(zh=15, en=60)
def too_short(page: Page) -> float:
    """Characters that are not white space: a title or a stub teaches nothing."""
    return page.facts.characters - page.facts.spaces


@above(zh=1_000_000, en=2_000_000)
def too_long(page: Page) -> float:
    """Characters: beyond a long book it is a dump or a concatenation."""
    return page.facts.characters


@above(zh=0.10, en=0.10)
def symbol_ratio(page: Page) -> float:
    """Symbols (# $ % * < > | ~ ...) per visible character: tables, code, mark-up."""
    return page.facts.symbols / visible(page)


@above(zh=0.30, en=0.25)
def digit_ratio(page: Page) -> float:
    """Digits per visible character: tables, price lists, results."""
    return page.facts.digits / visible(page)


@above(zh=0.40, en=0.25)
def punctuation_ratio(page: Page) -> float:
    """Punctuation per visible character: dotted leaders, index pages, rows of exclamation marks."""
    return page.facts.punctuation / visible(page)


@above(zh=0.20, en=0.20)
def url_ratio(page: Page) -> float:
    """Characters within web addresses per visible character: link lists."""
    return page.facts.url_characters / visible(page)


@above(zh=0.10, en=0.08)
def bracket_ratio(page: Page) -> float:
    """Round and square brackets per visible character: reference lists, forms."""
    return page.facts.brackets / visible(page)


@above(zh=0.02, en=0.015)
def brace_ratio(page: Page) -> float:
    """Curly braces per visible character: style sheets and scripts left in the page."""
    return page.facts.braces / visible(page)


@above(zh=0.3, en=0.3)
def ellipsis_lines(page: Page) -> float:
    """Share of lines that end in an ellipsis: teasers cut short. From four lines on."""
    return page.facts.ellipsis_lines / page.facts.lines if page.facts.lines >= 4 else 0.0


@above(zh=0.9, en=0.9)
def bullet_lines(page: Page) -> float:
    """Share of lines that begin with a bullet: lists without prose. From four lines on."""
    return page.facts.bullet_lines / page.facts.lines if page.facts.lines >= 4 else 0.0


@above(zh=0.6, en=0.7)
def short_lines(page: Page) -> float:
    """Share of lines under ten columns, five Chinese characters: menus, tables. From ten lines on."""
    return page.facts.short_lines / page.facts.lines if page.facts.lines >= 10 else 0.0


@above(zh=0.3, en=0.3)
def code_lines(page: Page) -> float:
    """Share of lines that end in ; { } or (): code among prose. From five lines on."""
    return page.facts.code_lines / page.facts.lines if page.facts.lines >= 5 else 0.0


@above(zh=0.3, en=0.3)
def repeated_lines(page: Page) -> float:
    """Share of visible characters in lines that came before in the text."""
    return page.facts.repeated_line_characters / visible(page)


@above(zh=0.45, en=0.35)
def repeated_grams(page: Page) -> float:
    """Share of the runs of eight characters or words that came before in the text. Court rulings have up to 0.4."""
    return page.facts.repeated_grams if page.facts.tokens >= 50 else 0.0


@above(zh=0.25, en=0.25)
def top_pair(page: Page) -> float:
    """Share of the text that its commonest pair of characters or words makes up."""
    return page.facts.top_pair if page.facts.tokens >= 30 else 0.0


@below(zh=0.25, en=0.15)
def variety(page: Page) -> float:
    """Different characters or words per square root of their number, over ten: 1.0 and more in prose."""
    tokens = page.facts.tokens
    return page.facts.distinct_tokens / (10 * tokens**0.5) if tokens >= 50 else 1.0


@above(zh=30, en=40)
def longest_run(page: Page) -> float:
    """The same letter or digit so many times on end: cries, padding. Rows of marks are repaired, not dropped."""
    return page.facts.longest_run


@below(zh=0.01, en=0.08)
def stop_words(page: Page) -> float:
    """Share of characters or words that no prose does without (lists/stop_words.txt). From 60 tokens on."""
    return page.facts.stop_words / page.facts.tokens if page.facts.tokens >= 60 else 1.0


@below(zh=0.40, en=None)
def han_ratio(page: Page) -> float:
    """Chinese characters per visible character of a Chinese text: code and foreign text mixed in."""
    return page.facts.han / max(page.facts.characters - page.facts.spaces, 1.0)


@below(zh=None, en=0.65)
def letter_ratio(page: Page) -> float:
    """Latin letters per visible character of an English text."""
    return page.facts.latin / max(page.facts.characters - page.facts.spaces, 1.0)


@below(zh=None, en=3.0)
def short_words(page: Page) -> float:
    """Mean letters a word: below three they are fragments."""
    return page.facts.word_characters / page.facts.words if page.facts.words >= 20 else 5.0


@above(zh=None, en=9.0)
def long_words(page: Page) -> float:
    """Mean letters a word: above nine they are identifiers or run together."""
    return page.facts.word_characters / page.facts.words if page.facts.words >= 20 else 5.0


@above(zh=None, en=0.35)
def uppercase_ratio(page: Page) -> float:
    """Capitals per letter: headings, shouting."""
    return page.facts.uppercase / max(page.facts.latin, 1.0)


@above(zh=600, en=1500)
def unpunctuated(page: Page) -> float:
    """Visible characters a sentence end: key-word heaps and menus have hardly any."""
    return visible(page) / max(page.facts.sentence_ends, 1.0)


@above(zh=0.1, en=0.1)
def other_scripts(page: Page) -> float:
    """Share of letters in scripts that are neither Chinese nor Latin: mixed or broken text."""
    facts = page.facts
    other = facts.kana + facts.hangul + facts.other_letters
    return other / max(other + facts.han + facts.latin, 1.0)


GARBLE = ("锟斤拷", "烫烫烫", "屯屯屯", "ï¿½", "â€™", "â€œ", "Ã¢â")


@above(zh=0.001, en=0.001)
def garble(page: Page) -> float:
    """Replacement characters and the well-known shapes of wrongly decoded text, per visible character."""
    found = page.facts.replacement + sum(page.text.count(shape) for shape in GARBLE)
    return found / visible(page)


@above(zh=0, en=0)
def placeholder(page: Page) -> float:
    """`Lorem ipsum` and its like: a page that nobody filled."""
    return float(page.text[:2000].lower().count("lorem ipsum"))


@above(zh=8, en=8)
def advert_words(page: Page) -> float:
    """Advertising phrases (lists/advert.*) per 1,000 characters or words, from two phrases on."""
    return 1000 * page.advert / max(page.facts.tokens, 1.0) if page.advert >= 2 else 0.0


@above(zh=4, en=4)
def toxic_words(page: Page) -> float:
    """Explicit, violent and hateful phrases (lists/toxic.*) per 1,000 characters or words, from two on."""
    return 1000 * page.toxic / max(page.facts.tokens, 1.0) if page.toxic >= 2 else 0.0


@above(zh=20, en=25)
def navigation_words(page: Page) -> float:
    """Phrases of menus and footers (lists/navigation.*) per 1,000 characters or words, from three on."""
    return 1000 * page.navigation / max(page.facts.tokens, 1.0) if page.navigation >= 3 else 0.0


DOCUMENT_RULES: tuple[Rule, ...] = (
    too_short, too_long, symbol_ratio, digit_ratio, punctuation_ratio, url_ratio, bracket_ratio, brace_ratio,
    ellipsis_lines, bullet_lines, short_lines, code_lines, repeated_lines, repeated_grams, top_pair, variety,
    longest_run, stop_words, han_ratio, letter_ratio, short_words, long_words, uppercase_ratio, unpunctuated,
    other_scripts, garble, placeholder, advert_words, toxic_words, navigation_words,
)  # fmt: skip
