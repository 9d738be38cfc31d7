"""Training goes on while a checkpoint is written, and the checkpoint is of the step at which it was begun."""

import dataclasses
import errno
import json
import shutil
import threading
import time
from pathlib import Path

import torch
from ranks import run_ranks, run_recipe
from tiny_run import MODEL, everything, recipe

from megatron_ziya import config, train
from megatron_ziya.checkpoint import background, distributed
from megatron_ziya.checkpoint.background import Saver
from megatron_ziya.checkpoint.distributed import Origin, Reader, Segment
from megatron_ziya.config import Recipe


def slow_run(settings: Recipe) -> None:
    """A run whose files of step 2 are held back until the whole of step 3 has been made."""
    original, go = distributed.write_part, threading.Event()

    def held_back(path, *rest):
        if path.name == "step_000002":
            assert go.wait(60)
        original(path, *rest)

    def noted(trainer, *rest):
        result = step(trainer, *rest)
        if trainer.step == 3:
            trainer.data.arrive()  # the new weights of all ranks lie where those of step 2 lay
            assert not Path(settings.run.directory, "checkpoints/step_000002").exists()
            go.set()
        return result

    step, train.train_step, distributed.write_part = train.train_step, noted, held_back
    run_recipe(settings)


def test_steps_are_made_while_bytes_go_to_the_disk_and_change_nothing_of_them(tmp_path, tiny_dataset):
    run_ranks(2, run_recipe, recipe(tmp_path / "plain", tiny_dataset, 5, tensor=2, asynchronous=False))
    run_ranks(2, slow_run, recipe(tmp_path / "slow", tiny_dataset, 5, tensor=2, every=2))
    for number in (2, 4, 5):
        path = f"checkpoints/step_{number:06d}"
        one, two = everything(tmp_path / "plain" / path), everything(tmp_path / "slow" / path)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), number
    plain, slow = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "slow")
    )
    assert plain == slow
    log = (tmp_path / "slow/logs/rank_0.log").read_text()
    assert "step_000002 in" in log


def test_the_copy_is_of_the_moment_and_one_save_waits_for_the_other(tmp_path, monkeypatch):
    value, filled, original = torch.ones(300), threading.Event(), distributed.write_part
    monkeypatch.setattr(distributed, "write_part", lambda *given: filled.wait(60) and original(*given))
    segment = Segment.whole("weight", "norm.weight", (300,))
    saver, seen = Saver(tmp_path, 0), []
    a = dataclasses.replace(MODEL.architecture(), hidden_size=300, heads=3, kv_heads=3)
    assert saver.written()
    saver.start(Origin("run", 1), a, [(segment, value)], "", {}, None, seen.append)
    assert not saver.written()
    saver.copied()
    value.fill_(2.0)
    filled.set()
    saver.wait()
    assert seen == [tmp_path / "step_000001"] and saver.written()
    assert (Reader(seen[0]).read("norm.weight") == 1).all()
    for step in (2, 3):
        saver.start(Origin("run", step), a, [(segment, value)], "", {}, None, seen.append)
    saver.wait()
    assert [path.name for path in seen] == ["step_000001", "step_000002", "step_000003"]
    assert distributed.latest(tmp_path) == "step_000003"


def updated_early(settings: Recipe) -> None:
    """A run whose copies are made late, while an update that does not wait for them would already be at it."""
    original = background.fill

    def late(*given):
        time.sleep(0.5)
        return original(*given)

    background.fill = late
    run_recipe(settings)


def test_an_update_waits_for_the_copy(tmp_path, tiny_dataset):
    run_ranks(1, run_recipe, recipe(tmp_path / "plain", tiny_dataset, 3, asynchronous=False))
    run_ranks(1, updated_early, recipe(tmp_path / "late", tiny_dataset, 3))
    for number in (1, 2):
        one, two = (everything(tmp_path / name / f"checkpoints/step_00000{number}") for name in ("plain", "late"))
        assert all(torch.equal(one[key], two[key]) for key in one), number


def test_a_full_disk_ends_the_run_in_a_line_and_leaves_what_was_whole(tmp_path, tiny_dataset, monkeypatch, capsys):
    settings = recipe(tmp_path / "run", tiny_dataset, 4)
    (tmp_path / "recipe.toml").write_text(config.to_toml(settings))
    original = distributed.write_part

    def full(path, *rest):
        if path.name == "step_000002":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, *rest)

    monkeypatch.setattr(distributed, "write_part", full)
    assert train.main([str(tmp_path / "recipe.toml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: error: [Errno 28] No space left on device")
    assert [path.name for path in distributed.steps(tmp_path / "run/checkpoints")] == ["step_000001"]
    monkeypatch.undo()
    assert train.main([str(tmp_path / "recipe.toml")]) == 0
    assert len(distributed.steps(tmp_path / "run/checkpoints")) == 4


def room_of_150_for(size: int, folder: Path) -> str:
    """What this rank is told; rank 0 lets the other go on."""
    usage = shutil.disk_usage("/")
    shutil.disk_usage = lambda path: usage._replace(free=150)
    try:
        distributed.begin(folder, Origin("run", 1), torch.distributed.get_rank(), size)
    except ValueError as error:
        distributed.barrier()
        return str(error)
    return ""


def test_a_disk_without_room_for_all_parts_is_told_before_anything_is_written(tmp_path):
    assert run_ranks(2, room_of_150_for, 70, tmp_path) == ["", ""]
    said, nothing = run_ranks(2, room_of_150_for, 100, tmp_path / "other")
    assert said.endswith("other needs 0.0 GB and the disk has 0.0 GB free; make room") and not nothing
    assert not list((tmp_path / "other").iterdir())
