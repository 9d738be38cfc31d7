"""The word lists that the rules and the gate look for, one file a list and language in lists/."""

from functools import cache
from pathlib import Path

from ziya_data._factory import Hints, Measure, WordList

COUNTED = ("advert", "toxic", "navigation")
LISTS = Path(__file__).parent / "lists"


def read_list(path: Path) -> list[str]:
    """Entries of a list file: one a line, `#` begins a comment line."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def listed(name: str, language: str) -> list[str]:
    """`advert`, `toxic` or `navigation` of a language; empty for a language that has none."""
    path = LISTS / f"{name}.{language}.txt"
    return read_list(path) if path.is_file() else []


@cache
def words(name: str, language: str) -> WordList:
    return WordList(listed(name, language))


@cache
def menu(language: str) -> WordList:
    """What bars and buttons say, by single words and by phrases."""
    return WordList(listed("menu", language) + listed("navigation", language))


@cache
def hints(language: str) -> Hints:
    """What lists/hints.* holds of a language, by its [kinds]."""
    kinds: list[list[str]] = []
    for line in listed("hints", language):
        if line.startswith("["):
            kinds.append([])
        else:
            kinds[-1].append(line)
    return Hints(kinds)


@cache
def measure(language: str) -> Measure:
    """Counts of texts of one language, the phrases of its lists among them."""
    return Measure(read_list(LISTS / "stop_words.txt"), [listed(name, language) for name in COUNTED])
