"""The word lists that the rules and the gate look for, one file a list and language in lists/."""

from functools import cache
from pathlib import Path

from ziya_data._factory import Measure, WordList

LISTS = Path(__file__).parent / "lists"


def read_list(path: Path) -> list[str]:
    """Entries of a list file: one a line, `#` begins a comment line."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@cache
def words(name: str, language: str) -> WordList:
    """`toxic`, `advert` or `navigation` of a language; an empty list for a language that has none."""
    path = LISTS / f"{name}.{language}.txt"
    return WordList(read_list(path) if path.is_file() else [])


@cache
def measure() -> Measure:
    return Measure(read_list(LISTS / "stop_words.txt"))
