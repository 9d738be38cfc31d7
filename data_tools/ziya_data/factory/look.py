"""Looking at a finished run: drops by reason, and one document's way through every part."""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from ziya_data.document import Document
from ziya_data.factory import recipe as recipes
from ziya_data.factory import score, storage
from ziya_data.factory.evaluate import chosen
from ziya_data.factory.preprocess import preprocess
from ziya_data.factory.read import read, shards_of
from ziya_data.factory.rules import DOCUMENT_RULES, TEXT_RULES, change, pages, possible


def finished(out: Path) -> Path:
    """Raises FileNotFoundError when `out` is not the folder of a finished run."""
    if not (out / "report.json").is_file():
        raise FileNotFoundError(f"{out} holds no finished factory run; run ziya factory run RECIPE.toml first")
    return out


def dropped(out: Path, reason: str = "", sample: int = 0) -> list[dict[str, Any]]:
    """Dropped documents whose reason is, or begins with, `reason`; `sample` of them drawn by hash, or all with 0.

    Raises ValueError when documents were dropped, but none for it.
    """
    found: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for path in sorted((finished(out) / "dropped").glob("*.jsonl.zst")):
        for record in storage.read_lines(path):
            counts[record["reason"]] += 1
            if record["reason"] == reason or not reason or record["reason"].startswith(reason + "."):
                found.append(record)
    if counts and not found:
        names = ", ".join(f"{name} ({n})" for name, n in counts.most_common(10))
        raise ValueError(f"no document was dropped for {reason!r}; reasons here: {names}")
    if sample:
        found.sort(key=lambda record: chosen(record["id"], 0, "inspect"))
        del found[sample:]
    return found


def kept(out: Path) -> Iterator[Document]:
    """What a finished run kept or held out, as it was written."""
    for path in (*sorted((out / "kept").glob("*.jsonl.zst")), *sorted((out / "heldout").glob("*.jsonl"))):
        for record in storage.read_lines(path):
            quality = {"quality": record.pop("quality")}
            yield Document(**record, metadata=quality)


def explain(out: Path, name: str) -> Iterator[str]:
    """Lines that walk one document through every part, with each rule's value and limit.

    Raises ValueError when the input holds no document of that id.
    """
    recipe = recipes.load(finished(out) / "recipe.toml")
    document = find(recipe, name)
    source = next(source for source in recipe.source if source.name == document.source)
    yield f"{name}: kind {document.kind}, {len(document.text):,} characters as read, skip = {list(source.skip)}"
    if "preprocess" not in source.skip:
        before = document.text
        reason = preprocess([document], recipe.preprocess)[0]
        change = "unchanged" if before == document.text else f"{len(before):,} -> {len(document.text):,} characters"
        why = f" ({document.metadata['why']})" if "why" in document.metadata else ""
        yield f"preprocess   language {document.language or '-'}, {change}: {reason or 'kept'}{why}"
    yield from explain_score(out, recipe, source, document)
    if "rules" not in source.skip and document.language:
        yield from explain_rules(recipe, document)
    yield from fate(out, name)


def find(recipe: recipes.Recipe, name: str) -> Document:
    sources = [source for source in recipe.source if name.startswith(source.name + ":")]
    for source in sources:
        for number, shard in enumerate(shards_of(source)):
            for document in read(source, shard, number):
                if document.id == name:
                    return document
    raise ValueError(f"no document {name!r} in the input; ids look like SOURCE:ID (see `ziya factory inspect`)")


def explain_score(out: Path, recipe: recipes.Recipe, source: recipes.Source, document: Document) -> Iterator[str]:
    """Its perplexity, or its score by a classifier, beside the cuts of its source and language."""
    models = score.load_models(recipe.score)
    if "score" in source.skip or document.language not in models:
        yield "score        not scored"
        return
    score.measure([document], models)
    report = storage.read_json(out / "report.json")
    for row in report["score"]:
        if row["source"] == source.name and row["language"] == document.language:
            name = row.get("measure", "perplexity")  # runs of before there were classifiers say nothing
            bounds = (
                "too few to rank" if row["high"] is None else f"high up to {row['high']}, medium up to {row['medium']}"
            )
            yield f"score        {name} {document.metadata[name]:.2f}; {source.name} {document.language}: {bounds}"


def explain_rules(recipe: recipes.Recipe, document: Document) -> Iterator[str]:
    """What each rule measures, its threshold, and what it says; then what was struck out."""
    found = pages([document.text], document.language)
    for rule in DOCUMENT_RULES:
        limit = recipe.rules.limits[rule.name].get(document.language)
        if limit is not None:
            verdict = f"DROP rules.{rule.name}" if rule.broken(found, limit)[0] else "fine"
            side = "most" if rule.above else "least"
            yield f"rules        {rule.name:18} {rule.measure(found)[0]:10.4g}  at {side} {limit:<8g} {verdict}"
    struck: Counter[str] = Counter()
    may = possible(found, recipe.rules.limits)[:, 0].tolist()
    change(deepcopy(document), found[0], recipe.rules.limits, struck, may)
    for text_rule in TEXT_RULES:
        if times := struck[f"rules.{text_rule.name}"]:
            yield f"rules        {text_rule.name:18} struck {times} times ({text_rule.level})"


def fate(out: Path, name: str) -> Iterator[str]:
    """Where the document ended: dropped with a reason, held out, or kept."""
    for folder in ("dropped", "heldout", "kept"):
        for path in sorted((out / folder).glob("*.jsonl*")):
            for record in storage.read_lines(path):
                if record["id"] == name:
                    detail = f"{record.get('reason', '')} {record.get('why', '')}".strip()
                    yield f"{folder:12} {path.name}{': ' + detail if detail else ''}"
                    return
    yield "it is in none of the outputs; the input may have changed since the run"
