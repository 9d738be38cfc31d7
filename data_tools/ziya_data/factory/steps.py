"""One step on all shards, a marker behind each, so that a killed run goes on.

    OUT/work/<step>/<shard>....    what the step made
                    <shard>.json   its tally, written last: the completion marker

A marker carries a key of all that went into it (settings, input file, code, the step before). A run that finds the
same key takes the shard as done; anything else is made again. So a changed recipe redoes what it touches and nothing
more.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from ziya_data.factory import storage
from ziya_data.factory.tally import Shard, Tally

Say = Callable[[str], None]
Task = Callable[[Shard], Tally]
Workers = Callable[[Task, list[Shard]], Iterator[tuple[int, Tally, float]]]
"""Does a task on shards; (position of the shard, its tally, seconds) of each one as soon as it is done."""

STAGES = {"prepare": "preprocess", "filter": "rules", "write": "deduplicate"}
"""Step -> the stage whose documents come out of it."""
FILES = {
    "prepare": (".documents.zst", ".dropped.jsonl.zst"),
    "filter": (".documents.zst", ".dropped.jsonl.zst", ".prints.npy", ".ids.txt"),
    "write": (".jsonl.zst", ".drops.jsonl.zst"),
}
"""Step -> files that it leaves of each shard. The last step's are moved to their place in the end."""


def each(
    step: str, task: Task, shards: list[Shard], keys: list[str], work: Path, run: Workers, say: Say
) -> list[Tally]:
    """Does one step on all shards that it is not done on yet."""
    folder = work / step
    tallies = {i: tally for i, key in enumerate(keys) if (tally := marked(folder, shards[i], key)) is not None}
    todo = [i for i in range(len(shards)) if i not in tallies]
    for i in todo:  # a marker of another recipe must not outlive the files that it stands for
        (folder / f"{shards[i].name}.json").unlink(missing_ok=True)
    if len(todo) < len(shards):
        say(f"{step:8} {len(shards) - len(todo)} of {len(shards)} shards are done already")
    for at, tally, seconds in run(task, [shards[i] for i in todo]):
        i = todo[at]
        tallies[i] = tally
        mark(folder, shards[i], keys[i], tally)
        progress(step, shards[i], tally, seconds, say)
    return [tallies[i] for i in range(len(shards))]


def marked(folder: Path, shard: Shard, key: str) -> Tally | None:
    """The tally of a shard that this step finished with the same key and whose files are still there."""
    marker = folder / f"{shard.name}.json"
    files = [folder / (shard.name + suffix) for suffix in FILES[folder.name]]
    if not marker.is_file() or not all(file.is_file() for file in files):
        return None
    record = json.loads(marker.read_text(encoding="utf-8"))
    return Tally.from_json(record) if record["key"] == key else None


def mark(folder: Path, shard: Shard, key: str, tally: Tally) -> None:
    storage.write_json(folder / f"{shard.name}.json", {"key": key, **tally.to_json()})


def progress(step: str, shard: Shard, tally: Tally, seconds: float, say: Say) -> None:
    """A line for a shard that is done."""
    stage = STAGES[step] + "/"
    kept = sum(n for key, n in tally.documents.items() if key.startswith(stage))
    size = sum(n for key, n in tally.bytes.items() if key.startswith(stage)) + tally.reason_bytes.total()
    megabytes = size / 1e6
    say(
        f"{step:8} {shard.name:24} {kept + tally.reasons.total():8,} documents {megabytes:8.1f} MB  kept {kept:8,}"
        f"  {seconds:6.1f} s  {megabytes / max(seconds, 1e-9):6.1f} MB/s"
    )
