"""The whole factory on more text than a benchmark's, on one process and on two: how wall time falls."""

import resource
import shutil
import statistics
import sys
import time
from pathlib import Path

from factory_jobs import size_of, write_rows

from ziya_data.factory import pipeline, recipe

SHARD = 2.5
"""MB of text a file."""
ONE, TWO = "all five parts, one process, {:.0f} MB in {} files", "all five parts, two processes, the same"


def more_of(texts: list[str], copies: int) -> list[str]:
    """The texts, and then quarters of four of them put together, so that any two share one quarter at most: too little
    to be near, and as natural within each quarter."""
    found = list(texts)
    for copy in range(1, copies):
        for at in range(len(texts)):
            others = [texts[(at + 37 * copy * part) % len(texts)] for part in range(4)]
            found.append("".join(text[len(text) * i // 4 : len(text) * (i + 1) // 4] for i, text in enumerate(others)))
    return found


def write_shards(pages: dict[str, list[str]], copies: int, folder: Path) -> tuple[float, int]:
    """<language>-<number>.jsonl.zst of SHARD megabytes each. Returns how many megabytes and files these are."""
    megabytes, files = 0.0, 0
    for code, texts in pages.items():
        more = more_of(texts, copies)
        size = size_of(more)
        parts = max(round(size / SHARD), 2)
        for part in range(parts):
            rows = [{"text": text} for text in more[part * len(more) // parts : (part + 1) * len(more) // parts]]
            write_rows(folder / f"{code}-{part:03d}.jsonl.zst", rows)
        megabytes, files = megabytes + size, files + parts
    return megabytes, files


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def scale_rates(
    pages: dict[str, list[str]], scorers: dict[str, Path], copies: int, rounds: int, folder: Path
) -> dict[str, tuple[float, float]]:
    """Job -> (MB a CPU second, MB a second of wall clock): one process and two by turns, medians of `rounds`."""
    megabytes, files = write_shards(pages, copies, folder / "more")
    table = {
        "run": {"output": str(folder / "scaled")},
        "source": [{"name": code, "paths": [str(folder / "more" / f"{code}-*.jsonl.zst")]} for code in pages],
        "score": {"models": {code: str(path) for code, path in scorers.items()}},
    }
    names = {1: ONE.format(megabytes, files), 2: TWO}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names.values()}
    for _ in range(rounds):
        for workers, name in names.items():
            shutil.rmtree(folder / "scaled", ignore_errors=True)
            cpu, wall = cpu_seconds(), time.perf_counter()
            pipeline.run(recipe.parse(table), workers, lambda line: None)
            cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
            found[name].append((megabytes / cpu, megabytes / wall))
            print(f"{name}: {wall:.1f} s, {cpu:.1f} s of CPU", file=sys.stderr)
    return {
        name: (statistics.median(a for a, _ in rows), statistics.median(b for _, b in rows))
        for name, rows in found.items()
    }
