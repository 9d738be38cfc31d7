"""Mix: samples of several sources, interleaved by weight; what the trainer reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ziya_data import _indexed

from .packing import PackedSamples
from .reader import IndexedDataset
from .samples import StreamSamples, corpus_of, source_key

PACKINGS: dict[str, type[StreamSamples | PackedSamples]] = {"stream": StreamSamples, "documents": PackedSamples}
WEIGHT_UNITS = 1 << 40  # weights become integers of this sum, so that every machine mixes alike


@dataclass(frozen=True)
class Source:
    """One kind of data."""

    name: str
    paths: tuple[str, ...]
    """Prefixes of datasets; their documents are numbered on through them."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources."""
    packing: str = "stream"
    """`stream`: documents run on, cut every S tokens. `documents`: whole documents, best-fit packed and padded."""


@dataclass(frozen=True)
class Sample:
    """A row of S positions: position t reads tokens[t] and predicts tokens[t + 1]."""

    tokens: NDArray[np.int64]
    """[S + 1]"""
    starts: NDArray[np.int32]
    """[S]: where in the row the document of token t starts."""
    loss_mask: NDArray[np.bool_]
    """[S]: False where tokens[t + 1] is padding or starts another document."""
    source: int
    """Its place among the sources."""


class Mix:
    """`samples` rows; `mix[i]` is a pure function of (the arguments, i), in any order, from any process or thread.

    Each source counts its own samples (64 bits) and shuffles by its own name, so a source gives the same samples in
    the same order whatever the others and the weights are. Sources are repeated, reshuffled, as often as needed.

    Raises ValueError or FileNotFoundError for a source that cannot be read, sources of different tokenizers, and
    arguments out of range.
    """

    def __init__(self, sources: Sequence[Source], sequence_length: int, samples: int, seed: int, pad_id: int) -> None:
        _check_arguments(sources, sequence_length, samples, pad_id)
        self.sources = tuple(sources)
        self.sequence_length = sequence_length
        self.pad_id = pad_id
        self._samples = samples
        datasets = [[IndexedDataset(path) for path in source.paths] for source in self.sources]
        _check_tokenizers(datasets)
        metas = [dataset.meta for held in datasets for dataset in held if dataset.meta is not None]
        self.vocabulary_size = max((meta.vocabulary_size for meta in metas), default=0)  # 0: no side-car tells
        self._corpora = [corpus_of(held) for held in datasets]
        self._numbered = [
            _open(source, corpus, sequence_length, seed)
            for source, corpus in zip(self.sources, self._corpora, strict=True)
        ]
        self._interleave = _indexed.Interleave(integer_weights([source.weight for source in self.sources]))

    def __len__(self) -> int:
        return self._samples

    def _pieces(self, i: int) -> tuple[int, NDArray[np.int64]]:
        if not 0 <= i < self._samples:
            raise IndexError(f"sample {i} of a mix of samples 0 to {self._samples - 1}")
        source, number = self._interleave.at(i)
        return source, self._numbered[source].pieces(number)

    def __getitem__(self, i: int) -> Sample:
        source, pieces = self._pieces(i)
        tokens, starts, loss_mask = self._corpora[source].row(pieces, self.sequence_length, self.pad_id)
        return Sample(tokens, starts, loss_mask, source)

    def counts(self, upto: int) -> dict[str, int]:
        """Samples drawn from each source among the first `upto` of the mix."""
        if not 0 <= upto <= self._samples:
            raise IndexError(f"upto={upto} of a mix of {self._samples} samples")
        counts = self._interleave.counts(upto)
        return {source.name: count for source, count in zip(self.sources, counts, strict=True)}

    def documents(self, i: int) -> list[tuple[str, int]]:
        """(source, number of the document in it) of each document, or piece of one, in sample i, in order."""
        source, pieces = self._pieces(i)
        return [(self.sources[source].name, int(document)) for document in pieces[:, 0]]


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Weights as integers that add up to about WEIGHT_UNITS, by exact arithmetic."""
    total = sum(Fraction(weight) for weight in weights)
    return [max(1, round(Fraction(weight) / total * WEIGHT_UNITS)) for weight in weights]


def _open(source: Source, corpus: _indexed.Corpus, sequence_length: int, seed: int) -> StreamSamples | PackedSamples:
    try:
        return PACKINGS[source.packing](corpus, sequence_length, source_key(seed, source.name))
    except ValueError as error:
        raise ValueError(f"source {source.name!r} ({', '.join(source.paths)}): {error}") from error


def _check_arguments(sources: Sequence[Source], sequence_length: int, samples: int, pad_id: int) -> None:
    if not sources:
        raise ValueError("a mix of no sources; give one at least")
    for name, value, least in (("sequence_length", sequence_length, 1), ("samples", samples, 0), ("pad_id", pad_id, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be {least} or more")
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1:
            raise ValueError(f"source {source.name!r} is given {names.count(source.name)} times; name each differently")
        if not source.paths:
            raise ValueError(f"source {source.name!r} has no paths; give the prefix of a dataset")
        if not (math.isfinite(source.weight) and source.weight > 0):
            raise ValueError(f"source {source.name!r} has weight={source.weight}; it must be above 0, or leave it out")
        if source.packing not in PACKINGS:
            raise ValueError(f"source {source.name!r} has packing={source.packing!r}; use {' or '.join(PACKINGS)}")


def _check_tokenizers(datasets: Sequence[Sequence[IndexedDataset]]) -> None:
    """One mix, one vocabulary. Data without a side-car (Megatron's) cannot be checked."""
    first: IndexedDataset | None = None
    for dataset in (dataset for held in datasets for dataset in held):
        if dataset.meta is None or not dataset.meta.tokenizer:
            continue
        if first is None:
            first = dataset
        elif first.meta is not None and first.meta.tokenizer != dataset.meta.tokenizer:
            raise ValueError(
                f"{dataset.prefix} was built with another tokenizer ({dataset.meta.tokenizer}) than {first.prefix} "
                f"({first.meta.tokenizer}); build both with one"
            )
