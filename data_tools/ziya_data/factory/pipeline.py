"""The whole run: prepare -> filter -> unique -> finish, a shard at a time, and where each run left off.

    OUT/work/<step>/<shard>.jsonl.zst          documents that came out of a step
                    <shard>.dropped.jsonl.zst  documents that it dropped
                    <shard>.json               its tally, written last: the completion marker
    OUT/kept, heldout, dropped, seen, report.json, report.html, recipe.toml

A marker carries a key of all that went into it (settings, input file, code, the step before). A run that finds the
same key takes the shard as done; anything else is made again. So a killed run goes on, and a changed recipe redoes
what it touches and nothing more.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ziya_data.factory import decontaminate, finish, output, parts, score, storage
from ziya_data.factory.deduplicate import Index
from ziya_data.factory.keys import step_keys
from ziya_data.factory.parts import Shard, Tally
from ziya_data.factory.read import shards_of
from ziya_data.factory.recipe import Recipe

Say = Callable[[str], None]


def run(recipe: Recipe, workers: int = 1, say: Say = print, part: tuple[int, int] | None = None) -> dict[str, Any]:
    """Runs a recipe, or goes on with it, and returns the report (also OUT/report.json).

    With `part` (k, n) it does no more than prepare and filter the shards k, k + n, k + 2 n ..., and returns {}: several
    machines do one each, and a run without `part` finds their work done. Filtering waits until all shards of a source
    that is ranked are prepared, so `part` is run twice.

    The files written are the same whatever `workers` and `part` are. Raises ValueError or FileNotFoundError before any
    work when an input, a scorer or an older index is missing, or when the output folder holds what no run of ours
    wrote.
    """
    begin = time.perf_counter()
    if workers < 1:
        raise ValueError(f"workers = {workers} must be at least 1")
    out = Path(recipe.run.output)
    shards = [Shard(source, path, n) for source in recipe.source for n, path in enumerate(shards_of(source))]
    output.check(out, [shard.path for shard in shards])
    models = score.load_models(recipe.score)
    announce(recipe, say)
    old = [Index.load(Path(folder), recipe.deduplicate.method) for folder in recipe.deduplicate.against]
    keys = step_keys(recipe, shards)
    done = out / "report.json"
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")).get("key") == keys["finish"][0]:
        say(f"{out} is finished and nothing changed; remove it to run again")
        report: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return report
    work = output.begin(out)
    if part:
        run_part(recipe, shards, keys, work, workers, say, part)
        return {}
    prepared = each(partial(prepare, recipe, work), shards, keys["prepare"], work / "prepare", workers, say)
    bounds = bounds_of(recipe, shards, prepared)
    tasks = partial(filter_shard, recipe, bounds, work)
    filtered = each(tasks, shards, keys["filter"], work / "filter", workers, say)
    done.unlink(missing_ok=True)  # from here on the outputs change: they are no longer what it tells of
    unique, index = unique_shards(recipe, shards, old, keys["unique"], work, out, say)
    total, by_source = totals(shards, prepared, filtered, unique)
    report = finish.finish(recipe, shards, work, out, models, total, by_source, bounds, say)
    report["pages_in_index"] = index
    report["wall_seconds"] = round(time.perf_counter() - begin, 2)
    report["key"] = keys["finish"][0]
    finish.publish(recipe, report, out)
    shutil.rmtree(work)
    return report


def run_part(
    recipe: Recipe,
    shards: list[Shard],
    keys: dict[str, list[str]],
    work: Path,
    workers: int,
    say: Say,
    part: tuple[int, int],
) -> None:
    """Prepares the shards k, k + n ..., and filters those of them whose source is prepared as a whole."""
    mine = range(part[0], len(shards), part[1])
    own = [shards[i] for i in mine]
    each(partial(prepare, recipe, work), own, [keys["prepare"][i] for i in mine], work / "prepare", workers, say)
    found = [marked(work / "prepare", shard, key) for shard, key in zip(shards, keys["prepare"], strict=True)]
    ranked = {source.name for source in recipe.source if recipe.score.models and "score" not in source.skip}
    missing = {
        shard.source.name: shard.name
        for shard, tally in zip(shards, found, strict=True)
        if tally is None and shard.source.name in ranked
    }
    bounds = bounds_of(recipe, shards, [tally or Tally() for tally in found])
    ready = [i for i in mine if shards[i].source.name not in missing]
    tasks = partial(filter_shard, recipe, bounds, work)
    each(tasks, [shards[i] for i in ready], [keys["filter"][i] for i in ready], work / "filter", workers, say)
    if left := len(own) - len(ready):
        example = next(iter(missing.values()))
        say(f"filter   {left} shards wait for others of their source, such as {example}; run this again after them")


def announce(recipe: Recipe, say: Say) -> None:
    """Reads the benchmark files now: a mistake there must not show after hours."""
    settings = recipe.decontaminate
    if not settings.files:
        return
    grams, short = decontaminate.grams_of(settings, decontaminate.stamps(settings))
    unseen = f"; {short.total():,} texts are shorter than {settings.shortest} and cannot be looked for"
    say(f"decontaminate: {len(grams):,} runs of tokens of {len(settings.files)} files{unseen if short.total() else ''}")


def summary(report: dict[str, Any]) -> str:
    """A few lines for the terminal."""
    lines = [
        f"{row['stage']:12} {row['documents']:9,} documents {row['bytes'] / 1e6:9.2f} MB {row['share']:6.2f} %"
        if row["stage"] != "score" or report["score"]
        else f"{row['stage']:12} not scored"
        for row in report["totals"]
    ]
    top = ", ".join(f"{reason} {count['documents']:,}" for reason, count in list(report["reasons"].items())[:6])
    return "\n".join(
        [*lines, f"dropped for: {top or 'nothing'}", f"report: {report['recipe']['run']['output']}/report.html"]
    )


def nothing_kept(report: dict[str, Any]) -> str:
    """One line that says why a run kept no document, by its commonest reason; "" when it kept some."""
    raw, last = report["totals"][0]["documents"], report["totals"][-1]["documents"]
    if last:
        return ""
    if not raw:
        return "nothing was kept: the input holds no record; check paths in the recipe"
    reason, count = next(iter(report["reasons"].items()))
    example = next(record for record in report["drop_samples"] if record["reason"] == reason)
    what = " ".join((example.get("why") or example["text"] or "an empty text").split())[:300]
    return (
        f"nothing was kept of {raw:,} documents; {count['documents']:,} were dropped for {reason}, such as "
        f"{example['id']}: {what}"
    )


def prepare(recipe: Recipe, work: Path, shard: Shard) -> Tally:
    return parts.prepare(shard, recipe, score.load_models(recipe.score), work / "prepare")


def filter_shard(recipe: Recipe, bounds: dict[str, parts.Bounds], work: Path, shard: Shard) -> Tally:
    return parts.filter_shard(shard, recipe, bounds[shard.source.name], work / "prepare", work / "filter")


def each(
    task: Callable[[Shard], Tally], shards: list[Shard], keys: list[str], folder: Path, workers: int, say: Say
) -> list[Tally]:
    """Does one step on all shards, in processes when `workers` > 1, and writes a marker behind each."""
    tallies = {i: tally for i, key in enumerate(keys) if (tally := marked(folder, shards[i], key)) is not None}
    todo = [i for i in range(len(shards)) if i not in tallies]
    unmark(folder, [shards[i] for i in todo])
    if len(todo) < len(shards):
        say(f"{folder.name:8} {len(shards) - len(todo)} of {len(shards)} shards are done already")

    def collect(results: Iterable[tuple[Tally, float]]) -> None:
        for i, (tally, seconds) in zip(todo, results, strict=True):
            tallies[i] = tally
            mark(folder, shards[i], keys[i], tally)
            progress(folder.name, shards[i], tally, seconds, say)

    jobs = [shards[i] for i in todo]
    if workers == 1 or len(jobs) < 2:
        collect(map(partial(timed, task), jobs))
    else:
        # spawn: a fork would carry over the threads that numpy and pyarrow may have started.
        with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
            try:
                collect(pool.map(partial(timed, task), jobs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [tallies[i] for i in range(len(shards))]


def timed(task: Callable[[Shard], Tally], shard: Shard) -> tuple[Tally, float]:
    begin = time.perf_counter()
    return task(shard), time.perf_counter() - begin


def unique_shards(
    recipe: Recipe, shards: list[Shard], old: list[Index], keys: list[str], work: Path, out: Path, say: Say
) -> tuple[list[Tally], int]:
    """De-duplicates in the recipe's order, which decides who stays; one step, for each shard needs those before it.

    Returns the tallies and how many pages the index of likeness holds.
    """
    folder = work / "unique"
    tallies = [marked(folder, shard, key) for shard, key in zip(shards, keys, strict=True)]
    done = [tally for tally in tallies if tally is not None]
    if len(done) == len(shards) and (out / "seen").is_dir():
        say(f"unique   {len(done)} of {len(shards)} shards are done already")
        return done, len(Index.load(out / "seen").ids)
    unmark(folder, shards)
    index = Index.empty(recipe.deduplicate)
    results = []
    for shard in shards:
        begin = time.perf_counter()
        tally = parts.unique(shard, recipe, index, old, work / "filter", folder)
        results.append(tally)
        progress("unique", shard, tally, time.perf_counter() - begin, say)
    if index.contents.added > recipe.deduplicate.capacity:
        say(f"warning: {index.contents.added} pages are more than deduplicate.capacity; raise it")
    with storage.replacing_folder(out / "seen") as temporary:
        index.save(temporary)
    for shard, key, tally in zip(shards, keys, results, strict=True):
        mark(folder, shard, key, tally)
    return results, len(index.ids)


def marked(folder: Path, shard: Shard, key: str) -> Tally | None:
    """The tally of a shard that this step finished with the same key."""
    marker = folder / f"{shard.name}.json"
    if not marker.is_file():
        return None
    record = json.loads(marker.read_text(encoding="utf-8"))
    return Tally.from_json(record) if record["key"] == key else None


def mark(folder: Path, shard: Shard, key: str, tally: Tally) -> None:
    storage.write_json(folder / f"{shard.name}.json", {"key": key, **tally.to_json()})


def unmark(folder: Path, shards: list[Shard]) -> None:
    """Before a step is done again: a marker of another recipe must not outlive the files that it stands for."""
    for shard in shards:
        (folder / f"{shard.name}.json").unlink(missing_ok=True)


def progress(step: str, shard: Shard, tally: Tally, seconds: float, say: Say) -> None:
    """A line for a shard that is done."""
    stage = {"prepare": "preprocess", "filter": "rules", "unique": "deduplicate"}[step]
    kept = {key: n for key, n in tally.documents.items() if key.startswith(stage)}
    size = sum(n for key, n in tally.bytes.items() if key.startswith(stage)) + tally.reason_bytes.total()
    count = sum(kept.values()) + tally.reasons.total()
    megabytes = size / 1e6
    say(
        f"{step:8} {shard.name:24} {count:8,} documents {megabytes:8.1f} MB  kept {sum(kept.values()):8,}"
        f"  {seconds:6.1f} s  {megabytes / max(seconds, 1e-9):6.1f} MB/s"
    )


def bounds_of(recipe: Recipe, shards: list[Shard], tallies: list[Tally]) -> dict[str, parts.Bounds]:
    """Source -> language -> cut, from the histograms of all shards of the source."""
    merged: dict[str, dict[str, Counter[int]]] = {source.name: {} for source in recipe.source}
    for shard, tally in zip(shards, tallies, strict=True):
        for language, histogram in tally.histograms.items():
            merged[shard.source.name].setdefault(language, Counter()).update(histogram)
    return {
        name: {language: score.cuts(histogram, recipe.score) for language, histogram in languages.items()}
        for name, languages in merged.items()
    }


def totals(shards: list[Shard], *steps: list[Tally]) -> tuple[Tally, dict[str, Tally]]:
    """The sum of all tallies, and the sums by source (with the histograms, which only make sense there)."""
    total = Tally()
    by_source: dict[str, Tally] = {}
    for tallies in steps:
        for shard, tally in zip(shards, tallies, strict=True):
            total.add(tally)
            mine = by_source.setdefault(shard.source.name, Tally())
            mine.add(tally)
            for language, histogram in tally.histograms.items():
                mine.histograms[language].update(histogram)
    return total, by_source
