"""Hours and machines for more text: before a run from a sample of its sources, after it from its own rates."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ziya_data.document import Document
from ziya_data.factory import pipeline, storage
from ziya_data.factory.read import read, shards_of
from ziya_data.factory.recipe import Recipe, Source

SAMPLE = 2_000_000
"""Characters of text of each source that the estimate before a run is made from."""
LEAST = 1_000_000
"""Bytes of text below which nothing is estimated: what a run costs once would count for too much."""
ONE_PROCESS = ("resolve", "collect", "evaluate")
"""Parts that one process does for all shards; the others run a process a core."""
CORES = (1, 16, 64, 256)
ZIYA2_HOUR = 15e9
"""Bytes an hour of Ziya2's own factory, on hardware that it does not name."""


def estimate(report: dict[str, Any], terabytes: float) -> str:
    """A few lines: what `terabytes` (10^12 bytes) of text would take if they were like this run's.

    Text is counted as it was read, after HTML has been taken off. One line when the run is too small to tell.
    """
    size, seconds = report["totals"][0]["bytes"], report["seconds"]
    if size < LEAST:
        return f"{size:,} bytes of text are too few to estimate from; {LEAST:,} do"
    together = sum(seconds[part] for part in seconds if part not in ONE_PROCESS)
    # The gate looks at a share of what is kept, but at no fewer documents than `at_least`, as in a small run.
    kept, looked_at = report["totals"][-1]["documents"], report["evaluate"]["documents"]
    gate = min(report["recipe"]["evaluate"]["share"] * kept / max(looked_at, 1), 1.0)
    alone = sum(seconds.get(part, 0.0) * (gate if part == "evaluate" else 1.0) for part in ONE_PROCESS)
    times = terabytes * 1e12 / size / 3600
    rate = size / 1e6 / (together + alone)
    lines = [f"{terabytes:g} TB of text like this run's {size / 1e6:.1f} MB, at {rate:.2f} MB a core second:"]
    for cores in CORES:
        hours = times * (together / cores + alone)
        lines.append(
            f"{cores:5} cores {hours:12,.1f} h  ({times * alone:,.1f} h of them in one process: "
            f"{', '.join(part for part in ONE_PROCESS if part in seconds)})"
        )
    lines.append(f"Ziya2 {terabytes * 1e12 / ZIYA2_HOUR:12,.1f} h  (15 GB an hour, on hardware that it does not name)")
    return "\n".join(lines)


def sample(recipe: Recipe) -> dict[str, Any]:
    """The report of a run over the first `SAMPLE` characters of each source, on one process, of which nothing stays.

    Raises what `pipeline.run` raises.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        texts = {source.name: beginning(source) for source in recipe.source}
        reading = time.perf_counter() - begin
        for source, documents in texts.items():
            with storage.lines_out(folder / f"{source}.jsonl.zst") as file:
                for item in documents:
                    record = {"text": item.text, "url": item.url, "language": item.language, "kind": item.kind}
                    storage.write_line(file, record | item.metadata)
        small = replace(
            recipe,
            run=replace(recipe.run, output=str(folder / "out")),
            source=tuple(replace(item, paths=(str(folder / f"{item.name}.jsonl.zst"),)) for item in recipe.source),
            deduplicate=replace(recipe.deduplicate, capacity=min(recipe.deduplicate.capacity, 1_000_000), against=()),
        )
        report = pipeline.run(small, say=lambda line: None)
    report["seconds"]["read"] = reading  # of the source's own files, HTML and archives
    return report


def beginning(source: Source) -> list[Document]:
    """The first documents of a source."""
    found: list[Document] = []
    characters = 0
    for number, shard in enumerate(shards_of(source)):
        for document in read(source, shard, number):
            found.append(document)
            characters += len(document.text)
            if characters >= SAMPLE:
                return found
    return found
