"""The jobs that benchmark_factory.py times: the factory's parts, the libraries beneath them, and its peers."""

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ziya_data._factory import Bloom, signatures
from ziya_data.document import Document
from ziya_data.factory import language, pipeline, preprocess, recipe, score, storage
from ziya_data.factory.deduplicate import resolve
from ziya_data.factory.fingerprints import fingerprints
from ziya_data.factory.index import Index
from ziya_data.factory.rules import apply_rules

Job = Callable[[], object]
WHOLE = "all five parts, files to files"
DATATROVE = "datatrove's filters, {}"


def rates(jobs: dict[str, tuple[float, Job]], rounds: int) -> dict[str, tuple[float, float]]:
    """Job -> (MB or million keys a CPU second, the same a second of wall clock), medians of rounds by turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (amount, job) in jobs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            job()
            cpu, wall = max(time.process_time() - cpu, 1e-9), max(time.perf_counter() - wall, 1e-9)
            found[name].append((amount / cpu, amount / wall))
            print(f"{name}: {amount / cpu:.1f} a CPU second", file=sys.stderr)
    return {
        name: (statistics.median(a for a, _ in rows), statistics.median(b for _, b in rows))
        for name, rows in found.items()
    }


def size_of(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def documents_of(texts: list[str], code: str) -> list[Document]:
    return [Document(f"{code}-{i}", text, "benchmark", language=code) for i, text in enumerate(texts)]


def in_batches(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), 512):
        yield texts[start : start + 512]


def part_jobs(pages: dict[str, list[str]], scorers: dict[str, dict[str, Path]]) -> dict[str, tuple[float, Job]]:
    """The parts one by one, on texts in memory; the library beneath each, alone. scorers: by what they measure and by
    language."""
    settings = recipe.parse({"run": {"output": "x"}, "source": [{"name": "x", "paths": ["x"]}]})
    both = [text for texts in pages.values() for text in texts]
    megabytes = size_of(both)
    keys = np.random.default_rng(0).integers(0, 2**64, 2_000_000, dtype=np.uint64)
    beginnings = [" ".join(text[: language.LOOKED_AT].split()) for text in both]

    def rules() -> None:
        for code, texts in pages.items():
            for batch in in_batches(texts):
                apply_rules(documents_of(batch, code), settings.rules.limits, Counter())

    def near(method: str) -> Job:
        def job() -> None:
            pages = Index(recipe.Deduplicate(method=method)).near
            for batch in in_batches(both):
                pages.find_or_add(
                    signatures(batch, method), settings.deduplicate.distance, settings.deduplicate.jaccard
                )

        return job

    def unique() -> None:
        index = Index(settings.deduplicate)
        for batch in in_batches(both):
            prints = fingerprints(documents_of(batch, ""), settings.deduplicate.method)
            resolve(prints, [""] * len(batch), index, [], settings.deduplicate)

    def clean() -> None:
        for batch in in_batches(both):
            preprocess.preprocess(documents_of(batch, ""), settings.preprocess)

    def scoring(files: dict[str, Path]) -> Job:
        models = score.load_models(recipe.Score(models={code: str(path) for code, path in files.items()}))

        def job() -> None:
            for code in models:
                for batch in in_batches(pages[code]):
                    score.measure(documents_of(batch, code), models)

        return job

    convert = preprocess.converter().convert
    jobs: dict[str, tuple[float, Job]] = {
        "preprocess": (megabytes, clean),
        "  language identification": (megabytes, lambda: [language.identify(batch) for batch in in_batches(both)]),
        "  lid.176 alone, on what it is shown": (
            size_of(beginnings),
            lambda: [language.lid176().predict(text) for text in beginnings],
        ),
        "  OpenCC alone, Chinese": (size_of(pages["zh"]), lambda: [convert(text) for text in pages["zh"]]),
        "rules": (megabytes, rules),
        "de-duplicate: addresses, contents, likeness": (megabytes, unique),
        "  likeness alone, minhash": (megabytes, near("minhash")),
        "  likeness alone, simhash": (megabytes, near("simhash")),
        "  Bloom filter, million keys": (2.0, lambda: Bloom(2_000_000, 0.001).test_and_add(keys)),
    }
    for name, files in scorers.items():
        if files:
            jobs[f"score: {name}"] = (size_of([text for code in files for text in pages[code]]), scoring(files))
    return jobs


def run_jobs(pages: dict[str, list[str]], scorers: dict[str, Path], folder: Path) -> dict[str, tuple[float, Job]]:
    """The whole `ziya factory run`, files to files, on one process."""
    for code, texts in pages.items():
        write_rows(folder / "raw" / f"{code}.jsonl.zst", [{"text": text} for text in texts])
    table = {
        "run": {"output": str(folder / "out")},
        "source": [{"name": code, "paths": [str(folder / "raw" / f"{code}.jsonl.zst")]} for code in pages],
        "score": {"models": {code: str(path) for code, path in scorers.items()}},
    }

    def job() -> None:
        for path in sorted((folder / "out").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        pipeline.run(recipe.parse(table), 1, lambda line: None)

    return {WHOLE: (size_of([text for texts in pages.values() for text in texts]), job)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with storage.lines_out(path) as file:
        for row in rows:
            storage.write_line(file, row)


def peer_jobs(pages: dict[str, list[str]]) -> dict[str, tuple[float, Job]]:
    """What of the peers is installed, as each one's own documentation uses it."""
    jobs: dict[str, tuple[float, Job]] = {}
    both = [text for texts in pages.values() for text in texts]
    if find_spec("rensa"):
        import rensa

        def rensa_near() -> None:
            index = rensa.RMinHashLSH(threshold=0.5, num_perm=128, num_bands=32)
            for at, text in enumerate(both):
                made = rensa.RMinHash(num_perm=128, seed=42)
                made.update(text.split() if " " in text[:200] else [text[i : i + 2] for i in range(len(text) - 1)])
                index.query(made)
                index.insert(at, made)

        jobs["rensa, near-duplicates"] = (size_of(both), rensa_near)
    if find_spec("rbloom"):
        import rbloom

        keys = np.random.default_rng(0).integers(0, 2**63, 500_000, dtype=np.int64).tolist()

        def rbloom_keys() -> None:
            bloom = rbloom.Bloom(2_000_000, 0.001)
            for key in keys:
                _ = key in bloom
                bloom.add(key)

        jobs["rbloom, million keys"] = (0.5, rbloom_keys)
    if find_spec("datatrove"):
        jobs |= datatrove_jobs(pages)
    return jobs


def datatrove_jobs(pages: dict[str, list[str]]) -> dict[str, tuple[float, Job]]:
    """Its filters with its own defaults, on a tenth of the text: they are slow."""
    from datatrove.data import Document as Theirs
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.typeshelper import Languages

    jobs: dict[str, tuple[float, Job]] = {}
    for code, name in (("zh", Languages.mandarin_chinese), ("en", Languages.english)):
        some = pages[code][: max(len(pages[code]) // 10, 1)]
        filters = [
            GopherRepetitionFilter(language=name),
            GopherQualityFilter(language=name),
            C4QualityFilter(language=name, filter_no_terminal_punct=False),
            FineWebQualityFilter(language=name),
        ]

        def job(some: list[str] = some, filters: list[Any] = filters) -> None:
            for at, text in enumerate(some):
                for each in filters:
                    each.filter(Theirs(text=text, id=str(at)))

        jobs[DATATROVE.format(code)] = (size_of(some), job)
    return jobs
