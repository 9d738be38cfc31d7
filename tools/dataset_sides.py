"""The jobs of benchmark_dataset.py: ours and megatron-core's, each side run in a process of its own."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def lengths_of(documents: int, tokens: int) -> np.ndarray:
    """Log-normal, as the web's; they add up to about `tokens`."""
    drawn = np.random.default_rng(0).lognormal(0, 1, documents)
    return np.maximum(1, drawn * (tokens / drawn.sum())).astype(np.int32)


def best(repeat: int, job: Callable[[], object]) -> float:
    """CPU seconds, the kernel's too, of the fastest run: a machine that is shared only ever adds."""
    times = []
    for _ in range(repeat):
        begin = time.process_time()
        job()
        times.append(time.process_time() - begin)
    return min(times)


def ours(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Job -> seconds, or a rate."""
    from ziya_data import _indexed
    from ziya_data.indexed.megatron import MegatronSamples
    from ziya_data.indexed.mix import Mix, Source, integer_weights
    from ziya_data.indexed.reader import IndexedDataset
    from ziya_data.indexed.samples import StreamSamples, corpus_of, source_key
    from ziya_data.indexed.writer import IndexedDatasetWriter

    lengths = lengths_of(given.documents, given.tokens)
    tokens = np.random.default_rng(1).integers(0, 60_000, lengths.sum(), dtype=np.uint16)
    ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    writing, finishing = [], []
    for _ in range(given.repeat):
        for path in folder.glob("ours.*"):
            path.unlink()  # to free the old file's blocks is not the writer's work
        begin = time.process_time()
        with IndexedDatasetWriter(folder / "ours", 60_000) as writer:
            for first in range(0, given.documents, 10_000):
                part = slice(first, min(first + 10_000, given.documents))
                writer.add(tokens[ends[part.start] : ends[part.stop]], lengths[part])
            writing.append(time.process_time() - begin)
            begin = time.perf_counter()  # it waits for the disk
        finishing.append(time.perf_counter() - begin)
    prefix, total = str(folder / "ours"), int(ends[-1])
    found = {"write, Mtokens/s": total / min(writing) / 1e6, "finalize, s": min(finishing)}
    found["the kernel's write alone, Mtokens/s"] = total / best(given.repeat, lambda: plain(folder, tokens)) / 1e6

    corpus, length = corpus_of([IndexedDataset(prefix)]), given.sequence
    samples = 4 * total // length - 1
    found["index of 4 epochs, Megatron's order, s"] = best(
        given.repeat, lambda: MegatronSamples(corpus, length, 1234, samples)
    )
    streams = StreamSamples(corpus, length, source_key(1234, "a"))
    found["index of 4 epochs, own order, s"] = best(
        given.repeat, lambda: [streams.build_index(epoch) for epoch in range(4)]
    )
    mix = Mix([Source("a", (prefix,))], length, total // length, 1234, 0)
    chosen = np.random.default_rng(2).integers(0, len(mix), 2000).tolist()
    read(mix, chosen)
    found["samples of S, /s"] = len(chosen) / best(given.repeat, lambda: read(mix, chosen))
    weights = integer_weights([float(w) for w in range(1, 9)])
    found["blend of 8, 10 M samples, s"] = best(given.repeat, lambda: _indexed.Interleave(weights).counts(10_000_000))
    if given.tokenizer:
        found["jsonl.zst to dataset, Mtokens/s"] = built(given, folder, "ours-text")
    return found


def read(samples: Any, chosen: list[int]) -> None:
    """One sample after the other, none of them kept, as a trainer does."""
    for i in chosen:
        samples[i]


def plain(folder: Path, tokens: np.ndarray) -> None:
    """The same bytes by write() and nothing else: what no writer can do without."""
    with (folder / "plain").open("wb", buffering=0) as file:
        for first in range(0, tokens.size, 1 << 20):
            file.write(tokens[first : first + (1 << 20)].data)
    (folder / "plain").unlink()


def built(given: argparse.Namespace, folder: Path, name: str) -> float:
    """Million tokens a second from text, one process."""
    from ziya_data.indexed.build import build
    from ziya_data.indexed.reader import IndexedDataset

    seconds = best(given.repeat, lambda: build([given.text], str(folder / name), given.tokenizer))
    return IndexedDataset(folder / name).tokens / seconds / 1e6


def theirs(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The same jobs by megatron-core."""
    import torch
    from megatron.core.datasets import helpers
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split

    torch.set_num_threads(1)
    lengths = lengths_of(given.documents, given.tokens)
    tokens = np.random.default_rng(1).integers(0, 60_000, lengths.sum(), dtype=np.uint16)
    ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).tolist()
    prefix = str(folder / "theirs")
    begin = time.process_time()
    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.uint16)
    for document in range(given.documents):
        part = tokens[ends[document] : ends[document + 1]]
        builder.add_document(part, [len(part)])
    writing = time.process_time() - begin
    begin = time.perf_counter()
    builder.finalize(prefix + ".idx")
    found = {"write, Mtokens/s": ends[-1] / writing / 1e6, "finalize, s": time.perf_counter() - begin}

    class Tokenizer:
        vocab_size, eod, pad = 60_000, 0, 1
        unique_identifiers: dict[str, str] = {}  # noqa: RUF012

    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=given.sequence,
        blend=([prefix], None),
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        tokenizer=Tokenizer(),
    )
    low, everything = IndexedDataset(prefix), np.arange(given.documents, dtype=np.int32)

    np.save = lambda *_, **__: None  # it always writes its cache, and would read it the next time

    def dataset(samples: int) -> GPTDataset:
        return GPTDataset(low, prefix, everything, samples, Split.train, config)

    found["index of 4 epochs, Megatron's order, s"] = best(
        given.repeat, lambda: dataset(4 * ends[-1] // given.sequence - 1)
    )
    one = dataset(ends[-1] // given.sequence - 1)
    chosen = np.random.default_rng(2).integers(0, ends[-1] // given.sequence - 1, 2000).tolist()
    read(one, chosen)
    found["samples of S, /s"] = len(chosen) / best(given.repeat, lambda: read(one, chosen))
    weights = np.arange(1, 9) / 36
    dataset_ids, sample_ids = np.zeros(10_000_000, np.int16), np.zeros(10_000_000, np.int64)
    found["blend of 8, 10 M samples, s"] = best(
        given.repeat,
        lambda: helpers.build_blending_indices(dataset_ids, sample_ids, weights, 8, 10_000_000, False),
    )
    if given.tokenizer:
        found["jsonl.zst to dataset, Mtokens/s"] = their_build(given, folder, IndexedDatasetBuilder)
    return found


def their_build(given: argparse.Namespace, folder: Path, builder_type: type) -> float:
    """The loop of Megatron-LM's preprocess_data (the package does not ship it), one process, the same tokenizer.

    Reads zst by zstandard, as preprocess_data itself reads only plain jsonl.
    """
    import io

    import sentencepiece
    import zstandard

    processor = sentencepiece.SentencePieceProcessor(str(Path(given.tokenizer) / "tokenizer.model"))
    count = 0

    def run() -> None:
        nonlocal count
        count = 0
        builder = builder_type(str(folder / "their-text.bin"), dtype=np.uint16)
        with given.text.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
            for line in io.TextIOWrapper(stream, encoding="utf-8"):
                ids = processor.encode(json.loads(line)["text"])
                ids.append(processor.eos_id())
                builder.add_document(ids, [len(ids)])
                count += len(ids)
        builder.finalize(str(folder / "their-text.idx"))

    seconds = best(given.repeat, run)
    return count / seconds / 1e6
