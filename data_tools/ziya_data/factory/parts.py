"""The parts applied to one shard: what run.py starts in processes. Every step leaves documents, drops and a tally."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ziya_data._factory import LanguageModel
from ziya_data.document import Document
from ziya_data.factory import score, storage
from ziya_data.factory.decontaminate import decontaminate
from ziya_data.factory.deduplicate import Index, deduplicate
from ziya_data.factory.preprocess import preprocess, unread
from ziya_data.factory.read import read
from ziya_data.factory.recipe import Recipe, Source
from ziya_data.factory.rules import apply_rules

BATCH = 512
"""Documents handed to C++ at once,"""
BATCH_CHARACTERS = 4_000_000
"""or fewer when they are long, so that memory does not grow with the longest ones."""
STAGES = ("raw", "preprocess", "score", "rules", "deduplicate")
SAMPLES = 3
"""Before/after samples a shard for the report."""


@dataclass(frozen=True)
class Shard:
    source: Source
    path: Path
    number: int

    @property
    def name(self) -> str:
        return f"{self.source.name}-{self.number:05d}"


@dataclass
class Tally:
    """Counts of one step on one shard; becomes the shard's completion marker."""

    documents: Counter[str] = field(default_factory=Counter)
    """`stage/language` -> documents that came out of that stage; bytes likewise, of UTF-8 text as read."""
    bytes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    reason_bytes: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    histograms: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    samples: list[dict[str, str]] = field(default_factory=list)

    def count(self, stage: str, document: Document, size: int) -> None:
        key = f"{stage}/{document.language or '-'}"
        self.documents[key] += 1
        self.bytes[key] += size

    def drop(self, document: Document, reason: str, size: int) -> None:
        self.reasons[reason] += 1
        self.reason_bytes[reason] += size

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Tally":
        """What `to_json` wrote."""
        tally = cls()
        for name in ("documents", "bytes", "reasons", "reason_bytes", "struck"):
            getattr(tally, name).update(record[name])
        tally.seconds.update(record["seconds"])
        tally.samples.extend(record["samples"])
        for language, histogram in record["histograms"].items():
            tally.histograms[language].update({int(place): n for place, n in histogram.items()})
        return tally

    def add(self, other: "Tally") -> None:
        for name in ("documents", "bytes", "reasons", "reason_bytes", "struck"):
            getattr(self, name).update(getattr(other, name))
        for part, seconds in other.seconds.items():
            self.seconds[part] += seconds
        self.samples.extend(other.samples)


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
        self.kept = stack.enter_context(storage.lines_out(folder / f"{shard.name}.jsonl.zst"))
        self.dropped = stack.enter_context(storage.lines_out(folder / f"{shard.name}.dropped.jsonl.zst"))

    def write(self, documents: list[Document], reasons: list[str], tally: Tally) -> list[Document]:
        """Writes the drops; gives back those that stay."""
        stay = []
        for document, reason in zip(documents, reasons, strict=True):
            if reason:
                storage.write_line(self.dropped, storage.dropped_record(document, reason))
                tally.drop(document, reason, document.metadata["size"])
            else:
                stay.append(document)
        return stay

    def keep(self, documents: list[Document], tally: Tally, name: str = "storage") -> None:
        begin = time.perf_counter()
        for document in documents:
            storage.write_line(self.kept, storage.to_record(document))
        tally.seconds[name] += time.perf_counter() - begin


def stored(folder: Path, shard: Shard, tally: Tally, name: str = "storage") -> Iterator[list[Document]]:
    """Batches of what the step before left."""
    found = batches(map(storage.from_record, storage.read_lines(folder / f"{shard.name}.jsonl.zst")))
    while True:
        begin = time.perf_counter()
        batch = next(found, None)
        tally.seconds[name] += time.perf_counter() - begin
        if batch is None:
            return
        yield batch


def prepare(shard: Shard, recipe: Recipe, models: dict[str, LanguageModel], folder: Path) -> Tally:
    """Read, preprocess, and measure perplexity; the cut itself waits until the whole source is measured."""
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
                if "perplexity" in document.metadata:
                    tally.histograms[document.language][score.bin_of(document.metadata["perplexity"])] += 1
            tally.seconds["score"] += time.perf_counter() - begin
            output.keep(stay, tally)


Bounds = dict[str, tuple[int, int] | None]


def filter_shard(shard: Shard, recipe: Recipe, bounds: Bounds, before: Path, folder: Path) -> Tally:
    """The cut by perplexity, then the rules. `bounds` is language -> bins of this source."""
    tally = Tally()
    with ExitStack() as stack:
        output = Output(stack, folder, shard)
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
            output.keep(stay, tally)
    return tally


def unique(shard: Shard, recipe: Recipe, index: Index, old: list[Index], before: Path, folder: Path) -> Tally:
    """De-duplication of one shard against all that came before it."""
    tally = Tally()
    with ExitStack() as stack:
        output = Output(stack, folder, shard)
        for batch in stored(before, shard, tally, "collect"):
            begin = time.perf_counter()
            stay = batch
            if "deduplicate" not in shard.source.skip:
                near = "deduplicate.near" not in shard.source.skip
                stay = output.write(batch, deduplicate(batch, index, old, recipe.deduplicate, near), tally)
            for document in stay:
                tally.count("deduplicate", document, document.metadata["size"])
            tally.seconds["deduplicate"] += time.perf_counter() - begin
            output.keep(stay, tally, "collect")
    return tally


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
