"""A run that is killed goes on where it was, and its bytes do not depend on who did the work."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from factory_run import Make, files, silent

from ziya_data.factory import finish, output, parts, pipeline, storage


def test_the_same_bytes_whatever_the_workers(make: Make, tmp_path: Path) -> None:
    pipeline.run(make("one"), 1, silent)
    pipeline.run(make("two"), 2, silent)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("step", ["prepare", "filter_shard", "write_shard"])
@pytest.mark.parametrize("shard", [1, 2])
def test_a_killed_run_goes_on_and_ends_the_same(
    step: str, shard: int, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.run(make("whole"), say=silent)
    real, calls = getattr(parts, step), 0

    def dies(*arguments: Any) -> parts.Tally:
        nonlocal calls
        calls += 1
        if calls == shard + 1:
            raise KeyboardInterrupt
        result: parts.Tally = real(*arguments)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(parts, step, dies)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(make(), say=silent)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not (tmp_path / "out" / "report.json").exists()
    said: list[str] = []
    pipeline.run(make(), say=said.append)
    assert any("are done already" in line for line in said)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("folder", ["seen", "heldout", "kept", "dropped", "nothing: the gate"])
def test_a_run_killed_while_its_outputs_are_put_in_place_goes_on_and_ends_the_same(
    folder: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.run(make("whole"), say=silent)
    real = storage.replacing_folder

    def dies(path: Path) -> AbstractContextManager[Path]:
        if path.name == folder:
            raise KeyboardInterrupt
        return real(path)

    def dies_too(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "replacing_folder", dies)
        if ":" in folder:
            patch.setattr(finish, "evaluate", dies_too)  # all files have been moved by then
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(make(), say=silent)
    assert not (tmp_path / "out" / "report.json").exists()
    with storage.replacing(tmp_path / "out" / "report.html") as left:
        left.touch()
    for name in (left.name, "kept.tmp/a"):  # as a killed process leaves them
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).touch()
    pipeline.run(make(), say=silent)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_shards_prepared_as_tasks_give_the_bytes_of_one_run(make: Make, tmp_path: Path) -> None:
    pipeline.run(make("whole"), say=silent)
    said: list[str] = []
    for _ in range(2):  # a source that is ranked is filtered when all of it is prepared
        for k in range(3):
            assert pipeline.run(make(), 1, said.append, (k, 3)) == {}
    done = [line for line in said if line.startswith(("prepare", "filter")) and "kept" in line]
    assert len(done) == 2 * 4, "each shard once a step"
    assert sum("wait for others of their source, such as web-0000" in line for line in said) == 1
    assert not (tmp_path / "out" / "report.json").exists()
    said.clear()
    pipeline.run(make(), say=said.append)
    assert sum("4 of 4 shards are done already" in line for line in said) == 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_tasks_may_begin_at_once(tmp_path: Path) -> None:
    def task(out: Path) -> Path:
        output.check(out, [])
        return output.begin(out)

    with ThreadPoolExecutor(8) as pool:
        for i in range(20):
            out = tmp_path / str(i)
            assert set(pool.map(task, [out] * 8)) == {out / "work"}
            assert output.ours(out)
            assert [path.name for path in out.iterdir()] == ["work"]


def test_what_a_killed_run_left_is_not_taken_for_another_recipe(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: Any) -> parts.Tally:
        raise KeyboardInterrupt

    other = {"rules": {"garble": False, "too_short": {"en": 420}}, "preprocess": {"languages": ["en"]}}
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(make(), say=silent)
    pipeline.run(make(**other), say=silent)
    pipeline.run(make("fresh", **other), say=silent)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_a_finished_run_is_left_alone_and_a_changed_one_is_redone(make: Make, tmp_path: Path) -> None:
    pipeline.run(make(), say=silent)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    said: list[str] = []
    pipeline.run(make(), say=said.append)
    assert len(said) == 1
    assert "nothing changed" in said[0]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    report = pipeline.run(make(rules={"garble": False}), say=silent)
    assert "rules.garble" not in report["reasons"]
