"""`ziya index ...`: each function takes the arguments after its name and returns the exit code."""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np

from . import format
from .reader import IndexedDataset


def _parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"ziya index {name}",
        description=description,
        epilog=f"example:\n  ziya index {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def build(argv: list[str]) -> int:
    """Text files -> tokens -> `P.bin`, `P.idx`, `P.meta.json`."""
    from .build import build as build_dataset

    parser = _parser(
        "build",
        "Tokenize jsonl, jsonl.gz, jsonl.zst, parquet and txt files into an indexed dataset.",
        "--tokenizer runs/tokenizer --input runs/data/kept --output runs/index/stage1 --workers 8",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder with tokenizer.model, or a byte-level tokenizer.json; each document ends with its </s>",
    )
    parser.add_argument("--input", required=True, nargs="+", type=Path, metavar="FILE", help="files or folders")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="writes PREFIX.bin, .idx, .meta.json")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="tokenizing processes (default 1)")
    parser.add_argument("--bad-limit", type=int, default=100, metavar="N", help="bad records allowed (default 100)")
    parser.add_argument(
        "--prompt-until", nargs="+", default=[], metavar="WORDS", help="a prompt ends with the last of these words"
    )
    parser.add_argument(
        "--validation", type=float, default=0.0, metavar="SHARE", help="so much, by hash, goes to PREFIX.validation"
    )
    given = parser.parse_args(argv)
    prefix = format.output_prefix(given.output)
    replaced, split = _replaced(prefix), f"{prefix}.validation"
    if not given.validation and Path(f"{split}.idx").exists():
        raise ValueError(
            f"{split} holds documents that {prefix} would hold as well; give --validation again, or remove {split}.*"
        )
    report = build_dataset(
        given.input, prefix, given.tokenizer, given.workers, given.bad_limit, given.prompt_until, given.validation
    )
    print(f"{replaced}{prefix}.bin, .idx, .meta.json: {report}")
    if given.validation:
        print(f"of these {len(IndexedDataset(split)):,} documents are in {split}, not in {prefix}")
    return 0


def _replaced(prefix: str) -> str:
    return "replaced " if Path(f"{prefix}.idx").exists() else ""


def show(argv: list[str]) -> int:
    """What a dataset holds, or one of its documents."""
    parser = _parser("show", "Print what an indexed dataset holds, or one document of it.", "runs/index/stage1")
    parser.add_argument("prefix", help="PREFIX of the dataset, or its .idx")
    parser.add_argument("--document", type=int, metavar="N", help="print this document's ids")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="print its text instead of ids")
    given = parser.parse_args(argv)
    dataset = IndexedDataset(given.prefix)
    if given.document is not None:
        if not 0 <= given.document < len(dataset):
            raise ValueError(f"document={given.document} is not in {dataset.prefix}; it has 0 to {len(dataset) - 1}")
        ids = dataset[given.document].tolist()
        print(_text(ids, given.tokenizer, dataset) if given.tokenizer else " ".join(map(str, ids)))
        return 0
    for name, value in _facts(dataset):
        print(f"{name:<20} {value}")
    return 0


def _text(ids: list[int], tokenizer_path: Path, dataset: IndexedDataset) -> str:
    """Raises ValueError if the dataset tells that another tokenizer made its ids."""
    from .build import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path)
    made_by, given = dataset.meta.tokenizer if dataset.meta else "", tokenizer.fingerprint()
    if made_by and made_by != given:
        raise ValueError(
            f"{dataset.prefix} was built with another tokenizer ({made_by[:12]}) than {tokenizer_path} ({given[:12]})"
        )
    return tokenizer.decode(ids)


def _facts(dataset: IndexedDataset) -> list[tuple[str, str]]:
    bin_path, idx_path, meta_path = format.files(dataset.prefix)
    facts = [
        ("files", f"{bin_path} {bin_path.stat().st_size:,} bytes, {idx_path.name} {idx_path.stat().st_size:,} bytes"),
        ("documents", f"{len(dataset):,}"),
        ("tokens", f"{dataset.tokens:,}"),
        ("dtype", dataset.dtype.name),
    ]
    if len(dataset):
        lengths = dataset.lengths()
        low, middle, high = np.percentile(lengths, [0, 50, 100]).astype(int)
        facts.append(("tokens a document", f"{low:,} to {high:,}, half above {middle:,}, mean {lengths.mean():,.1f}"))
    if dataset.meta is None:
        return [*facts, ("side-car", f"none ({meta_path.name}): not written by megatron-ziya")]
    return [
        *facts,
        ("vocabulary size", f"{dataset.meta.vocabulary_size:,}"),
        ("tokenizer", dataset.meta.tokenizer or "unknown"),
    ]


def verify(argv: list[str]) -> int:
    """Structure, checksums and ids of datasets; 1 if anything is wrong."""
    from .verify import problems

    parser = _parser(
        "verify",
        "Read every byte of indexed datasets and tell what is wrong.\n"
        "Exit code 0: all is right; 1: something is wrong; 2: a dataset could not be read at all.",
        "runs/index/stage1",
    )
    parser.add_argument("prefix", nargs="+", help="PREFIX of a dataset, or its .idx")
    parser.add_argument("--vocabulary", type=int, metavar="N", help="ids must be below N (default: the side-car's)")
    given = parser.parse_args(argv)
    wrong = 0
    for prefix in given.prefix:
        right = True
        for line in problems(prefix, given.vocabulary):
            print(line, file=sys.stderr)
            right = False
        wrong += not right
        if right:
            dataset = IndexedDataset(prefix)
            proof = "structure, checksums and ids" if dataset.meta else "structure and ids (no side-car: no checksums)"
            print(f"{dataset.prefix}: {proof} of {dataset.tokens:,} tokens in {len(dataset):,} documents are right")
    return 1 if wrong else 0


def merge(argv: list[str]) -> int:
    """Several datasets into one, and a validation part out of them."""
    from .merge import merge as merge_datasets

    parser = _parser(
        "merge",
        "Join indexed datasets, ours or Megatron's, in order; with --validation, split by a hash of the document.",
        "runs/index/a runs/index/b --output runs/index/all --validation 0.001",
    )
    parser.add_argument("prefix", nargs="+", help="PREFIX of a dataset, or its .idx")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="writes PREFIX.bin, .idx, .meta.json")
    parser.add_argument("--vocabulary", type=int, default=0, metavar="N", help="ids are below N (default: side-cars')")
    parser.add_argument(
        "--validation", type=float, default=0.0, metavar="SHARE", help="so much, by hash, goes to PREFIX.validation"
    )
    given = parser.parse_args(argv)
    prefix = format.output_prefix(given.output)
    replaced = _replaced(prefix)
    documents, tokens = merge_datasets(given.prefix, prefix, given.vocabulary, given.validation)
    print(f"{replaced}{prefix}.bin, .idx, .meta.json: {documents:,} documents, {tokens:,} tokens")
    return 0


def stats(argv: list[str]) -> int:
    """Lengths of documents and the most frequent ids."""
    from .stats import stats as stats_of

    parser = _parser("stats", "Print how long documents are and which ids are frequent.", "runs/index/stage1")
    parser.add_argument("prefix", help="PREFIX of a dataset, or its .idx")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="print the pieces of the ids")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="so many ids (default 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(argv)
    found = stats_of(format.prefix_of(given.prefix), given.top)
    dataset = IndexedDataset(given.prefix)
    if given.json:
        print(json.dumps(dataclasses.asdict(found)))
        return 0
    print(f"{found.documents:,} documents ({found.empty:,} empty), {found.tokens:,} tokens, longest {found.longest:,}")
    print(f"{'up to tokens':>12} {'documents':>12} {'share':>6} {'their tokens':>15} {'share':>6}")
    for size, documents, tokens in found.histogram:
        of_documents, of_tokens = documents / found.documents, tokens / max(found.tokens, 1)
        print(f"{size:>12,} {documents:>12,} {of_documents:>6.1%} {tokens:>15,} {of_tokens:>6.1%}")
    print(f"{found.used:,} different ids; the most frequent:")
    for token, count in found.ids:
        piece = f"  {_text([token], given.tokenizer, dataset)!r}" if given.tokenizer else ""
        print(f"{token:>12} {count:>12,} {count / found.tokens:>6.2%}{piece}")
    return 0


def trace(argv: list[str]) -> int:
    """Which documents were in a step."""
    from .trace import trace as trace_step

    parser = _parser("trace", "Print which documents were in step N of a run.", "runs/demo/stage1 --step 20")
    parser.add_argument("run", type=Path, help="run directory, or a recipe")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="from 1, as metrics.jsonl counts")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="print the beginning of each text")
    parser.add_argument("--json", action="store_true", help="print JSON, a line a row")
    given = parser.parse_args(argv)
    datasets: dict[str, IndexedDataset] = {}
    for row, origins in enumerate(trace_step(given.run, given.step)):
        if given.json:
            print(json.dumps({"row": row, "documents": [dataclasses.asdict(origin) for origin in origins]}))
            continue
        for origin in origins:
            text = ""
            if given.tokenizer:
                dataset = datasets.setdefault(origin.path, IndexedDataset(origin.path))
                ids = dataset[origin.document][origin.first : origin.first + min(origin.tokens, 24)].tolist()
                text = f"  {_text(ids, given.tokenizer, dataset)!r}"
            tokens = f"tokens {origin.first} to {origin.first + origin.tokens - 1}"
            print(f"row {row}  {origin.source}  {origin.path} document {origin.document}, {tokens}{text}")
    return 0


def prepare(argv: list[str]) -> int:
    """Builds every index a run will need, before it is started."""
    from .trace import load

    parser = _parser(
        "prepare",
        "Check the datasets of a recipe and build the indexes its run needs, before any GPU waits for them.",
        "examples/demo/stage1.toml --cache runs/index/cache",
    )
    parser.add_argument("recipe", type=Path, help="a recipe, or a run directory")
    parser.add_argument("--cache", default="", metavar="DIR", help="folder of the indexes (default: data.cache)")
    given = parser.parse_args(argv)
    plan, _ = load(given.recipe)
    folder = given.cache or plan.cache
    if not folder:
        raise ValueError("no folder for the indexes; give --cache, or data.cache in the recipe")
    begin = time.monotonic()
    mix = plan.mix(folder)
    built = list(mix.prepare())
    for source in mix.sources:
        epochs = [epoch for name, epoch in built if name == source.name]
        passes = f"epochs {min(epochs)} to {max(epochs)}" if epochs else "nothing"
        print(f"{source.name}: {mix.counts(len(mix))[source.name]:,} samples, {passes}")
    size = sum(path.stat().st_size for path in Path(folder).glob("*.index"))
    print(f"{folder}: indexes of {size / 2**20:.1f} MiB in all, after {time.monotonic() - begin:.1f} s")
    return 0
