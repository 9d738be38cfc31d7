"""The parts applied to one shard: what pipeline.py starts in processes. Every step leaves files and a tally.

prepare       read, preprocess, score
filter_shard  cut by score, rules, benchmarks; fingerprints of what stays
write_shard   what de-duplication decided by the fingerprints, carried out: the files that the user gets
"""

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import IO

from ziya_data.document import Document
from ziya_data.factory import clusters, fingerprints, score, storage
from ziya_data.factory.decontaminate import decontaminate
from ziya_data.factory.evaluate import chosen
from ziya_data.factory.formats import written
from ziya_data.factory.preprocess import preprocess, unread
from ziya_data.factory.read import read
from ziya_data.factory.recipe import Recipe
from ziya_data.factory.resolve import Resolved
from ziya_data.factory.rules import apply_rules
from ziya_data.factory.tally import Shard, Tally

BATCH = 512
"""Documents handed to C++ at once,"""
BATCH_CHARACTERS = 4_000_000
"""or fewer when they are long, so that memory does not grow with the longest ones."""
STAGES = ("raw", "preprocess", "score", "rules", "deduplicate")
SAMPLES = 3
"""Before/after samples a shard for the report."""


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents by the thousand or so, as the C++ side takes them."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) >= BATCH or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Output:
    """The documents and drops of one step on one shard, written as they come."""

    def __init__(self, stack: ExitStack, folder: Path, shard: Shard) -> None:
        self.kept = stack.enter_context(storage.batches_out(folder / f"{shard.name}.documents.zst"))
        self.dropped = stack.enter_context(storage.lines_out(folder / f"{shard.name}.dropped.jsonl.zst"))

    def write(self, documents: list[Document], reasons: list[str], tally: Tally) -> list[Document]:
        """Writes the drops; gives back those that stay."""
        return sift(documents, reasons, self.dropped, tally)

    def keep(self, documents: list[Document], tally: Tally) -> None:
        begin = time.perf_counter()
        storage.write_batch(self.kept, documents)
        tally.seconds["storage"] += time.perf_counter() - begin


def sift(documents: list[Document], reasons: list[str], dropped: IO[str], tally: Tally) -> list[Document]:
    """Writes and counts those that have a reason; gives back the others."""
    stay = []
    for document, reason in zip(documents, reasons, strict=True):
        if reason:
            record = storage.dropped_record(document, reason)
            storage.write_line(dropped, record)
            tally.drop(record, document.metadata["size"])
        else:
            stay.append(document)
    return stay


def stored(folder: Path, shard: Shard, tally: Tally) -> Iterator[list[Document]]:
    """Batches of what the step before left."""
    found = batches(chain.from_iterable(storage.read_batches(folder / f"{shard.name}.documents.zst")))
    while True:
        begin = time.perf_counter()
        batch = next(found, None)
        tally.seconds["storage"] += time.perf_counter() - begin
        if batch is None:
            return
        yield batch


def prepare(shard: Shard, recipe: Recipe, models: dict[str, score.Scorer], folder: Path) -> Tally:
    """Read, preprocess, and score; the cut itself waits until the whole source is measured."""
    tally = Tally()
    with ExitStack() as stack:
        output = Output(stack, folder, shard)
        documents = batches(read(shard.source, shard.path, shard.number))
        while True:
            begin = time.perf_counter()
            batch = next(documents, None)
            tally.seconds["read"] += time.perf_counter() - begin
            if batch is None:
                return tally
            begin = time.perf_counter()
            before = [document.text for document in batch]
            for document in batch:
                document.metadata["size"] = len(document.text.encode("utf-8", "replace"))
            if "preprocess" in shard.source.skip:
                reasons = [unread(item) for item in batch]
            else:
                reasons = preprocess(batch, recipe.preprocess)
            sample_changes("preprocess", before, batch, reasons, tally)
            for document in batch:
                tally.count("raw", document, document.metadata["size"])
            stay = output.write(batch, reasons, tally)
            tally.seconds["preprocess"] += time.perf_counter() - begin
            begin = time.perf_counter()
            if "score" not in shard.source.skip:
                score.measure(stay, models)
            for document in stay:
                tally.count("preprocess", document, document.metadata["size"])
                if (place := score.place_of(document)) is not None:
                    tally.histograms[document.language][place] += 1
            tally.seconds["score"] += time.perf_counter() - begin
            output.keep(stay, tally)


Bounds = dict[str, tuple[int, int] | None]


def filter_shard(shard: Shard, recipe: Recipe, bounds: Bounds, before: Path, folder: Path) -> Tally:
    """The cut by score, then the rules. `bounds` is language -> bins of this source."""
    tally = Tally()
    with ExitStack() as stack:
        output = Output(stack, folder, shard)
        prints = stack.enter_context(fingerprints.out(folder, shard.name))
        for batch in stored(before, shard, tally):
            begin = time.perf_counter()
            reasons = [score.judge(document, bounds.get(document.language)) for document in batch]
            stay = output.write(batch, reasons, tally)
            for document in stay:
                tally.count("score", document, document.metadata["size"])
            tally.seconds["score"] += time.perf_counter() - begin
            begin = time.perf_counter()
            if "rules" not in shard.source.skip:
                texts = [document.text for document in stay]
                reasons = apply_rules(stay, recipe.rules.limits, tally.struck)
                sample_changes("rules", texts, stay, reasons, tally)
                stay = output.write(stay, reasons, tally)
            tally.seconds["rules"] += time.perf_counter() - begin
            if recipe.decontaminate.files and "decontaminate" not in shard.source.skip:
                begin = time.perf_counter()
                stay = output.write(stay, decontaminate(stay, recipe.decontaminate), tally)
                tally.seconds["decontaminate"] += time.perf_counter() - begin
            for document in stay:
                tally.count("rules", document, document.metadata["size"])
            begin = time.perf_counter()
            prints.add(stay, shard.source, recipe.deduplicate.method, recipe.run.seed)
            tally.seconds["deduplicate"] += time.perf_counter() - begin
            output.keep(stay, tally)
    return tally


def write_shard(shard: Shard, recipe: Recipe, resolved: Resolved, work: Path) -> Tally:
    """Drops what de-duplication decided to drop and writes the rest in its final form: kept and held-out documents, the
    drops of all steps, and the documents that the gate looks at; samples of the largest clusters go into the tally."""
    tally = Tally()
    folder = work / "write"
    verdicts = {row["at"]: row for row in storage.read_lines(work / "resolve" / f"{shard.name}.jsonl")}
    draws = fingerprints.read(work / "filter", shard.name)["draw"]
    at = 0
    with ExitStack() as stack:
        kept = stack.enter_context(storage.lines_out(folder / f"{shard.name}.jsonl.zst"))
        dropped = stack.enter_context(storage.lines_out(folder / f"{shard.name}.dropped.jsonl.zst"))
        sample = stack.enter_context(storage.batches_out(folder / f"{shard.name}.sample.zst"))
        held = {
            language: stack.enter_context(storage.lines_out(folder / f"{shard.name}.{language}.jsonl"))
            for language in recipe.preprocess.languages
        }
        for batch in stored(work / "filter", shard, tally):
            begin = time.perf_counter()
            reasons = [""] * len(batch)
            for i, document in enumerate(batch):
                if verdict := verdicts.get(at + i):
                    reasons[i], document.metadata["why"] = verdict["reason"], verdict["why"]
            show_clusters(batch, reasons, resolved.clusters["largest"], tally)
            drawn = draws[at : at + len(batch)] <= resolved.last_draw
            storage.write_batch(sample, [item for i, item in enumerate(batch) if drawn[i] and not reasons[i]])
            for document in sift(batch, reasons, dropped, tally):
                tally.count("deduplicate", document, document.metadata["size"])
                write(document, shard, recipe, kept, held, tally)
            at += len(batch)
            tally.seconds["storage"] += time.perf_counter() - begin
    storage.join(
        [work / step / f"{shard.name}.dropped.jsonl.zst" for step in ("prepare", "filter", "write")],
        folder / f"{shard.name}.drops.jsonl.zst",
    )
    return tally


def show_clusters(batch: list[Document], reasons: list[str], largest: Collection[str], tally: Tally) -> None:
    """Of the largest clusters the text that stays, and the first copy that does not."""
    for document, reason in zip(batch, reasons, strict=True):
        name, which = document.id, "kept"
        if reason == "deduplicate.near":
            name, which = clusters.original(document.metadata["why"]), "copy"
        if name in largest:
            tally.clusters.setdefault(name, {}).setdefault(which, document.text[:300])


def write(
    document: Document, shard: Shard, recipe: Recipe, kept: IO[str], held: dict[str, IO[str]], tally: Tally
) -> None:
    """One line of kept/ or heldout/, with the text as it is to be trained on."""
    apart = (
        recipe.run.holdout > 0
        and document.kind == "text"
        and document.language in held
        and chosen(document.id, recipe.run.seed, "holdout") < recipe.run.holdout
    )
    text = written(document)
    where = f"heldout/{document.language}" if apart else f"kept/{shard.source.name}"
    tally.written[where] += 1
    tally.written_bytes[where] += len(text.encode("utf-8"))
    storage.write_line(held[document.language] if apart else kept, storage.kept_record(document, text))


def sample_changes(part: str, before: list[str], after: list[Document], reasons: list[str], tally: Tally) -> None:
    """Keeps the first few documents that a part changed and kept, around the first difference, for the report."""
    kept = sum(sample["part"] == part for sample in tally.samples)
    for old, document, reason in zip(before, after, reasons, strict=True):
        if kept >= SAMPLES:
            return
        if reason or old == document.text or document.kind == "code":
            continue
        start = max(first_difference(old, document.text) - 60, 0)
        sample = {
            "part": part,
            "id": document.id,
            "before": old[start : start + 320],
            "after": document.text[start : start + 320],
        }
        tally.samples.append(sample)
        kept += 1


def first_difference(a: str, b: str) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
