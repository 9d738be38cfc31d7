"""Speed of the indexed dataset, beside megatron-core's where it can be had, in one run.

    python tools/benchmark_dataset.py                       # ours alone
    python tools/benchmark_dataset.py --install-megatron    # megatron-core into a temporary folder
    python tools/benchmark_dataset.py --growth              # how ours grows with the number of documents

Every job runs --repeat times in a process of its own on the same data; the best time counts, for a shared machine only
ever adds. One thread. Both sides read and write the same files in --folder.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TARGETS = {
    "write, Mtokens/s": "20x",
    "finalize, s": "< 0.2",
    "samples of S, /s": "20x",
    "index of 4 epochs, Megatron's order, s": "3x",
    "index of 4 epochs, own order, s": "10x",
    "blend of 8, 10 M samples, s": "3x",
    "jsonl.zst to dataset, Mtokens/s": "3x",
}
RATES = "/s"  # in the name of a job: more is better


def lengths_of(documents: int, tokens: int) -> np.ndarray:
    """Log-normal, as the web's; they add up to about `tokens`."""
    drawn = np.random.default_rng(0).lognormal(0, 1, documents)
    return np.maximum(1, drawn * (tokens / drawn.sum())).astype(np.int32)


def best(repeat: int, job: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        job()
        times.append(time.perf_counter() - begin)
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
        begin = time.perf_counter()
        with IndexedDatasetWriter(folder / "ours", 60_000) as writer:
            for first in range(0, given.documents, 10_000):
                part = slice(first, min(first + 10_000, given.documents))
                writer.add(tokens[ends[part.start] : ends[part.stop]], lengths[part])
            written = time.perf_counter()
        writing.append(written - begin)
        finishing.append(time.perf_counter() - written)
    prefix, total = str(folder / "ours"), int(ends[-1])
    found = {"write, Mtokens/s": total / min(writing) / 1e6, "finalize, s": min(finishing)}

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
    for i in chosen:
        mix[i]
    found["samples of S, /s"] = len(chosen) / best(given.repeat, lambda: [mix[i] for i in chosen])
    weights = integer_weights([float(w) for w in range(1, 9)])
    found["blend of 8, 10 M samples, s"] = best(given.repeat, lambda: _indexed.Interleave(weights).counts(10_000_000))
    if given.tokenizer:
        found["jsonl.zst to dataset, Mtokens/s"] = built(given, folder, "ours-text")
    return found


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
    begin = time.perf_counter()
    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.uint16)
    for document in range(given.documents):
        part = tokens[ends[document] : ends[document + 1]]
        builder.add_document(part, [len(part)])
    written = time.perf_counter()
    builder.finalize(prefix + ".idx")
    done = time.perf_counter()
    found = {"write, Mtokens/s": ends[-1] / (written - begin) / 1e6, "finalize, s": done - written}

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
    for i in chosen:
        one[i]
    found["samples of S, /s"] = len(chosen) / best(given.repeat, lambda: [one[i] for i in chosen])
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


def growth(given: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Our costs for 10^6, 10^7, 10^8 documents: lengths only, over a sparse .bin."""
    import resource

    from ziya_data.indexed import format
    from ziya_data.indexed.megatron import MegatronSamples
    from ziya_data.indexed.reader import IndexedDataset
    from ziya_data.indexed.samples import StreamSamples, corpus_of, source_key

    rows = []
    for documents in (10**n for n in range(6, given.largest + 1)):
        lengths = lengths_of(documents, 300 * documents)
        ends = np.cumsum(lengths, dtype="<i8")
        with (folder / "sparse.bin").open("wb") as file:
            file.truncate(int(ends[-1]) * 2)
        with (folder / "sparse.idx").open("wb") as file:
            file.write(format.HEADER.pack(format.MAGIC, 1, 8, documents, documents + 1))
            lengths.tofile(file)
            ((ends - lengths) * 2).tofile(file)
            np.arange(documents + 1, dtype="<i8").tofile(file)
        del ends, lengths
        row: dict[str, float] = {"documents": documents}
        begin = time.perf_counter()
        dataset = IndexedDataset(folder / "sparse")
        row["open and check, s"] = time.perf_counter() - begin
        corpus = corpus_of([dataset])
        stream = StreamSamples(corpus, given.sequence, source_key(1234, "a"))
        row["own index, an epoch, s"] = best(1, lambda corpus=stream: corpus.build_index(0))
        begin = time.perf_counter()
        whole = MegatronSamples(corpus, given.sequence, 1234, corpus.tokens // given.sequence - 1)
        row["Megatron's order, an epoch, s"] = time.perf_counter() - begin
        row["its MiB"] = sum(a.nbytes for a in (whole.document_index, whole.sample_index, whole.shuffle_index)) / 2**20
        begin = time.perf_counter()
        corpus.pack(1, 0, given.sequence)
        row["packing, an epoch, s"] = time.perf_counter() - begin
        row["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        rows.append(row)
    return rows


def child(given: argparse.Namespace, side: str, folder: Path, extra: str = "") -> object:
    """One side in a process of its own. Raises ValueError if it failed."""
    arguments = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(folder)]
    path = ":".join([extra, *sys.path]) if extra else ":".join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"the {side} side of the benchmark failed with exit code {done.returncode}; see above")
    return json.loads(done.stdout.splitlines()[-1])


def install(folder: Path) -> str:
    """megatron-core in a folder of its own, without what it depends on: its dataset layer needs torch and NumPy."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-requires-python"]
    subprocess.run([*command, "--target", str(folder), "megatron-core"], check=True, stdout=sys.stderr)
    return str(folder)


def table(mine: dict[str, float], other: dict[str, float] | None) -> str:
    """Markdown: job, theirs, ours, how many times as fast, wanted."""
    lines = ["| job | megatron-core | ours | times | wanted |", "|---|---|---|---|---|"]
    for job, value in mine.items():
        # Their own order is what ours stands instead of.
        name = job.replace("own order", "Megatron's order")
        against = (other or {}).get(name)
        times = "" if against is None else f"{(value / against if RATES in job else against / value):.1f}x"
        shown = "-" if against is None else f"{against:.4g}"
        lines.append(f"| {job} | {shown} | {value:.4g} | {times} | {TARGETS[job]} |")
    return "\n".join(lines)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments. Raises SystemExit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=300_000_000)
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--text", type=Path, help="a .jsonl.zst for the build from text, with --tokenizer")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.model")
    parser.add_argument("--install-megatron", action="store_true", help="install megatron-core into a temporary folder")
    parser.add_argument("--growth", action="store_true", help="10^6 documents and more, lengths only, ours alone")
    parser.add_argument("--largest", type=int, default=8, help="exponent of ten of --growth (default 8)")
    parser.add_argument("--folder", type=Path, help="where the data lies (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    parser.add_argument("--side", choices=["ours", "theirs", "growth"], help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if (given.text is None) != (given.tokenizer is None):
        parser.error("--text and --tokenizer go together")
    return given


def main(argv: list[str] | None = None) -> int:
    """Runs the sides in turn and prints the table."""
    given = parsed(argv)
    if given.side:
        print(json.dumps({"ours": ours, "theirs": theirs, "growth": growth}[given.side](given, given.folder)))
        return 0
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        if given.growth:
            rows = child(given, "growth", folder)
            assert isinstance(rows, list)
            print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
            for row in rows:
                print(
                    "| "
                    + " | ".join(f"{value:,.4g}" if value < 1e5 else f"{value:,.0f}" for value in row.values())
                    + " |"
                )
            found: object = rows
        else:
            extra = install(folder / "megatron") if given.install_megatron else ""
            there = bool(extra) or importlib.util.find_spec("megatron") is not None
            mine = child(given, "ours", folder)
            other = child(given, "theirs", folder, extra) if there else None
            if not there:
                print("megatron-core is not installed: ours alone (--install-megatron gets it)\n")
            assert isinstance(mine, dict) and (other is None or isinstance(other, dict))
            print(f"{given.documents:,} documents, {given.tokens:,} tokens, S = {given.sequence}\n")
            print(table(mine, other))
            found = {"ours": mine, "theirs": other}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
