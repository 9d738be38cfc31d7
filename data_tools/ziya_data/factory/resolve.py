"""The only step that must be done in order: who of all documents stays, decided by fingerprints; a small share of a
run's time."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziya_data.factory import fingerprints, storage
from ziya_data.factory.deduplicate import Verdicts, resolve
from ziya_data.factory.index import Index
from ziya_data.factory.partition import Spread
from ziya_data.factory.recipe import Recipe
from ziya_data.factory.steps import Say
from ziya_data.factory.tally import Shard

CHUNK = 1 << 16
"""Documents that the index is asked about at once."""


@dataclass(frozen=True)
class Resolved:
    """What the resolving of all shards left, besides the verdicts and seen/."""

    pages: int
    """in the index of likeness."""
    wanted: int
    """Documents that the gate is to look at,"""
    last_draw: float
    """those whose number is not above this one."""
    clusters: dict[str, Any]
    """Of near-duplicates (clusters.Copies.summary)."""
    seconds: float


def resolve_shards(
    recipe: Recipe, shards: list[Shard], key: str, work: Path, out: Path, spread: Spread, say: Say
) -> Resolved:
    """De-duplicates in the recipe's order, which decides who stays: work/resolve/<shard>.jsonl holds the verdicts on
    those that go. Writes seen/ and, last, the marker of the whole step. `spread` makes the partitions of the indexes.
    """
    begin = time.perf_counter()
    folder = work / "resolve"
    marker = folder / "done.json"
    if marker.is_file() and (out / "seen").is_dir():
        record = storage.read_json(marker)
        if record.pop("key") == key:
            say("resolve  is done already")
            return Resolved(**record)
    marker.unlink(missing_ok=True)
    settings = recipe.deduplicate
    folder.mkdir(parents=True, exist_ok=True)
    pages = sum(len(fingerprints.read(work / "filter", shard.name)) for shard in shards)
    index = Index(replace(settings, capacity=max(settings.capacity, pages)), spread, scratch=folder)
    old = [Index(settings, spread, Path(seen)) for seen in settings.against]
    total, count, kept_draws = 0, 0, [np.zeros(0)]
    for shard in shards:
        prints, ids = fingerprints.read(work / "filter", shard.name), fingerprints.read_ids(work / "filter", shard.name)
        verdicts: Verdicts = {}
        near = "deduplicate.near" not in shard.source.skip
        for start in range(0, 0 if "deduplicate" in shard.source.skip else len(prints), CHUNK):
            some = slice(start, start + CHUNK)
            found = resolve(prints[some], ids[some], index, old, settings, near)
            verdicts |= {start + at: verdict for at, verdict in found.items()}
        with storage.lines_out(folder / f"{shard.name}.jsonl") as file:
            for at, (reason, why) in verdicts.items():
                storage.write_line(file, {"at": at, "reason": reason, "why": why})
        total, count = total + len(prints), count + len(prints) - len(verdicts)
        draws = np.delete(prints["draw"], list(verdicts))
        kept_draws.append(draws[np.isfinite(draws)])
    with storage.replacing_folder(out / "seen") as temporary:
        index.save(temporary)
    wanted = int(max(recipe.evaluate.share * count, recipe.evaluate.at_least))
    last_draw = last_of(np.concatenate(kept_draws), wanted)
    clusters = index.copies.summary(index.ids.__getitem__)
    resolved = Resolved(len(index.ids), wanted, last_draw, clusters, time.perf_counter() - begin)
    storage.write_json(marker, {"key": key, **asdict(resolved)})
    say(f"resolve  {count:,} of {total:,} documents stay  {resolved.seconds:6.1f} s")
    return resolved


def last_of(draws: NDArray[np.float64], wanted: int) -> float:
    """The largest of the `wanted` smallest draws."""
    if wanted >= len(draws):
        return 1.0
    return float(np.partition(draws, wanted - 1)[wanted - 1]) if wanted else -1.0
