"""What decides each step's output, as one digest a step and shard: the same key means that the work is done."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ziya_data.factory.recipe import Recipe
from ziya_data.factory.tally import Shard


def step_keys(recipe: Recipe, shards: list[Shard]) -> dict[str, list[str]]:
    """Step -> key of each shard: a digest of everything that decides the step's output."""
    code = code_digest()
    models = {language: identity(Path(path)) for language, path in recipe.score.models.items()}
    sources = {source.name: asdict(source) for source in recipe.source}
    own = [digest(sources[shard.source.name], identity(shard.path)) for shard in shards]
    prepared = [digest(code, key, asdict(recipe.preprocess), models) for key in own]
    # The cut depends on every shard of the source, so one that changes redoes them all.
    of_source: dict[str, list[str]] = {}
    for shard, key in zip(shards, prepared, strict=True):
        of_source.setdefault(shard.source.name, []).append(key)
    together = {name: digest(found) for name, found in of_source.items()}  # once: each shard's key takes it in
    benchmarks = [identity(Path(name)) for name in recipe.decontaminate.files]
    settings = (asdict(recipe.score), asdict(recipe.rules), asdict(recipe.decontaminate), benchmarks)
    prints = (recipe.deduplicate.method, recipe.run.seed)
    filtered = [
        digest(key, together[shard.source.name], settings, prints) for shard, key in zip(shards, prepared, strict=True)
    ]
    against = [identity(Path(folder) / "near.index") for folder in recipe.deduplicate.against]
    resolved = digest(filtered, asdict(replace(recipe.deduplicate, partitions=1)), against, asdict(recipe.evaluate))
    written = [digest(resolved, i, asdict(recipe.run)) for i in range(len(shards))]
    finished = digest(written, code)
    return {
        "prepare": prepared,
        "filter": filtered,
        "resolve": [resolved],
        "write": written,
        "finish": [finished],
    }


def identity(path: Path) -> list[Any]:
    """What tells that a file (or a folder of pages) is still the same: size and time of change."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def code_digest() -> str:
    """Of the factory's own code and word lists: another rule makes another output."""
    folder = Path(__file__).parent
    files = sorted([*folder.glob("*.py"), *folder.glob("lists/*"), *folder.parent.glob("_factory.*.so")])
    return digest(*(hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() for file in files))


def digest(*values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
