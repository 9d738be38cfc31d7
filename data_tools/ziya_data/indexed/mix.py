"""Mix: samples of several sources, interleaved by weight; what the trainer reads."""

import bisect
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ziya_data import _indexed

from . import source as recipe
from .cache import Cache
from .megatron import MegatronSamples
from .packing import PackedSamples
from .reader import IndexedDataset
from .samples import StreamSamples, corpus_of, source_key
from .source import Size, Source, integer_weights

__all__ = ["Mix", "Origin", "Sample", "Source", "integer_weights"]
Numbered = StreamSamples | PackedSamples | MegatronSamples


class Sample(NamedTuple):
    """A row of S positions: position t reads tokens[t] and predicts tokens[t + 1]."""

    tokens: NDArray[np.int64]
    """[S + 1]"""
    starts: NDArray[np.int32]
    """[S]: where in the row the document of token t starts."""
    loss_mask: NDArray[np.bool_]
    """[S]: False where tokens[t + 1] is padding or starts another document (or is prompt, where that is asked for)."""
    source: int
    """Its place among the sources."""


@dataclass(frozen=True)
class Origin:
    """Where a run of a sample's tokens comes from."""

    source: str
    path: str
    """Prefix of the dataset."""
    document: int
    """Number of the document in that dataset (of the sequence, in Megatron's order)."""
    first: int
    """First token taken of it."""
    tokens: int


class Mix:
    """Samples `first` to `samples` - 1; `mix[i]` is a pure function of (the arguments, i), in any order, from any
    process or thread.

    Each source counts its own samples (64 bits) and shuffles by its own name, so a source gives the same samples in
    the same order whatever the others and the weights are. Sources are repeated, reshuffled, as often as needed.

    samples: of the whole run. first: where this mix begins, for a run whose mix is changed on the way (history.py).
    cache: folder for indexes that processes share (cache.py). check_reads: see IndexedDataset.

    Raises ValueError or FileNotFoundError for a source that cannot be read, sources of different tokenizers, and
    arguments out of range.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        sequence_length: int,
        samples: int,
        seed: int,
        pad_id: int,
        *,
        first: int = 0,
        cache: str | Path | None = None,
        check_reads: bool = False,
    ) -> None:
        recipe.check(sources)
        _check_arguments(sequence_length, samples, pad_id, first)
        self.sources = tuple(sources)
        self.sequence_length = sequence_length
        self.pad_id = pad_id
        self.seed = seed
        self.first = first
        self.history: list[dict[str, Any]] = []  # what a checkpoint keeps of a run's mixes: see history.py
        self._samples = samples
        self._checked = check_reads
        self._datasets = [[IndexedDataset(path, check_reads) for path in source.paths] for source in self.sources]
        _check_tokenizers(self._datasets)
        metas = [dataset.meta for held in self._datasets for dataset in held if dataset.meta is not None]
        self.vocabulary_size = max((meta.vocabulary_size for meta in metas), default=0)  # 0: no side-car tells
        self.tokenizer = next((meta.tokenizer for meta in metas if meta.tokenizer), "")  # fingerprint; "": unknown
        self._corpora, self._begins = [], []
        for source, held in zip(self.sources, self._datasets, strict=True):
            by_sequence = source.order == "megatron"
            self._corpora.append(corpus_of(held, by_sequence))
            counts = [dataset.sequences if by_sequence else len(dataset) for dataset in held]
            self._begins.append(np.cumsum([0, *counts[:-1]]).tolist())
            if not source.prompt_loss and any(dataset.prompts is None for dataset in held):
                raise ValueError(
                    f"source {source.name!r} has prompt_loss=false, but no prompts are marked in "
                    f"{next(d.prefix for d in held if d.prompts is None)}; build it with --prompt-until"
                )
        self._open(cache)

    def _open(self, cache: str | Path | None) -> None:
        """Opens the sources. Megatron's order depends on how much is drawn, so it comes after the shares."""
        caches = [Cache(Path(cache), held) if cache else None for held in self._datasets]
        opened: dict[int, Numbered] = {}
        sizes = []
        measured = any(source.tokens or source.replay or source.max_epochs for source in self.sources)
        for s, source in enumerate(self.sources):
            tokens_a_sample = float(self.sequence_length)
            if source.order != "megatron":
                opened[s] = self._open_source(s, caches[s], 0)
                tokens_a_sample = opened[s].tokens_a_sample() if measured else tokens_a_sample
            sizes.append(Size(self._corpora[s].tokens, tokens_a_sample))
        self.units = integer_weights(recipe.shares(self.sources, sizes, self._samples - self.first))
        self._interleave = _indexed.Interleave(self.units)
        drawn = self._interleave.counts(self._samples - self.first)
        for s, source in enumerate(self.sources):
            if source.order == "megatron":
                opened[s] = self._open_source(s, caches[s], source.start + drawn[s])
        self._numbered = [opened[s] for s in range(len(self.sources))]

    def _open_source(self, s: int, cache: Cache | None, wanted: int) -> Numbered:
        source, corpus = self.sources[s], self._corpora[s]
        key = source_key(self.seed, source.name)
        try:
            if source.order == "megatron":
                return MegatronSamples(corpus, self.sequence_length, self.seed, wanted, cache)
            kind = StreamSamples if source.packing == "stream" else PackedSamples
            return kind(corpus, self.sequence_length, key, cache)
        except ValueError as error:
            raise ValueError(f"source {source.name!r} ({', '.join(source.paths)}): {error}") from error

    def __len__(self) -> int:
        """Samples of the whole run, those before `first` too."""
        return self._samples

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(self.first, self._samples))

    def _place(self, i: int) -> tuple[int, int]:
        """The source of sample i, and its number among the samples of that source."""
        if not self.first <= i < self._samples:
            raise IndexError(f"sample {i} of a mix of samples {self.first} to {self._samples - 1}")
        source, number = self._interleave.at(i - self.first)
        return source, self.sources[source].start + number

    def _pieces(self, i: int) -> tuple[int, NDArray[np.int64]]:
        source, number = self._place(i)
        return source, self._numbered[source].pieces(number)

    def __getitem__(self, i: int) -> Sample:
        source, number = self._place(i)
        tokens, starts, loss_mask = self._numbered[source].row(number, self.pad_id)
        if self._checked or not self.sources[source].prompt_loss:
            pieces = self._numbered[source].pieces(number)
            if self._checked:
                self._check_reads(source, pieces)
            if not self.sources[source].prompt_loss:
                self._mask_prompts(source, pieces, loss_mask)
        return Sample(tokens, starts, loss_mask, source)

    def counts(self, upto: int) -> dict[str, int]:
        """Samples drawn from each source among the first `upto` of the run (`start` is among them)."""
        if not self.first <= upto <= self._samples:
            raise IndexError(f"upto={upto} of a mix of samples {self.first} to {self._samples}")
        counts = self._interleave.counts(upto - self.first)
        return {source.name: source.start + count for source, count in zip(self.sources, counts, strict=True)}

    def documents(self, i: int) -> list[tuple[str, int]]:
        """(source, number of the document in it) of each document, or piece of one, in sample i, in order."""
        source, pieces = self._pieces(i)
        return [(self.sources[source].name, int(document)) for document in pieces[:, 0]]

    def origins(self, i: int) -> list[Origin]:
        """Where each run of tokens of sample i comes from, in order."""
        source, pieces = self._pieces(i)
        found = []
        for document, offset, count in pieces.tolist():
            dataset, number = self._dataset(source, document)
            found.append(Origin(self.sources[source].name, dataset.prefix, number, offset, count))
        return found

    def prepare(self) -> Iterator[tuple[str, int]]:
        """Builds every index that the run needs, `(source, epoch)` at a time; they stay where there is a cache."""
        if self.first == self._samples:
            return
        last = self.counts(self._samples)
        for source, numbered in zip(self.sources, self._numbered, strict=True):
            if isinstance(numbered, MegatronSamples):  # already built: all its epochs are one index
                yield source.name, numbered.epochs - 1
                continue
            for epoch in range(numbered.epoch_of(source.start), numbered.epoch_of(max(last[source.name] - 1, 0)) + 1):
                numbered.build_index(epoch)
                yield source.name, epoch

    def description(self) -> dict[str, Any]:
        """What decides which sample is which, as plain values; equal descriptions give equal samples."""
        sources = []
        for source, held, unit in zip(self.sources, self._datasets, self.units, strict=True):
            content = hashlib.blake2b(digest_size=16)
            for dataset in held:
                content.update(dataset.content_fingerprint().encode())
            given = dataclasses.asdict(source) | {"paths": list(source.paths)}
            sources.append(given | {"unit": unit, "content": content.hexdigest()})
        return {
            "first": self.first,
            "samples": self._samples,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "sources": sources,
        }

    def _dataset(self, source: int, document: int) -> tuple[IndexedDataset, int]:
        """The dataset that holds a document of a source, and the document's number in it."""
        place = bisect.bisect_right(self._begins[source], document) - 1
        return self._datasets[source][place], document - self._begins[source][place]

    def _check_reads(self, source: int, pieces: NDArray[np.int64]) -> None:
        for document in pieces[:, 0].tolist():
            dataset, number = self._dataset(source, document)
            dataset.check_document(number)

    def _mask_prompts(self, source: int, pieces: NDArray[np.int64], loss_mask: NDArray[np.bool_]) -> None:
        at = 0
        for document, offset, count in pieces.tolist():
            dataset, number = self._dataset(source, document)
            assert dataset.prompts is not None
            # Position at + j predicts token offset + j + 1 of the document.
            hidden = min(int(dataset.prompts[number]) - offset - 1, count)
            loss_mask[at : at + max(hidden, 0)] = False
            at += count


def _check_arguments(sequence_length: int, samples: int, pad_id: int, first: int) -> None:
    for name, value, least in (("sequence_length", sequence_length, 1), ("samples", samples, 0), ("pad_id", pad_id, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be {least} or more")
    if not 0 <= first <= samples:
        raise ValueError(f"first={first} must be 0 to samples={samples}")


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
