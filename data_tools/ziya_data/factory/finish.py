"""The end of a run: the gate, the final format, kept / heldout / dropped in place, the report's numbers."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from ziya_data._factory import Classifier
from ziya_data.document import Document
from ziya_data.factory import output, score, storage
from ziya_data.factory.evaluate import chosen, evaluate
from ziya_data.factory.parts import STAGES, Bounds
from ziya_data.factory.recipe import Recipe
from ziya_data.factory.resolve import Resolved
from ziya_data.factory.tally import Shard, Tally

ZIYA2 = (100.0, 85.34, 54.40, 34.67)
"""Per cent left of Ziya2's corpus: raw, after preprocessing, after score and rules, after de-duplication (Fig. 2)."""


def finish(
    recipe: Recipe,
    shards: list[Shard],
    work: Path,
    out: Path,
    models: dict[str, score.Scorer],
    total: Tally,
    by_source: dict[str, Tally],
    bounds: dict[str, Bounds],
    resolved: Resolved,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Writes kept/, heldout/ and dropped/ and returns the report without its times and pictures."""
    begin = time.perf_counter()
    sample = read_sample(recipe, shards, work, resolved.wanted)
    collect(recipe, shards, work, out)
    total.seconds["collect"] += time.perf_counter() - begin
    begin = time.perf_counter()
    verdict = evaluate(sample, recipe.evaluate, models)
    total.seconds["evaluate"] += time.perf_counter() - begin
    gate = "passed" if verdict["passed"] else "FAILED: " + (", ".join(verdict["failed"]) or "nothing was kept")
    say(f"gate     {verdict['documents']:,} documents looked at: {gate}")
    if verdict["failed"]:
        say(f"         too many documents by these metrics (report.html); ziya factory tighten {out} says what to move")
    return {
        "recipe": plain(recipe),
        "stages": list(STAGES),
        "ziya2": list(ZIYA2),
        "totals": stage_totals(total),
        "funnel": funnel(by_source),
        "kept": written_counts(total, "kept"),
        "heldout": written_counts(total, "heldout"),
        "reasons": {
            reason: {"documents": n, "bytes": total.reason_bytes[reason]} for reason, n in total.reasons.most_common()
        },
        "struck": dict(total.struck.most_common()),
        "score": scores(by_source, bounds, models),
        "samples": total.samples,
        "drop_samples": drop_samples(total),
        "evaluate": verdict,
        "pages_in_index": resolved.pages,
        "clusters": {**resolved.clusters, "texts": total.clusters},
        "seconds": {part: round(seconds, 2) for part, seconds in total.seconds.items()},
    }


def collect(recipe: Recipe, shards: list[Shard], work: Path, out: Path) -> None:
    """kept/<shard>.jsonl.zst, dropped/<shard>.jsonl.zst, heldout/<language>.jsonl, of what the shards left.

    Files are moved: a run that is killed here finds them gone and writes those shards again.
    """
    written = work / "write"
    with storage.replacing_folder(out / "heldout") as folder:
        for language in recipe.preprocess.languages:
            name = f"{language}.jsonl"
            storage.join((written / f"{shard.name}.{name}" for shard in shards), folder / name)
    for place, suffix in (("kept", ".jsonl.zst"), ("dropped", ".drops.jsonl.zst")):
        with storage.replacing_folder(out / place) as folder:
            for shard in shards:
                (written / (shard.name + suffix)).replace(folder / f"{shard.name}.jsonl.zst")


def read_sample(recipe: Recipe, shards: list[Shard], work: Path, wanted: int) -> list[Document]:
    """The documents that the gate looks at, in the order in which they were drawn, whichever shard they lie in."""
    found = [
        document
        for shard in shards
        for batch in storage.read_batches(work / "write" / f"{shard.name}.sample.zst")
        for document in batch
    ]
    return sorted(found, key=lambda item: (chosen(item.id, recipe.run.seed, "evaluate"), item.id))[:wanted]


def written_counts(tally: Tally, place: str) -> dict[str, dict[str, int]]:
    """Source (of kept) or language (of heldout) -> documents and bytes."""
    return {
        key.partition("/")[2]: {"documents": n, "bytes": tally.written_bytes[key]}
        for key, n in tally.written.items()
        if key.startswith(place + "/")
    }


def plain(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe in the form that recipe.toml has: every knob, defaults too."""
    table = asdict(recipe)
    table["rules"] = {
        name: {language: False if limit is None else limit for language, limit in limits.items()}
        for name, limits in recipe.rules.limits.items()
    }
    table["source"] = [{**row, "paths": list(row["paths"]), "skip": list(row["skip"])} for row in table["source"]]
    for section, name in (("preprocess", "languages"), ("decontaminate", "files"), ("deduplicate", "against")):
        table[section][name] = list(table[section][name])
    return table


def stage_totals(tally: Tally) -> list[dict[str, Any]]:
    """Documents and bytes after each stage, and their share of the raw ones in per cent."""
    rows: list[dict[str, Any]] = []
    for stage in STAGES:
        documents = sum(n for key, n in tally.documents.items() if key.startswith(stage + "/"))
        size = sum(n for key, n in tally.bytes.items() if key.startswith(stage + "/"))
        first = rows[0] if rows else {"documents": documents, "bytes": size}
        share = 100 * size / max(first["bytes"], 1)
        rows.append({"stage": stage, "documents": documents, "bytes": size, "share": round(share, 2)})
    return rows


def funnel(by_source: dict[str, Tally]) -> list[dict[str, Any]]:
    """One row a source and language: documents and bytes left after each stage."""
    rows = []
    for name, tally in by_source.items():
        languages = sorted({key.partition("/")[2] for key in tally.documents})
        for language in languages:
            keys = [f"{stage}/{language}" for stage in STAGES]
            rows.append(
                {
                    "source": name,
                    "language": language,
                    "documents": [tally.documents[key] for key in keys],
                    "bytes": [tally.bytes[key] for key in keys],
                }
            )
    return rows


def scores(
    by_source: dict[str, Tally], bounds: dict[str, Bounds], models: dict[str, score.Scorer]
) -> list[dict[str, Any]]:
    """Histograms of perplexity in bins of a tenth of a factor e, or of a classifier's score in tenths, with the cuts,
    for the report."""
    rows = []
    for name, tally in by_source.items():
        for language, histogram in sorted(tally.histograms.items()):
            coarse: Counter[int] = Counter()
            for place, n in histogram.items():
                coarse[place * 10 // score.STEP] += n
            cut = bounds[name].get(language)
            measure = "score" if isinstance(models[language], Classifier) else "perplexity"
            rows.append(
                {
                    "source": name,
                    "language": language,
                    "measure": measure,
                    "histogram": {str(place): coarse[place] for place in sorted(coarse)},
                    "high": round(score.middle_of(cut[0], measure), 2) if cut else None,
                    "medium": round(score.middle_of(cut[1], measure), 2) if cut else None,
                }
            )
    return rows


def drop_samples(total: Tally, reasons: int = 12) -> list[dict[str, Any]]:
    """The first few drops of the commonest reasons, for the report."""
    return [record for reason, _ in total.reasons.most_common(reasons) for record in total.drops[reason]]


def publish(recipe: Recipe, report: dict[str, Any], out: Path) -> None:
    """recipe.toml, report.html, and report.json last: it says that the run is finished."""
    from ziya_data.factory.report import page  # matplotlib: only needed here, and slow to load

    with storage.replacing(out / "recipe.toml") as temporary:
        temporary.write_text(output.HEADER + tomli_w.dumps(plain(recipe)), encoding="utf-8")
    with storage.replacing(out / "report.html") as temporary:
        temporary.write_text(page(report), encoding="utf-8")
    storage.sweep(out)
    storage.write_json(out / "report.json", report)
