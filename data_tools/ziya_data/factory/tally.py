"""A shard, and what a step counted on it."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ziya_data.document import Document
from ziya_data.factory.recipe import Source

DROPS = 3
"""Dropped documents shown of each reason."""
SAMPLES = 12
"""Changed documents kept of each part and source: the report shows so many of all."""


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
    written: Counter[str] = field(default_factory=Counter)
    """`kept/source` or `heldout/language` -> documents; bytes likewise, of UTF-8 text as written."""
    written_bytes: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    histograms: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    samples: list[dict[str, str]] = field(default_factory=list)
    drops: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    """Reason -> the first few records that it dropped, cut short."""

    clusters: dict[str, dict[str, str]] = field(default_factory=dict)
    """Id of a page with many near-duplicates -> `kept` its own text, `copy` one of theirs, cut short."""

    def count(self, stage: str, document: Document, size: int) -> None:
        key = f"{stage}/{document.language or '-'}"
        self.documents[key] += 1
        self.bytes[key] += size

    def drop(self, record: dict[str, Any], size: int) -> None:
        """Counts what storage.dropped_record made."""
        reason = record["reason"]
        self.reasons[reason] += 1
        self.reason_bytes[reason] += size
        if self.reasons[reason] <= DROPS:
            self.drops[reason].append({**record, "text": record["text"][:300]})

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Tally":
        """What `to_json` wrote."""
        tally = cls()
        for name in (*COUNTERS, "seconds", "drops"):
            getattr(tally, name).update(record[name])
        tally.samples.extend(record["samples"])
        tally.clusters.update(record["clusters"])
        for language, histogram in record["histograms"].items():
            tally.histograms[language].update({int(place): n for place, n in histogram.items()})
        return tally

    def add(self, other: "Tally") -> None:
        for name in COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for part, seconds in other.seconds.items():
            self.seconds[part] += seconds
        for reason, records in other.drops.items():
            self.drops[reason] = (self.drops[reason] + records)[:DROPS]
        for name, texts in other.clusters.items():  # of copies in several shards the first
            self.clusters[name] = texts | self.clusters.get(name, {})
        kept = Counter(map(group_of, self.samples))
        for sample in other.samples:
            if kept[group_of(sample)] < SAMPLES:
                kept[group_of(sample)] += 1
                self.samples.append(sample)


def group_of(sample: dict[str, str]) -> tuple[str, str]:
    """Part and source of a changed document."""
    return sample["part"], sample["id"].partition(":")[0]


COUNTERS = ("documents", "bytes", "reasons", "reason_bytes", "struck", "written", "written_bytes")
