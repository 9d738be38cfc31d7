"""Types of the C++ module `ziya_data._factory` (data_tools/csrc/factory.cpp). N texts in a batch."""

import numpy as np
from numpy.typing import NDArray

FACTS: tuple[str, ...]

class Measure:
    def __init__(self, stop_words: list[str], lists: list[list[str]]) -> None:
        """lists: phrases of `advert`, `toxic`, `navigation`."""

    def __call__(self, texts: list[str]) -> NDArray[np.float64]:
        """[N, len(FACTS)] counts."""

class Scanner:
    def __init__(self, sets: list[tuple[list[int], list[int]]]) -> None:
        """Pairs of sets of code points below 65,536; the second is empty where one character is enough."""

    def __call__(self, texts: list[bytes] | list[str]) -> NDArray[np.uint32]:
        """[N] bit i is set for a UTF-8 text that holds a character of the first set of sets[i], and right behind it one
        of the second. Higher code points belong to every single set, and to no pair."""

class WordList:
    def __init__(self, phrases: list[str]) -> None: ...
    def count(self, texts: list[str]) -> NDArray[np.uint32]:
        """[N] occurrences of the listed words and phrases."""

    def bars(self, text: str, share: float, least: int, longest: int) -> list[int]:
        """The numbers of the lines of at most `longest` bytes of UTF-8 that end no sentence and hold at least `least`
        listed phrases, which make up this share of their words (characters in Chinese), numbers apart."""

    def strike(self, texts: list[str], share: float, least: int, longest: int) -> NDArray[np.bool_]:
        """[N] whether `bars` finds any."""

class Hints:
    def __init__(self, kinds: list[list[str]]) -> None:
        """Phrases of each kind, written as lists/hints.* say; the last kind speaks against."""

    def score(self, lines: list[str]) -> NDArray[np.int32]:
        """[N] different hints in each line, at most two of a kind, less those that speak against."""

    def lines(self, text: str, least: float, reach: int, small: int) -> list[int]:
        """The numbers of the lines that score `least` and have at most `reach` characters a hint; one of at most
        `small` characters that ends no sentence needs one hint less."""

    def strike(self, texts: list[str], least: float, reach: int, small: int) -> NDArray[np.bool_]:
        """[N] whether `lines` finds any."""

class Trainer:
    def __init__(self, order: int, prune: int) -> None: ...
    def add(self, text: str) -> None: ...
    def save(self, path: str, language: str) -> None: ...

class LanguageModel:
    order: int
    grams: int
    language: str
    def __init__(self, path: str) -> None: ...
    def score(self, text: str) -> tuple[float, int]:
        """Sum of natural log probabilities (line ends included), number of tokens."""

    def perplexity(self, texts: list[str]) -> NDArray[np.float64]:
        """[N]; infinite for a text without tokens."""

class Classifier:
    bits: int
    examples: int
    language: str
    def __init__(self, path: str) -> None: ...
    def score(self, texts: list[str]) -> NDArray[np.float64]:
        """[N] log odds that a text is bad; infinite for one without tokens."""

class ClassifierTrainer:
    def __init__(self, bits: int) -> None:
        """2**bits weights."""

    def learn(self, good: str, bad: str) -> None:
        """One pass over two pieces of text, mixed evenly, but for one example in twenty."""

    def held_out(self, text: str) -> list[float]:
        """Scores of those that `learn` leaves out."""

    def save(self, path: str, language: str) -> None: ...

def scripts(texts: list[str]) -> NDArray[np.uint32]:
    """[N, 5] letters: Han, kana, Hangul, Latin, other."""

def content_hash(texts: list[str]) -> NDArray[np.uint64]:
    """[N], letters and digits only, case and width folded."""

def text_hash(texts: list[str]) -> NDArray[np.uint64]:
    """[N], of the bytes as they are."""

def signatures(texts: list[str], method: str) -> NDArray[np.uint64]:
    """[N, 7]: 256 bits, eight 16-bit keys, number of tokens; method `minhash` or `simhash`."""

def tokens(text: str, marks: bool = False) -> list[int]:
    """Hashes of Chinese characters and of words; of punctuation too with `marks`."""

class Bloom:
    """The part `part` of `parts` of a filter's bits."""

    probes: int
    total: int
    """64-bit words of all parts together."""
    words: NDArray[np.uint64]
    """Those of this part themselves, no copy."""
    def __init__(self, capacity: int, rate: float, part: int = 0, parts: int = 1) -> None: ...
    @staticmethod
    def load(path: str, part: int = 0, parts: int = 1) -> Bloom: ...
    def test(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]: ...
    def test_and_add(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]: ...

Found = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]
"""[N] each: page or -1, Hamming distance of 128 SimHash bits (0 for minhash), estimated Jaccard similarity."""

class NearPages:
    """Every `parts`-th page of an index, from page `part` on."""

    bytes: int
    def __init__(self, method: str, part: int = 0, parts: int = 1) -> None: ...
    def find(self, signatures: NDArray[np.uint64], distance: int, jaccard: float) -> Found:
        """Of each page the one of these most like it."""

    def add(self, signatures: NDArray[np.uint64], first: int, open: NDArray[np.uint8]) -> None:
        """Takes its own of the pages `first`, `first` + 1 ...; `open` is what NearOrder said of each."""

class NearOrder:
    """Which pages an index takes, in order, and into which of their buckets."""

    bytes: int
    method: str
    def __init__(self, method: str) -> None: ...
    def __len__(self) -> int: ...
    def admit(self, signatures: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """[N] bits: the bands whose bucket takes the page. All pages are taken."""

    def resolve(
        self, signatures: NDArray[np.uint64], found: Found, distance: int, jaccard: float
    ) -> tuple[Found, NDArray[np.uint8]]:
        """`found`: the match of each page among those taken before. A page like none of them and like none taken before
        it in this batch is taken, and stays without a match."""

def best(found: list[Found]) -> Found:
    """Of each page the best match of several parts."""

class GramSet:
    def __init__(self, grams: int, shortest: int) -> None: ...
    def add(self, text: str, owner: int) -> bool:
        """False for a text of fewer than `shortest` tokens, which cannot be looked for."""

    def __len__(self) -> int: ...
    def find(self, texts: list[str]) -> NDArray[np.int64]:
        """[N, 4]: hits, owner of the first one, its first byte, the byte behind it."""
