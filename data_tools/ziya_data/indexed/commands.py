"""`ziya index ...`: each function takes the arguments after its name and returns the exit code."""

import argparse
import sys
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
    parser.add_argument("--tokenizer", required=True, type=Path, metavar="DIR", help="folder with tokenizer.model")
    parser.add_argument("--input", required=True, nargs="+", type=Path, metavar="FILE", help="files or folders")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="writes PREFIX.bin, .idx, .meta.json")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="tokenizing processes (default 1)")
    parser.add_argument("--bad-limit", type=int, default=100, metavar="N", help="bad records allowed (default 100)")
    given = parser.parse_args(argv)
    report = build_dataset(given.input, given.output, given.tokenizer, given.workers, given.bad_limit)
    print(f"{given.output}.bin, .idx, .meta.json: {report}")
    return 0


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
        print(_text(ids, given.tokenizer) if given.tokenizer else " ".join(map(str, ids)))
        return 0
    for name, value in _facts(dataset):
        print(f"{name:<20} {value}")
    return 0


def _text(ids: list[int], tokenizer_path: Path) -> str:
    from ziya_data.tokenizer import Tokenizer

    return Tokenizer.load(tokenizer_path).decode(ids)


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

    parser = _parser("verify", "Read every byte of indexed datasets and tell what is wrong.", "runs/index/stage1")
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
