"""Documents under the rules: what was counted in them, and which signs they hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ziya_data._factory import Scanner

SIGNS = {
    "bar": ("|｜›»>", ""),
    "slash": (" ", "/"),
    "scheme": (":", "/"),
    "www": ("w", "w"),
    "ellipsis": ("…", ""),
    "dots": (".", "."),
    "mark-up": ("&<", ""),
    "at": ("@", ""),
    "garble": ("锟烫屯ïâÃ", "斤烫屯¿€¢"),
}
"""Name -> a character of the first set, and right behind it one of the second where there is one."""


@cache
def scanner() -> Scanner:
    return Scanner([([*map(ord, first)], [*map(ord, second)]) for first, second in SIGNS.values()])


class Facts(NamedTuple):
    """Counts in the order of `ziya_data._factory.FACTS`, of one text (float) or of many (a column [N] each); all are
    characters unless the name says else. advert, toxic, navigation: how many listed phrases."""

    characters: Any
    han: Any
    kana: Any
    hangul: Any
    latin: Any
    other_letters: Any
    digits: Any
    spaces: Any
    punctuation: Any
    symbols: Any
    uppercase: Any
    brackets: Any
    braces: Any
    replacement: Any
    url_characters: Any
    sentence_ends: Any
    longest_run: Any
    lines: Any
    short_lines: Any
    bullet_lines: Any
    ellipsis_lines: Any
    ended_lines: Any
    code_lines: Any
    longest_line: Any
    repeated_line_characters: Any
    words: Any
    word_characters: Any
    tokens: Any
    distinct_tokens: Any
    stop_words: Any
    repeated_grams: Any
    top_pair: Any
    mark_runs: Any
    wordless_lines: Any
    longest_number: Any
    advert: Any
    toxic: Any
    navigation: Any


@dataclass(slots=True)
class Page:
    """One document under the rules."""

    text: str
    language: str
    facts: Facts
    stirred: bool = False
    """Whether a rule changed something within a line, so that a count may no longer be the most there can be; whole
    lines that go only make it less."""


class Pages:
    """Documents of one language, measured; counts: [N, len(FACTS)]."""

    def __init__(self, texts: list[str], language: str, counts: NDArray[np.float64]) -> None:
        self.texts, self.language, self.counts = texts, language, counts
        self.facts = Facts._make(counts.T)

    @cached_property
    def signs(self) -> NDArray[np.uint32]:
        """[N] of each text the bits of the SIGNS that it holds."""
        return scanner()(self.texts)

    def hold(self, *names: str) -> NDArray[np.bool_]:
        """[N] whether a text holds one of these signs."""
        return (self.signs & sum(1 << list(SIGNS).index(name) for name in names)) != 0

    def __getitem__(self, at: int) -> Page:
        return Page(self.texts[at], self.language, Facts._make(self.counts[at].tolist()))

    def __iter__(self) -> Iterator[Page]:
        return (self[at] for at in range(len(self.texts)))
