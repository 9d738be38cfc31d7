"""What a step's key takes in, and what it costs to make."""

import json
from pathlib import Path
from typing import Any

import pytest
from factory_run import Make

from ziya_data.factory import keys
from ziya_data.factory.recipe import Recipe
from ziya_data.factory.tally import Shard


def shards_of(settings: Recipe, folder: Path) -> list[Shard]:
    """Ten of one source and two of another."""
    found = [Shard(settings.source[0], folder / f"a{i}", i) for i in range(10)]
    found += [Shard(settings.source[1], folder / f"b{i}", i) for i in range(2)]
    for shard in found:
        shard.path.write_text("x")
    return found


def test_a_changed_shard_redoes_its_own_preparing_and_the_filtering_of_its_source(make: Make, tmp_path: Path) -> None:
    settings = make()
    shards = shards_of(settings, tmp_path)
    before = keys.step_keys(settings, shards)
    shards[3].path.write_text("longer")
    after = keys.step_keys(settings, shards)
    changed = {step: [a != b for a, b in zip(before[step], after[step], strict=True)] for step in ("prepare", "filter")}
    assert changed == {"prepare": [i == 3 for i in range(12)], "filter": [True] * 10 + [False] * 2}
    assert before["resolve"] != after["resolve"]


def test_the_cost_grows_with_the_number_of_shards(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with its square: thousands are usual."""
    settings, real = make(), keys.digest
    shards = shards_of(settings, tmp_path)
    digested: list[int] = []

    def digest(*values: Any) -> str:
        digested.append(len(json.dumps(values)))
        return real(*values)

    def cost(count: int) -> int:
        digested.clear()
        keys.step_keys(settings, shards[:1] * count)
        return sum(digested)

    monkeypatch.setattr(keys, "digest", digest)
    assert cost(200) < 2.1 * cost(100)
