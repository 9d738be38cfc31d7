"""The checkpoints of a run: `latest`, pruning, a save killed at every step of it, and the lock."""

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from models import small
from ranks import run_ranks

from megatron_ziya.checkpoint.distributed import Origin, Reader, Segment, prune, resolve, save, steps
from megatron_ziya.checkpoint.folder import LATEST, locked, take_lock
from megatron_ziya.model.weights import shapes

A = small()


def save_step(folder, step, huggingface=None):
    """All weights of a step are that number."""
    segments = [
        (Segment("weight", name, 0, 0, shape[0], 0, shape[0] * (shape[1] if len(shape) > 1 else 1)), step)
        for name, shape in shapes(A).items()
    ]
    filled = [(segment, torch.full((segment.last,), float(value))) for segment, value in segments]
    return save(folder, Origin("run", step), A, filled, 0, "", {}, huggingface)


def numbers(folder):
    return sorted(int(path.name[5:]) for path in folder.glob("step_*"))


def test_latest_names_the_newest_whole_step(tmp_path):
    folder = tmp_path / "run/checkpoints"
    for step in (1, 2, 3):
        path = save_step(folder, step)
        assert (folder / LATEST).read_text() == f"step_{step:06d}\n"
        assert resolve(tmp_path / "run") == resolve(folder) == resolve(path) == path
    (folder / LATEST).write_text("step_000002\n")
    assert resolve(tmp_path / "run") == folder / "step_000002"
    for strange in ("step_000009\n", "", "../../etc\n", "."):
        (folder / LATEST).write_text(strange)
        assert resolve(tmp_path / "run") == folder / "step_000003"
    (folder / LATEST).write_bytes(b"\xff\xfe")
    assert resolve(tmp_path / "run") == folder / "step_000003"
    (folder / LATEST).unlink()
    assert resolve(tmp_path / "run") == folder / "step_000003"


def test_pruning(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save_step(tmp_path, step)
    prune(tmp_path, 0)
    assert numbers(tmp_path) == [1, 2, 3, 4, 5]
    for name in ("keep", "keep_every"):
        with pytest.raises(ValueError, match=rf"checkpoint\.{name}=-1 must be 0"):
            prune(tmp_path, **{"keep": 0} | {name: -1})
    prune(tmp_path, 3, tmp_path / "step_000001")  # saved into the folder of a run that had come further
    assert numbers(tmp_path) == [1, 4, 5]
    prune(tmp_path, 1, tmp_path / "step_000001")
    assert numbers(tmp_path) == [1]
    save_step(tmp_path, 7)
    prune(tmp_path, 1)
    assert numbers(tmp_path) == [7]


def test_every_mth_step_is_kept(tmp_path):
    for step in range(10, 100, 10):
        path = save_step(tmp_path, step)
        prune(tmp_path, 2, path, 30)
    assert numbers(tmp_path) == [30, 60, 80, 90]


def killed_save(folder, huggingface, point):
    """Save step 3 in a process that ends at the `point`-th thing it does to files. Returns its exit code."""
    child = os.fork()
    if child == 0:
        left = itertools.count(point, -1)

        def at(event, arguments):
            on_files = event == "open" or event.startswith(("os.", "shutil."))
            if on_files and next(left) == 0:
                os._exit(9)

        try:
            sys.addaudithook(at)
            prune(folder, 2, save_step(folder, 3, huggingface))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("anew", [False, True])
def test_a_save_killed_at_any_point_leaves_a_whole_checkpoint(tmp_path, anew, monkeypatch):
    """`anew`: the step is there already, but damaged, as when a run has gone back to the step before."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # half of the time, and no matter to a killed process
    template, travels = tmp_path / "template", tmp_path / "travels"
    travels.mkdir()
    (travels / "config.json").write_text("{}")
    for step in (1, 2, 3) if anew else (1, 2):
        save_step(template, step)
    if anew:
        (template / "step_000003/rank_00000.safetensors").write_bytes(b"")
        (template / LATEST).write_text("step_000002\n")
    seen = set()
    for point in itertools.count():
        folder = tmp_path / "run/checkpoints"
        shutil.copytree(template, folder)
        code = killed_save(folder, travels, point)
        assert code in (0, 9)
        readers = []
        for path in steps(folder):
            try:
                readers.append(Reader(path))
                readers[-1].check()
            except (ValueError, FileNotFoundError):
                assert anew and path.name == "step_000003"
        newest = readers[-1]
        assert newest.step in (2, 3)
        for name in shapes(A):
            assert (newest.read(name) == newest.step).all()
        named = Reader(resolve(tmp_path / "run"))
        named.check()
        seen.add((newest.step, named.step))
        prune(folder, 2, save_step(folder, 3, travels))  # the run goes on
        assert sorted(path.name for path in folder.iterdir()) == [LATEST, "step_000002", "step_000003"]
        Reader(resolve(folder)).check()
        assert Reader(resolve(folder)).step == 3
        shutil.rmtree(folder)
        if code == 0:
            break
    assert point > 30, "it was killed at that many points"
    assert seen == {(2, 2), (3, 2), (3, 3)}


def test_a_second_run_is_kept_out_and_a_killed_one_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from megatron_ziya.checkpoint.folder import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "in\n"
            told = rf"is used by process {other.pid} on .*; wait for it, end it, or"
            with pytest.raises(ValueError, match=told), locked(tmp_path):
                pass
        finally:
            other.send_signal(signal.SIGKILL)
    assert (tmp_path / "lock").exists()
    for _ in range(2):
        with locked(tmp_path):
            assert take_lock(tmp_path / "lock")[1].startswith(f"process {os.getpid()} on ")
        assert not (tmp_path / "lock").exists()


def test_a_lock_whose_file_was_just_removed_is_taken_anew(tmp_path, monkeypatch):
    """Between our opening of the file and our lock, its holder ends and removes it."""
    original, calls = fcntl.flock, []

    def late(descriptor, how):
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / "lock").unlink()
        original(descriptor, how)

    monkeypatch.setattr("fcntl.flock", late)
    held, holder = take_lock(tmp_path / "lock")
    assert not holder and len(calls) == 2
    assert (tmp_path / "lock").stat().st_ino == os.fstat(held).st_ino
    os.close(held)


def enter(directory):
    try:
        with locked(directory):
            torch.distributed.barrier()
            return "in", take_lock(directory / "lock")[1]
    except ValueError as error:
        return "out", str(error)


def test_rank_0_takes_the_lock_for_all_ranks(tmp_path):
    inside = run_ranks(2, enter, tmp_path)
    assert [said for said, _ in inside] == ["in", "in"]
    held, _ = take_lock(tmp_path / "lock")
    outside = run_ranks(2, enter, tmp_path)
    assert outside[0] == outside[1] and outside[0][0] == "out" and f"process {os.getpid()} on" in outside[0][1]
    os.close(held)
