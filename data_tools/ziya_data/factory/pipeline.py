"""The whole run: prepare -> filter -> resolve -> write -> finish; all but resolve and finish in parallel, by shards.

OUT/work/<step>/<shard>....   what a step leaves of a shard, and its marker (steps.py)
OUT/kept, heldout, dropped, seen, report.json, report.html, recipe.toml
"""

import json
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from ziya_data.factory import decontaminate, executors, finish, index, output, parts, score
from ziya_data.factory.keys import step_keys
from ziya_data.factory.read import shards_of
from ziya_data.factory.recipe import Recipe
from ziya_data.factory.resolve import Resolved, resolve_shards
from ziya_data.factory.steps import Say, Workers, each, marked
from ziya_data.factory.tally import Shard, Tally


def run(
    recipe: Recipe,
    workers: int = 1,
    say: Say = print,
    part: tuple[int, int] | None = None,
    executor: str = "processes",
    address: str = "",
) -> dict[str, Any]:
    """Runs a recipe, or goes on with it, and returns the report (also OUT/report.json).

    With `part` (k, n) it does no more than prepare and filter the shards k, k + n, k + 2 n ..., and returns {}: several
    machines do one each, and a run without `part` finds their work done. Filtering waits until all shards of a source
    that is ranked are prepared, so `part` is run twice.

    `executor` says who does the work: `processes` of this machine, or `ray`, a cluster at `address` (executors.py).

    The files written are the same whatever `workers`, `part` and `executor` are. Raises ValueError or FileNotFoundError
    before any work when an input, a scorer or an older index is missing, or when the output folder holds what no run of
    ours wrote.
    """
    begin = time.perf_counter()
    team = executors.start(executor, workers, address)
    out = Path(recipe.run.output)
    shards = [Shard(source, path, n) for source in recipe.source for n, path in enumerate(shards_of(source))]
    folders = [Path(path) for source in recipe.source for path in source.paths if Path(path).is_dir()]
    output.check(out, [shard.path for shard in shards], folders)
    models = score.load_models(recipe.score)
    announce(recipe, say)
    for folder in recipe.deduplicate.against:
        if Path(folder).resolve() == (out / "seen").resolve():
            raise ValueError(
                f"deduplicate.against names {folder}, which this run writes; name seen/ of earlier runs alone"
            )
        pages = index.check(Path(folder), recipe.deduplicate.method)
        say(f"against  {folder}: {pages:,} pages")
    keys = step_keys(recipe, shards)
    done = out / "report.json"
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")).get("key") == keys["finish"][0]:
        say(f"{out} is finished and nothing changed; remove it to run again")
        report: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return report
    if done.is_file():
        say(f"{out} holds a finished run of another recipe or input; it is replaced")
    work = output.begin(out)
    with output.claimed(work, shared=part is not None), team as pool:
        if part:
            run_part(recipe, shards, keys, work, pool.run, say, part)
            return {}
        prepared = each("prepare", partial(prepare, recipe, work), shards, keys["prepare"], work, pool.run, say)
        bounds = bounds_of(recipe, shards, prepared)
        filtered = each(
            "filter", partial(filter_shard, recipe, bounds, work), shards, keys["filter"], work, pool.run, say
        )
        done.unlink(missing_ok=True)  # from here on the outputs change: they are no longer what it tells of
        resolved = resolve_shards(recipe, shards, keys["resolve"][0], work, out, pool.spread, say)
        task = partial(write_shard, recipe, resolved, work)
        written = each("write", task, shards, keys["write"], work, pool.run, say)
    total, by_source = totals(shards, prepared, filtered, written)
    total.seconds["resolve"] += resolved.seconds
    report = finish.finish(recipe, shards, work, out, models, total, by_source, bounds, resolved, say)
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
    pool: Workers,
    say: Say,
    part: tuple[int, int],
) -> None:
    """Prepares the shards k, k + n ..., and filters those of them whose source is prepared as a whole."""
    mine = range(part[0], len(shards), part[1])
    own = [shards[i] for i in mine]
    each("prepare", partial(prepare, recipe, work), own, [keys["prepare"][i] for i in mine], work, pool, say)
    found = [marked(work / "prepare", shard, key) for shard, key in zip(shards, keys["prepare"], strict=True)]
    ranked = {source.name for source in recipe.source if recipe.score.models and "score" not in source.skip}
    missing = {
        shard.source.name: shard.name
        for shard, tally in zip(shards, found, strict=True)
        if tally is None and shard.source.name in ranked
    }
    bounds = bounds_of(recipe, shards, [tally or Tally() for tally in found])
    ready = [i for i in mine if shards[i].source.name not in missing]
    task = partial(filter_shard, recipe, bounds, work)
    each("filter", task, [shards[i] for i in ready], [keys["filter"][i] for i in ready], work, pool, say)
    if left := len(own) - len(ready):
        example = next(iter(missing.values()))
        say(f"filter   {left} shards wait for others of their source, such as {example}; run this again after them")
    elif all(marked(work / "filter", shard, key) for shard, key in zip(shards, keys["filter"], strict=True)):
        say(f"all {len(shards)} shards are filtered: run it once more without --shard")


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


def write_shard(recipe: Recipe, resolved: Resolved, work: Path, shard: Shard) -> Tally:
    return parts.write_shard(shard, recipe, resolved, work)


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
