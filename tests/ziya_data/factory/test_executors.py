"""Whoever does the work, the bytes are the same: a real Ray cluster of two processors beside this process."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from factory_run import Make, files, silent

from ziya_data.factory import commands, executors, pipeline, recipe, tally
from ziya_data.factory.partition import Partition


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for all tests here: to start it takes seconds."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


def in_parts(settings: recipe.Recipe, parts: int, output: str) -> recipe.Recipe:
    deduplicate = replace(settings.deduplicate, partitions=parts)
    return replace(settings, deduplicate=deduplicate, run=replace(settings.run, output=output))


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("cluster")
def test_a_ray_cluster_writes_the_bytes_of_one_process(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index in two parts, as actors; then new data against that index, in three parts. Paths may be relative."""
    monkeypatch.chdir(tmp_path)
    pipeline.run(make("one"), say=silent)
    report = pipeline.run(in_parts(make(), 2, "ray"), 2, silent, executor="ray")
    assert files(tmp_path / "one") == files(tmp_path / "ray")
    assert report["reasons"]["deduplicate.content"]["documents"] == 1
    against = {"deduplicate": {"against": ["one/seen"]}, "rules": {"too_short": 1}}
    pipeline.run(make("new", **against), say=silent)
    report = pipeline.run(in_parts(make(**against), 3, "new_ray"), 2, silent, executor="ray")
    assert files(tmp_path / "new") == files(tmp_path / "new_ray")
    assert report["totals"][-1]["documents"] == 0


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("cluster")
def test_what_a_task_raises_on_the_cluster_is_told_as_it_was_raised(make: Make, tmp_path: Path) -> None:
    shards = [tally.Shard(make().source[0], tmp_path / name, 0) for name in ("gone.jsonl", "a.odd")]
    (tmp_path / "gone.jsonl").write_text("")
    (tmp_path / "a.odd").write_text("")
    task = pipeline.partial(pipeline.prepare, make(), tmp_path)
    with (
        executors.start("ray", 2) as team,
        pytest.raises(ValueError, match=r"^\S+a\.odd is of no kind that can be read"),
    ):
        list(team.run(task, shards))


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("who", ["a task", "the consumer"])
def test_a_run_that_breaks_off_leaves_no_task_behind(who: str, make: Make, tmp_path: Path) -> None:
    """The cluster is not ours and outlives the run: of eight tasks on two processors most have not begun, and
    who has begun has ended when the run has."""
    shards = [tally.Shard(make().source[0], tmp_path / str(i), i) for i in range(8)]
    for shard in shards:
        shard.path.write_bytes(b"x" * (100 - shard.number))  # begun in this order

    def task(shard: tally.Shard) -> tally.Tally:
        (tmp_path / f"{shard.number}.begun").touch()
        if shard.number:
            time.sleep(1)
        elif who == "a task":
            raise ValueError("no good")
        (tmp_path / f"{shard.number}.done").touch()
        return tally.Tally()

    def run() -> None:
        with executors.start("ray", 2) as team:
            for _ in team.run(task, shards):
                raise ValueError("no good")

    with pytest.raises(ValueError, match=r"^no good$"):
        run()
    written = sorted(tmp_path.iterdir())
    assert len(list(tmp_path.glob("*.begun"))) <= 4
    time.sleep(1.5)
    assert sorted(tmp_path.iterdir()) == written


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("cluster")
def test_a_partition_that_cannot_be_made_or_dies_is_told_in_one_line() -> None:
    def refuses(part: int, parts: int) -> Partition:
        raise ValueError(f"part {part} of {parts} is cut short")

    class Dies:
        def bytes(self) -> int:
            os._exit(1)

    def dying(part: int, parts: int) -> Partition:
        return cast(Partition, Dies())

    with executors.start("ray", 2) as team:
        with pytest.raises(ValueError, match=r"^part 0 of 1 is cut short$"):
            team.spread(refuses, 1)
        ask = team.spread(dying, 2)
        with pytest.raises(
            ValueError, match=r"^Ray lost a task or a part of the index \(\w+Error: .*run this again"
        ) as told:
            ask("bytes")
        assert "\n" not in str(told.value)


def test_mistakes_are_one_line(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="executor = 'spark' must be one of processes, ray"):
        executors.start("spark", 1)
    with pytest.raises(ValueError, match="workers = 0 must be at least 1"):
        executors.start("ray", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ValueError, match=f"no Ray cluster answers at {address} .*; start one: ray start --head"):
        executors.start("ray", 1, address)
    executors.start("ray", 1, f"ray://{address}")  # Ray's client asks there itself
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"executor = 'ray' needs Ray; run pip install 'megatron-ziya\[ray\]'"):
        executors.start("ray", 1)
    path = tmp_path / "recipe.toml"
    path.write_text("[run]\noutput = 'out'\n[[source]]\nname = 'a'\npaths = ['a']\n")
    with pytest.raises(ValueError, match=r"deduplicate\.partitions = 0 must be at least 1"):
        commands.run([str(path), "--partitions", "0"])


def test_partitions_on_the_command_line(tmp_path: Path, make: Make) -> None:
    """Their number changes no byte, so a finished run is not done again for it."""
    source = make().source[0]
    path = tmp_path / "recipe.toml"
    path.write_text(f"[run]\noutput = '{tmp_path}/out'\n[[source]]\nname = 'a'\npaths = ['{source.paths[0]}']\n")
    assert commands.run([str(path), "--partitions", "3"]) == 0
    assert recipe.load(tmp_path / "out" / "recipe.toml").deduplicate.partitions == 3
    before = files(tmp_path / "out")
    said: list[str] = []
    pipeline.run(recipe.load(path), say=said.append)
    assert "nothing changed" in said[0]
    pipeline.run(replace(recipe.load(path), run=recipe.Run(str(tmp_path / "other"))), say=silent)
    assert files(tmp_path / "other") == before


def test_large_shards_are_begun_first(tmp_path: Path) -> None:
    source = recipe.Source("a", ())
    for name, size in (("a", 5), ("b/c", 9), ("d", 7)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    shards = [tally.Shard(source, tmp_path / name, i) for i, name in enumerate("abd")]
    assert executors.large_first(shards) == [1, 2, 0]
