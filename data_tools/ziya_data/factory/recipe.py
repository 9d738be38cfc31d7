"""The factory's recipe: strict TOML into frozen dataclasses, every knob with its default and the reason for it."""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ziya_data.factory.rules import RULES

KINDS = ("text", "code", "supervised")
PARTS = ("preprocess", "score", "rules", "decontaminate", "deduplicate", "deduplicate.near")
METHODS = ("minhash", "simhash")
LANGUAGES = ("zh", "en")


@dataclass(frozen=True)
class Run:
    output: str
    """Folder of the kept shards, the drops and the report."""
    seed: int = 0
    """Chooses the held-out documents and the evaluation sample."""
    holdout: float = 0.0
    """Share of the kept documents of kind text that goes to heldout/<language>.jsonl instead of kept/."""


@dataclass(frozen=True)
class Source:
    name: str
    paths: tuple[str, ...]
    """Files, folders or patterns: .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .warc, .warc.gz, .wet, .wet.gz, .txt, or a
    folder of .html files."""
    kind: str = "text"
    """text, code or supervised (how it is written in the end: Ziya2, appendix A)."""
    skip: tuple[str, ...] = ()
    """Parts that this source does not pass: preprocess, score, rules, decontaminate, deduplicate, or deduplicate.near
    alone (items made from one template are all near each other)."""


@dataclass(frozen=True)
class Preprocess:
    languages: tuple[str, ...] = LANGUAGES
    """Kept; Ziya2 keeps English and Chinese only."""
    confidence: float = 0.5
    """Least probability of lid.176 for a text in Latin script. Its mistakes on clean English lie below 0.4."""
    simplify: bool = True
    """Traditional to Simplified Chinese, by phrases (OpenCC t2s)."""


@dataclass(frozen=True)
class Score:
    models: dict[str, str] = field(default_factory=dict)
    """Language -> file made by `ziya factory train-scorer`, which says itself whether it is an n-gram model or a
    classifier; a language without one is not scored."""
    high: float = 0.30
    """The best 30 % by that score, within a language and source, are `high` (Ziya2, section 2.1)."""
    medium: float = 0.60
    """Up to here `medium`, the rest is dropped. What Ziya2 ranked together it does not say; within language and source,
    or a source that merely reads unlike an encyclopaedia would go as a whole. Its own 30.94 % for score and rules
    together is less than 40 % of 85.34 %, so it cannot have cut every source: give curated ones skip = ["score"]."""
    smallest_group: int = 50
    """Fewer documents than this are not ranked but all kept: a rank among a few says nothing."""


@dataclass(frozen=True)
class Rules:
    limits: dict[str, dict[str, float | None]] = field(default_factory=lambda: rule_limits({}))
    """Rule -> language -> limit; None is off. Written in the recipe as `name = 0.1`, `name = {zh = 0.1, en = 0.2}`
    or `name = false`; what is not written keeps the default beside the rule."""


@dataclass(frozen=True)
class Deduplicate:
    capacity: int = 1_000_000
    """Pages the Bloom filters are laid out for, at the least: a run with more lays them out for its own. 14.4 bits a
    page at a rate of 0.001."""
    false_positive_rate: float = 0.001
    """Share of new pages that the filters take for repeats when full: as strict as the gate, 1 in 1,000."""
    method: str = "minhash"
    """minhash: 256 one-bit minima over pairs of characters (Chinese) or words. simhash, which Ziya2 names but does not
    describe: 128 bits over single ones, and 128 minima. docs/factory.md has both's recall by edit rate."""
    jaccard: float = 0.45
    """Near-duplicates share at least so much of their pairs. 15 % of random edits leave 0.57 on average."""
    distance: int = 24
    """simhash alone: and differ in at most so many of its 128 bits."""
    shortest: int = 20
    """Tokens below which only exact repeats count: a short sentence is near too many others."""
    against: tuple[str, ...] = ()
    """seen/ folders of earlier runs: what they hold counts as seen and is not read again. Name every one: a run's own
    seen/ does not hold what those before it held."""
    partitions: int = 1
    """Parts that the index is cut into, each looked through by a thread; with `--executor ray` by a process of its own,
    on whichever node. What is found does not depend on it."""


@dataclass(frozen=True)
class Decontaminate:
    files: tuple[str, ...] = ()
    """Benchmark files that no document may quote: JSON lines, parquet or text; every string in a record counts."""
    grams: int = 13
    """So many tokens in a row (words; characters in Chinese) are a quotation: as for GPT-3, appendix C."""
    shortest: int = 8
    """A benchmark text of fewer than `grams` tokens is looked for as a whole, down to this many (GPT-3's least)."""
    hits: int = 1
    """Quotations that make a document go; 13 Chinese characters may also be a title or a saying."""


@dataclass(frozen=True)
class Evaluate:
    share: float = 0.01
    """Random share of the kept documents (Ziya2: 1 %)."""
    at_least: int = 2000
    """but at least so many: below 1,000 documents one miss breaks the limit of 1 in 1,000."""
    level_1: float = 0.001
    """Unqualified documents allowed: 1 in 1,000 (Ziya2, Table 1)."""
    level_2: float = 0.02
    level_3: float = 0.05
    """Table 1 leaves levels 2 and 3 open; 1 in 50 and 1 in 20 mark a change that a reader would notice."""
    perplexity: float = 5.0
    """A document is incoherent above so many times the median perplexity of its language and source."""
    required: bool = False
    """true: `ziya factory run` ends with exit code 1 when the gate fails."""


@dataclass(frozen=True)
class Recipe:
    run: Run
    source: tuple[Source, ...]
    preprocess: Preprocess = Preprocess()
    score: Score = Score()
    rules: Rules = field(default_factory=Rules)
    decontaminate: Decontaminate = Decontaminate()
    deduplicate: Deduplicate = Deduplicate()
    evaluate: Evaluate = Evaluate()


def load(path: Path) -> Recipe:
    """Reads and checks a recipe. Raises ValueError with one line that says what to change, FileNotFoundError."""
    if not path.exists() or path.is_dir():
        why = "is a folder, not a recipe" if path.is_dir() else "no such recipe"
        raise FileNotFoundError(f"{path}: {why}; see examples/demo/factory.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not TOML: byte {error.start} is not UTF-8; see examples/demo/factory.toml"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    return parse(table)


def parse(table: dict[str, Any]) -> Recipe:
    """A recipe from TOML's table. Raises ValueError for what is unknown, missing or out of bounds."""
    sections = {
        "run": Run,
        "preprocess": Preprocess,
        "score": Score,
        "decontaminate": Decontaminate,
        "deduplicate": Deduplicate,
        "evaluate": Evaluate,
    }
    known(table, [*sections, "source", "rules"], "a recipe")
    for name in ("run", "source"):
        if name not in table:
            raise ValueError(f"the recipe has no [{name}] section; add one")
    parsed = {name: section(cls, table[name], name) for name, cls in sections.items() if name in table}
    if not isinstance(table["source"], list) or not table["source"]:
        raise ValueError("source must be written as one or more [[source]] tables")
    sources = tuple(section(Source, row, "source") for row in table["source"])
    recipe = Recipe(**parsed, source=sources, rules=Rules(rule_limits(table.get("rules", {}))))
    check(recipe)
    return recipe


def section(cls: type, table: Any, where: str) -> Any:
    """A dataclass from a TOML table; arrays become tuples, whole numbers may stand for fractions."""
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table: [{where}]")
    kinds = {item.name: item.type for item in fields(cls)}
    known(table, kinds, f"[{where}]")
    values: dict[str, Any] = {}
    for name, value in table.items():
        kind = kinds[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        right = kind if isinstance(kind, type) and kind in (int, float, str, bool) else None
        if right is not None and type(value) is not right:
            raise ValueError(f"{where}.{name} = {value!r} must be {right.__name__}")
        if right is None and str(kind).startswith("tuple"):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"{where}.{name} = {value!r} must be a list of strings")
            value = tuple(value)
        if right is None and str(kind).startswith("dict") and not isinstance(value, dict):
            raise ValueError(f"{where}.{name} = {value!r} must be a table")
        values[name] = value
    missing = [item.name for item in fields(cls) if item.name not in values and item.name in REQUIRED]
    if missing:
        raise ValueError(f"[{where}] lacks {missing[0]}; add it")
    return cls(**values)


REQUIRED = ("output", "name", "paths")


def known(given: Iterable[str], names: Iterable[str], where: str) -> None:
    names = list(names)
    for name in given:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, 1, 0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"it may hold {', '.join(names)}"
            raise ValueError(f"unknown key {name!r} in {where}; {hint}")


def rule_limits(table: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """All rules' limits: the defaults, with what the recipe writes over them."""
    known(table, [rule.name for rule in RULES], "[rules]")
    limits: dict[str, dict[str, float | None]] = {rule.name: dict(rule.limits) for rule in RULES}
    for name, value in table.items():
        given = value if isinstance(value, dict) else dict.fromkeys(LANGUAGES, value)
        known(given, LANGUAGES, f"rules.{name}")
        for language, limit in given.items():
            if limit is not False and (isinstance(limit, bool) or not isinstance(limit, int | float)):
                raise ValueError(f"rules.{name} = {limit!r} must be a number, or false to switch the rule off")
            limits[name][language] = None if limit is False else float(limit)
    return limits


def check(recipe: Recipe) -> None:
    """Raises ValueError for values that do not go together or are out of bounds."""
    if not recipe.run.output.strip():
        raise ValueError("run.output is empty; name the folder that the run is to write")
    names = [source.name for source in recipe.source]
    for source in recipe.source:
        if names.count(source.name) > 1:
            raise ValueError(f"two sources are named {source.name!r}; give each its own name")
        if not source.name or not source.name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"source name {source.name!r} must be letters, digits, - and _: it names files")
        if source.kind not in KINDS:
            raise ValueError(f"source {source.name}: kind = {source.kind!r} must be one of {', '.join(KINDS)}")
        known(source.skip, PARTS, f"skip of source {source.name}")
    known(recipe.score.models, LANGUAGES, "score.models")
    known(recipe.preprocess.languages, LANGUAGES, "preprocess.languages")
    shares = {
        "run.holdout": (recipe.run.holdout, recipe.run.holdout < 1),
        "preprocess.confidence": (recipe.preprocess.confidence, recipe.preprocess.confidence <= 1),
        "score.high": (recipe.score.high, recipe.score.high <= recipe.score.medium),
        "score.medium": (recipe.score.medium, recipe.score.medium <= 1),
        "deduplicate.jaccard": (recipe.deduplicate.jaccard, recipe.deduplicate.jaccard <= 1),
        "evaluate.share": (recipe.evaluate.share, recipe.evaluate.share <= 1),
    }
    for name, (value, fine) in shares.items():
        if value < 0 or not fine:
            rule = "within 0 and score.medium" if name == "score.high" else "a share within 0 and 1"
            raise ValueError(f"{name} = {value} must be {rule}")
    if not 0 <= recipe.deduplicate.distance <= 32:
        raise ValueError(f"deduplicate.distance = {recipe.deduplicate.distance} must be 0 to 32 of 128 bits")
    if recipe.deduplicate.method not in METHODS:
        raise ValueError(f"deduplicate.method = {recipe.deduplicate.method!r} must be one of {', '.join(METHODS)}")
    if recipe.deduplicate.partitions < 1:
        raise ValueError(f"deduplicate.partitions = {recipe.deduplicate.partitions} must be at least 1")
    grams = recipe.decontaminate
    if not 1 <= grams.shortest <= grams.grams or grams.hits < 1:
        raise ValueError("decontaminate.shortest must be 1 to decontaminate.grams, and hits at least 1")
    if recipe.deduplicate.capacity < 1 or not 0 < recipe.deduplicate.false_positive_rate < 1:
        raise ValueError("deduplicate.capacity must be at least 1 and false_positive_rate within 0 and 1")
