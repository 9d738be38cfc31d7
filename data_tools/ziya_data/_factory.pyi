"""Types of the C++ module `ziya_data._factory` (data_tools/csrc/factory.cpp). N texts in a batch."""

import numpy as np
from numpy.typing import NDArray

FACTS: tuple[str, ...]

class Measure:
    def __init__(self, stop_words: list[str]) -> None: ...
    def __call__(self, texts: list[str]) -> NDArray[np.float64]:
        """[N, len(FACTS)] counts."""

class WordList:
    def __init__(self, phrases: list[str]) -> None: ...
    def count(self, texts: list[str]) -> NDArray[np.uint32]:
        """[N] occurrences of the listed words and phrases."""

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

def scripts(texts: list[str]) -> NDArray[np.uint32]:
    """[N, 5] letters: Han, kana, Hangul, Latin, other."""

def content_hash(texts: list[str]) -> NDArray[np.uint64]:
    """[N], letters and digits only, case and width folded."""

def text_hash(texts: list[str]) -> NDArray[np.uint64]:
    """[N], of the bytes as they are."""

def signatures(texts: list[str]) -> NDArray[np.uint64]:
    """[N, 5]: 128 SimHash bits, 32 four-bit minima, number of tokens."""

def tokens(text: str, marks: bool = False) -> list[int]:
    """Hashes of Chinese characters and of words; of punctuation too with `marks`."""

def distance(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> tuple[int, float]:
    """Hamming distance of 128 bits and estimated Jaccard similarity of two signatures."""

class Bloom:
    added: int
    bytes: int
    def __init__(self, capacity: int, rate: float) -> None: ...
    @staticmethod
    def load(path: str) -> Bloom: ...
    def save(self, path: str) -> None: ...
    def test(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]: ...
    def test_and_add(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]: ...

class NearIndex:
    def __init__(self) -> None: ...
    @staticmethod
    def load(path: str) -> NearIndex: ...
    def save(self, path: str) -> None: ...
    def __len__(self) -> int: ...
    def add(self, signature: NDArray[np.uint64]) -> None: ...
    def find(self, signature: NDArray[np.uint64], distance: int, jaccard: float) -> tuple[int, int, float]:
        """Nearest page or -1, its Hamming distance, its Jaccard estimate."""
