"""The end of a run: the gate, the final format, kept / heldout / dropped in place, the report's numbers."""

import heapq
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from ziya_data._factory import LanguageModel
from ziya_data.document import Document
from ziya_data.factory import output, score, storage
from ziya_data.factory.evaluate import chosen, evaluate
from ziya_data.factory.formats import written
from ziya_data.factory.parts import STAGES, Bounds, Shard, Tally
from ziya_data.factory.recipe import Recipe

ZIYA2 = (100.0, 85.34, 54.40, 34.67)
"""Per cent left of Ziya2's corpus: raw, after preprocessing, after score and rules, after de-duplication (Fig. 2)."""


def finish(
    recipe: Recipe,
    shards: list[Shard],
    work: Path,
    out: Path,
    models: dict[str, LanguageModel],
    total: Tally,
    by_source: dict[str, Tally],
    bounds: dict[str, Bounds],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Writes kept/, heldout/ and dropped/ and returns the report without its times and pictures."""
    begin = time.perf_counter()
    written_counts = write_kept(recipe, shards, work, out)
    write_dropped(shards, work, out)
    total.seconds["collect"] += time.perf_counter() - begin
    begin = time.perf_counter()
    verdict = evaluate(draw_sample(recipe, shards, work, total), recipe.evaluate, models)
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
        "kept": written_counts["kept"],
        "heldout": written_counts["heldout"],
        "reasons": {
            reason: {"documents": n, "bytes": total.reason_bytes[reason]} for reason, n in total.reasons.most_common()
        },
        "struck": dict(total.struck.most_common()),
        "score": scores(by_source, bounds),
        "samples": total.samples,
        "drop_samples": drop_samples(shards, out, total),
        "evaluate": verdict,
        "seconds": {part: round(seconds, 2) for part, seconds in total.seconds.items()},
    }


def unique_documents(shard: Shard, work: Path) -> Iterator[Document]:
    """What came out of the last part, in order."""
    return map(storage.from_record, storage.read_lines(work / "unique" / f"{shard.name}.jsonl.zst"))


Counts = dict[str, dict[str, int]]


def write_kept(recipe: Recipe, shards: list[Shard], work: Path, out: Path) -> dict[str, Counts]:
    """kept/<shard>.jsonl.zst and heldout/<language>.jsonl; their counts, by source and by language."""
    counts: dict[str, Counts] = {"kept": {}, "heldout": {}}
    with ExitStack() as stack:
        kept, heldout = (stack.enter_context(storage.replacing_folder(out / name)) for name in ("kept", "heldout"))
        held = {
            language: stack.enter_context(storage.lines_out(heldout / f"{language}.jsonl"))
            for language in recipe.preprocess.languages
        }
        for shard in shards:
            with storage.lines_out(kept / f"{shard.name}.jsonl.zst") as file:
                for document in unique_documents(shard, work):
                    apart = (
                        document.kind == "text"
                        and document.language in held
                        and chosen(document.id, recipe.run.seed, "holdout") < recipe.run.holdout
                    )
                    text = written(document)
                    where = counts["heldout" if apart else "kept"]
                    count = where.setdefault(document.language if apart else shard.source.name, new_count())
                    count["documents"] += 1
                    count["bytes"] += len(text.encode("utf-8"))
                    storage.write_line(held[document.language] if apart else file, kept_record(document, text))
    return counts


def new_count() -> dict[str, int]:
    return {"documents": 0, "bytes": 0}


def kept_record(document: Document, text: str) -> dict[str, Any]:
    """A line of kept/: the document with its text as it is to be trained on."""
    return {
        "id": document.id,
        "text": text,
        "url": document.url,
        "source": document.source,
        "language": document.language,
        "kind": document.kind,
        "quality": document.metadata.get("quality", ""),
    }


def write_dropped(shards: list[Shard], work: Path, out: Path) -> None:
    """dropped/<shard>.jsonl.zst: the drops of all steps, in the order of the parts, a zstd frame each."""
    with storage.replacing_folder(out / "dropped") as folder:
        for shard in shards:
            with (folder / f"{shard.name}.jsonl.zst").open("wb") as file:
                for step in ("prepare", "filter", "unique"):
                    with (work / step / f"{shard.name}.dropped.jsonl.zst").open("rb") as part:
                        shutil.copyfileobj(part, file)


def draw_sample(recipe: Recipe, shards: list[Shard], work: Path, total: Tally) -> list[Document]:
    """A random share of the kept prose, by hash of the id, whichever shard it lies in."""
    prose = [shard for shard in shards if shard.source.kind == "text"]
    count = sum(n for key, n in total.documents.items() if key.startswith("deduplicate/"))
    wanted = max(recipe.evaluate.share * count, recipe.evaluate.at_least)

    def numbered() -> Iterator[tuple[float, str, Document]]:
        for shard in prose:
            for document in unique_documents(shard, work):
                if document.kind == "text":
                    yield chosen(document.id, recipe.run.seed, "evaluate"), document.id, document

    best = heapq.nsmallest(int(wanted), numbered(), key=lambda item: item[:2])
    return [document for _, _, document in best]


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


def scores(by_source: dict[str, Tally], bounds: dict[str, Bounds]) -> list[dict[str, Any]]:
    """Histograms of perplexity in bins of a tenth of a factor e, with the cuts, for the report."""
    rows = []
    for name, tally in by_source.items():
        for language, histogram in sorted(tally.histograms.items()):
            coarse: Counter[int] = Counter()
            for place, n in histogram.items():
                coarse[place * 10 // score.STEP] += n
            cut = bounds[name].get(language)
            rows.append(
                {
                    "source": name,
                    "language": language,
                    "histogram": {str(place): coarse[place] for place in sorted(coarse)},
                    "high": round(score.middle_of(cut[0]), 2) if cut else None,
                    "medium": round(score.middle_of(cut[1]), 2) if cut else None,
                }
            )
    return rows


def drop_samples(
    shards: list[Shard], out: Path, total: Tally, each: int = 3, reasons: int = 12
) -> list[dict[str, Any]]:
    """The first few drops of the commonest reasons, for the report."""
    wanted = {reason: each for reason, _ in total.reasons.most_common(reasons)}
    found = []
    for shard in shards:
        for record in storage.read_lines(out / "dropped" / f"{shard.name}.jsonl.zst"):
            if wanted.get(record["reason"], 0) > 0:
                wanted[record["reason"]] -= 1
                found.append({**record, "text": record["text"][:300]})
        if not any(wanted.values()):
            break
    return sorted(found, key=lambda record: list(wanted).index(record["reason"]))


def publish(recipe: Recipe, report: dict[str, Any], out: Path) -> None:
    """recipe.toml, report.html, and report.json last: it says that the run is finished."""
    from ziya_data.factory.report import page  # matplotlib: only needed here, and slow to load

    with storage.replacing(out / "recipe.toml") as temporary:
        temporary.write_text(output.HEADER + tomli_w.dumps(plain(recipe)), encoding="utf-8")
    with storage.replacing(out / "report.html") as temporary:
        temporary.write_text(page(report), encoding="utf-8")
    storage.write_json(out / "report.json", report)
