"""A checkpoint in another number of files: the same state to the bit, and a run goes on from it."""

import dataclasses
import shutil

import pytest
import torch
from ranks import run_ranks, run_recipe
from tiny_run import everything, recipe

from megatron_ziya.checkpoint import commands, convert, streaming
from megatron_ziya.checkpoint.distributed import Reader
from megatron_ziya.checkpoint.streaming import digest


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_dataset):
    directory = tmp_path_factory.mktemp("run") / "run"
    layout = dataclasses.replace(recipe(directory, tiny_dataset, 2, tensor=2).parallel, pipeline=2)
    run_ranks(4, run_recipe, dataclasses.replace(recipe(directory, tiny_dataset, 2), parallel=layout))
    return directory


@pytest.mark.parametrize("files", [1, 3])
def test_the_state_stays_and_the_run_goes_on(run, tmp_path, tiny_dataset, files, capsys):
    source, out = run / "checkpoints/step_000002", tmp_path / "out"
    assert commands.reshard([str(run), str(out), "--files", str(files), "--verify"]) == 0
    assert "none differ" in capsys.readouterr().out
    one, two = everything(source), everything(out)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    sizes = [file.path.stat().st_size for file in Reader(out).files]
    assert len(sizes) == files and max(sizes) < 1.5 * min(sizes)
    before, after = Reader(source), Reader(out)
    made = ("files", "others", "resharded_from", "checksum", "proof")
    assert {k: v for k, v in after.manifest.items() if k not in made} == {
        k: v for k, v in before.manifest.items() if k not in made
    }
    for name in ("whole", "moved"):
        checkpoints = tmp_path / name / "checkpoints"
        shutil.copytree(out if name == "moved" else source, checkpoints / "step_000002")
        run_ranks(2, run_recipe, recipe(tmp_path / name, tiny_dataset, 3, tensor=2))
    one, two = (everything(tmp_path / name / "checkpoints/step_000003") for name in ("whole", "moved"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_weights_alone(run, tmp_path):
    convert.reshard(run, tmp_path / "out", weights_only=True)
    assert Reader(tmp_path / "out").kinds() == {"weight"}
    assert Reader(tmp_path / "out").sum_weights() == Reader(run / "checkpoints/step_000002").weights_sum


def test_a_difference_is_refused_and_kept_apart(run, tmp_path, monkeypatch, capsys):
    calls = []

    def wrong(tensor):
        calls.append(digest(tensor))
        return "other" if len(calls) == 5 else calls[-1]

    monkeypatch.setattr(streaming, "digest", wrong)
    assert commands.reshard([str(run), str(tmp_path / "out")]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert not (tmp_path / "out").exists() and (tmp_path / "out.failed").is_dir()


def test_bad_numbers_and_targets_are_told(run, tmp_path):
    for files in (0, 10_000):
        with pytest.raises(ValueError, match=rf"--files {files} must be from 1 to \d+, the tensors there are"):
            convert.reshard(run, tmp_path / "out", files)
    with pytest.raises(ValueError, match="is the source itself"):
        convert.reshard(run, run / "checkpoints/step_000002")
