"""Rules on a whole document: each measures one thing; the recipe's limit decides.

Loosely after Gopher and C4 for English, with limits of their own for Chinese, where a character says as much as two
or three letters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ziya_data.factory.page import Pages

Limits = dict[str, float | None]
Values = NDArray[np.float64]
Measured = Callable[[Pages], Values]


@dataclass(frozen=True)
class Rule:
    """`measure(pages)` [N] beyond the limit of the pages' language (`above` or `below` it) drops the document."""

    name: str
    level: str
    what: str
    limits: Limits
    measure: Measured
    above: bool = True

    def broken(self, pages: Pages, limit: float) -> NDArray[np.bool_]:
        values = self.measure(pages)
        return values > limit if self.above else values < limit


def above(zh: float | None, en: float | None) -> Callable[[Measured], Rule]:
    return lambda f: Rule(f.__name__, "document", (f.__doc__ or "").strip(), {"zh": zh, "en": en}, f)


def below(zh: float | None, en: float | None) -> Callable[[Measured], Rule]:
    return lambda f: Rule(f.__name__, "document", (f.__doc__ or "").strip(), {"zh": zh, "en": en}, f, above=False)


def share(part: Values, whole: Values, least: float = 1.0, otherwise: float = 0.0) -> Values:
    """part / whole where there is at least so much of the whole."""
    return np.where(whole >= least, part / np.maximum(whole, 1.0), otherwise)


def visible(pages: Pages) -> Values:
    """Visible characters, but at least 40: a bracket or a date in a short remark is no table."""
    return np.maximum(pages.facts.characters - pages.facts.spaces, 40.0)


@below(zh=15, en=35)
def too_short(pages: Pages) -> Values:
    """Characters that are not white space: a title or a stub teaches nothing; a sentence that defines a word may."""
    return pages.facts.characters - pages.facts.spaces


@above(zh=1_000_000, en=2_000_000)
def too_long(pages: Pages) -> Values:
    """Characters: beyond a long book it is a dump or a concatenation."""
    return pages.facts.characters


@above(zh=0.10, en=0.10)
def symbol_ratio(pages: Pages) -> Values:
    """Symbols (# $ % * < > | ~ ...) per visible character: tables, code, mark-up."""
    return pages.facts.symbols / visible(pages)


@above(zh=0.35, en=0.25)
def digit_ratio(pages: Pages) -> Values:
    """Digits per visible character: tables, price lists, results. Chinese news of harvests and dates reaches 0.31."""
    return pages.facts.digits / visible(pages)


@above(zh=0.40, en=0.25)
def punctuation_ratio(pages: Pages) -> Values:
    """Punctuation per visible character: dotted leaders, index pages, rows of exclamation marks."""
    return pages.facts.punctuation / visible(pages)


@above(zh=0.20, en=0.20)
def url_ratio(pages: Pages) -> Values:
    """Characters within web addresses per visible character: link lists."""
    return pages.facts.url_characters / visible(pages)


@above(zh=0.15, en=0.08)
def bracket_ratio(pages: Pages) -> Values:
    """Round and square brackets per visible character: reference lists, forms."""
    return pages.facts.brackets / visible(pages)


@above(zh=0.02, en=0.015)
def brace_ratio(pages: Pages) -> Values:
    """Curly braces per visible character: style sheets and scripts left in the pages."""
    return pages.facts.braces / visible(pages)


@above(zh=0.4, en=0.3)
def ellipsis_lines(pages: Pages) -> Values:
    """Share of lines that end in an ellipsis: teasers cut short. From four lines on. Chinese prose is fond of them."""
    return share(pages.facts.ellipsis_lines, pages.facts.lines, 4)


@above(zh=0.9, en=0.9)
def bullet_lines(pages: Pages) -> Values:
    """Share of lines that begin with a bullet: lists without prose. From four lines on."""
    return share(pages.facts.bullet_lines, pages.facts.lines, 4)


@above(zh=0.6, en=0.7)
def short_lines(pages: Pages) -> Values:
    """Share of lines under ten columns, five Chinese characters: menus, tables. From ten lines on."""
    return share(pages.facts.short_lines, pages.facts.lines, 10)


@above(zh=0.3, en=0.3)
def code_lines(pages: Pages) -> Values:
    """Share of lines that end in ; { } or (): code among prose. From five lines on."""
    return share(pages.facts.code_lines, pages.facts.lines, 5)


@above(zh=0.3, en=0.3)
def repeated_lines(pages: Pages) -> Values:
    """Share of visible characters in lines that came before in the text."""
    return pages.facts.repeated_line_characters / visible(pages)


@above(zh=0.45, en=0.35)
def repeated_grams(pages: Pages) -> Values:
    """Share of the runs of eight characters or words that came before in the text. Court rulings have up to 0.4."""
    return np.where(pages.facts.tokens >= 50, pages.facts.repeated_grams, 0.0)


@above(zh=0.25, en=0.25)
def top_pair(pages: Pages) -> Values:
    """Share of the text that its commonest pair of characters or words makes up."""
    return np.where(pages.facts.tokens >= 30, pages.facts.top_pair, 0.0)


@below(zh=0.25, en=0.15)
def variety(pages: Pages) -> Values:
    """Different characters or words per square root of their number, over ten: 1.0 and more in prose."""
    return share(pages.facts.distinct_tokens, 10 * np.sqrt(pages.facts.tokens), 10 * 50**0.5, 1.0)


@above(zh=30, en=40)
def longest_run(pages: Pages) -> Values:
    """The same letter or digit so many times on end: cries, padding. Rows of marks are repaired, not dropped."""
    return np.asarray(pages.facts.longest_run)


@below(zh=0.01, en=0.08)
def stop_words(pages: Pages) -> Values:
    """Share of characters or words that no prose does without (lists/stop_words.txt). From 60 tokens on."""
    return share(pages.facts.stop_words, pages.facts.tokens, 60, 1.0)


@below(zh=0.40, en=None)
def han_ratio(pages: Pages) -> Values:
    """Chinese characters per visible character of a Chinese text: code and foreign text mixed in."""
    return pages.facts.han / np.maximum(pages.facts.characters - pages.facts.spaces, 1.0)


@below(zh=None, en=0.65)
def letter_ratio(pages: Pages) -> Values:
    """Latin letters per visible character of an English text."""
    return pages.facts.latin / np.maximum(pages.facts.characters - pages.facts.spaces, 1.0)


@below(zh=None, en=3.0)
def short_words(pages: Pages) -> Values:
    """Mean letters a word: below three they are fragments."""
    return share(pages.facts.word_characters, pages.facts.words, 20, 5.0)


@above(zh=None, en=9.0)
def long_words(pages: Pages) -> Values:
    """Mean letters a word: above nine they are identifiers or run together."""
    return share(pages.facts.word_characters, pages.facts.words, 20, 5.0)


@above(zh=None, en=0.35)
def uppercase_ratio(pages: Pages) -> Values:
    """Capitals per letter: headings, shouting."""
    return pages.facts.uppercase / np.maximum(pages.facts.latin, 1.0)


@above(zh=600, en=1500)
def unpunctuated(pages: Pages) -> Values:
    """Visible characters a sentence end: key-word heaps and menus have hardly any."""
    return visible(pages) / np.maximum(pages.facts.sentence_ends, 1.0)


@above(zh=0.1, en=0.1)
def other_scripts(pages: Pages) -> Values:
    """Share of letters in scripts that are neither Chinese nor Latin: mixed or broken text."""
    facts = pages.facts
    other = facts.kana + facts.hangul + facts.other_letters
    return other / np.maximum(other + facts.han + facts.latin, 1.0)


GARBLE = ("锟斤拷", "烫烫烫", "屯屯屯", "ï¿½", "â€™", "â€œ", "Ã¢â")


@above(zh=0.001, en=0.001)
def garble(pages: Pages) -> Values:
    """Replacement characters and the well-known shapes of wrongly decoded text, per visible character."""
    shapes = np.zeros(len(pages.texts))
    for at in np.flatnonzero(pages.hold("garble")).tolist():
        shapes[at] = sum(pages.texts[at].count(shape) for shape in GARBLE)
    return (pages.facts.replacement + shapes) / visible(pages)


@above(zh=0, en=0)
def placeholder(pages: Pages) -> Values:
    """`Lorem ipsum` and its like: a page that nobody filled."""
    return np.array([text[:2000].lower().count("lorem ipsum") for text in pages.texts], np.float64)


@above(zh=8, en=8)
def advert_words(pages: Pages) -> Values:
    """Advertising phrases (lists/advert.*) per 1,000 characters or words, from two phrases on."""
    return np.where(pages.facts.advert >= 2, 1000 * pages.facts.advert / np.maximum(pages.facts.tokens, 1.0), 0.0)


@above(zh=4, en=4)
def toxic_words(pages: Pages) -> Values:
    """Explicit, violent and hateful phrases (lists/toxic.*) per 1,000 characters or words, from two on."""
    return np.where(pages.facts.toxic >= 2, 1000 * pages.facts.toxic / np.maximum(pages.facts.tokens, 1.0), 0.0)


@above(zh=20, en=25)
def navigation_words(pages: Pages) -> Values:
    """Phrases of menus and footers (lists/navigation.*) per 1,000 characters or words, from four on: a page with one
    bar is repaired (paragraph_navigation)."""
    return np.where(
        pages.facts.navigation >= 4, 1000 * pages.facts.navigation / np.maximum(pages.facts.tokens, 1.0), 0.0
    )


DOCUMENT_RULES: tuple[Rule, ...] = (
    too_short, too_long, symbol_ratio, digit_ratio, punctuation_ratio, url_ratio, bracket_ratio, brace_ratio,
    ellipsis_lines, bullet_lines, short_lines, code_lines, repeated_lines, repeated_grams, top_pair, variety,
    longest_run, stop_words, han_ratio, letter_ratio, short_words, long_words, uppercase_ratio, unpunctuated,
    other_scripts, garble, placeholder, advert_words, toxic_words, navigation_words,
)  # fmt: skip
