"""Several datasets, ours or Megatron's, into one: documents in order, of any number and size, in bounded memory."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import format
from .progress import Progress
from .reader import IndexedDataset
from .split import VALIDATION, in_validation, split_off
from .writer import IndexedDatasetWriter

BLOCK_TOKENS = 1 << 22  # of documents that are copied at once


@dataclasses.dataclass
class Block:
    """Documents that follow each other."""

    tokens: NDArray[np.integer]
    """[sum of lengths]"""
    lengths: NDArray[np.int64]
    """[documents]"""
    prompts: NDArray[np.int32] | None
    """[documents]"""


def merge(prefixes: Sequence[str], output: str, vocabulary_size: int = 0, validation: float = 0.0) -> tuple[int, int]:
    """Writes the documents of `prefixes`, one dataset after the other, to `output`; returns (documents, tokens).

    Checksums of the inputs are compared while they are read, where they have any. vocabulary_size: the largest of the
    side-cars when 0; needed where no input has one. validation: share of the documents that goes to
    `output.validation` (split.py). Raises ValueError for inputs of different tokenizers, or what a reader raises.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation={validation} must be a share of the documents, 0 to below 1")
    datasets = [IndexedDataset(prefix, Path(f"{format.prefix_of(prefix)}.meta.json").exists()) for prefix in prefixes]
    if not datasets:
        raise ValueError("no dataset to merge; give the prefix of one at least")
    read = [Path(dataset.prefix).resolve() for dataset in datasets]
    for dataset, path in zip(datasets, read, strict=True):
        if read.count(path) > 1:
            raise ValueError(f"{dataset.prefix} is given twice; give it once (a weight in the mix repeats data)")
    metas = [dataset.meta for dataset in datasets if dataset.meta is not None]
    tokenizers = {meta.tokenizer for meta in metas if meta.tokenizer}
    if len(tokenizers) > 1:
        told = ", ".join(f"{d.prefix} {d.meta.tokenizer[:12]}" for d in datasets if d.meta and d.meta.tokenizer)
        raise ValueError(f"the datasets come from {len(tokenizers)} tokenizers ({told}); build all of them with one")
    size = vocabulary_size or max((meta.vocabulary_size for meta in metas), default=0)
    if not size:
        raise ValueError("no dataset has a side-car that tells the vocabulary's size; give it with --vocabulary")
    output = format.prefix_of(output)
    outputs = [output, output + VALIDATION] if validation else [output]
    clash = [prefix for prefix in outputs if Path(prefix).resolve() in read]
    if clash:
        raise ValueError(f"{clash[0]} is both read and written; choose another --output")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(f"index merge {Path(output).name}")
    with ExitStack() as stack:
        writers = [stack.enter_context(IndexedDatasetWriter(p, size, "".join(tokenizers))) for p in outputs]
        for block in (block for dataset in datasets for block in blocks(dataset)):
            chosen = in_validation(block.tokens, block.lengths, validation) if validation else None
            for writer, part in zip(writers, split_off(chosen, block), strict=True):
                writer.add(part.tokens, part.lengths, part.prompts)
            progress.update(f"{sum(w.documents for w in writers):,} of {sum(map(len, datasets)):,} documents")
    return sum(writer.documents for writer in writers), sum(writer.tokens for writer in writers)


def blocks(dataset: IndexedDataset) -> Iterator[Block]:
    """The documents of a dataset, as many at once as BLOCK_TOKENS hold, one at least."""
    first = 0
    while first < len(dataset):
        # The first that begins a block's size further on; one at least, were it the longest.
        stop = max(dataset.document_at(dataset.begin(first) + BLOCK_TOKENS), first + 1)
        lengths = dataset.lengths(first, stop)
        for document in range(first, stop):
            dataset.check_document(document)
        prompts = None if dataset.prompts is None else dataset.prompts[first:stop]
        yield Block(dataset.between(first, stop), lengths, prompts)
        first = stop
