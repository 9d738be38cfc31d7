"""Recipes are strict, and every mistake is told in one line."""

import dataclasses
from pathlib import Path

import pytest

from megatron_ziya import checks, config
from megatron_ziya.config import Architecture, Data, Parallel, Recipe, Source


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_overrides_go_over_the_file(tmp_path):
    path = written(tmp_path, '[run]\nsteps = 5\n[optimizer]\nlearning_rate = 1\n[[data.sources]]\npaths = "a"')
    recipe = config.load(path, ["--run.steps", "7", "--optimizer.clip=0.5", "--run.directory", "runs/x"])
    assert (recipe.run.steps, recipe.run.directory) == (7, "runs/x")
    assert (recipe.optimizer.clip, recipe.optimizer.learning_rate) == (0.5, 1.0)
    assert recipe.data.sources == (Source(paths=("a",)),)


@pytest.mark.parametrize("model", ["[model]\nlayers = 3\nheads = 8", '[model]\nload = "x"'])
def test_the_resolved_recipe_is_the_same_recipe(tmp_path, model):
    recipe = config.load(written(tmp_path, model + '\n[[data.sources]]\nname = "a"\npaths = ["b", "c"]'))
    assert config.load(written(tmp_path, config.to_toml(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[run]\nstepz = 5", [], "unknown key run.stepz; did you mean steps"),
        ("[rum]\nsteps = 5", [], "unknown key rum; did you mean run"),
        ('[run]\nsteps = "many"', [], "run.steps='many' must be a whole number"),
        ("[run]\nsteps = true", [], "run.steps=True must be a whole number"),
        ('[parallel]\nschedule = "2f2b"', [], "must be one of gpipe, 1f1b, interleaved"),
        ("[[data.sources]]\nwieght = 1.0", [], r"data.sources\[0\].wieght; did you mean weight"),
        ("[run\n", [], "is not valid TOML"),
        ("", ["--steps", "5"], "'--steps' is not an override"),
        ("", ["--run.steps"], "'--run.steps' is not an override"),
        ("[model]\nheads = 3", [], "model.heads=3 does not divide 4096"),
        ('[model]\nload = "x"\nheads = 4', [], "remove model.heads or model.load"),
    ],
)
def test_mistakes(tmp_path, text, overrides, message):
    with pytest.raises(ValueError, match=message):
        config.load(written(tmp_path, text), overrides)


def test_missing_recipe():
    with pytest.raises(FileNotFoundError, match="no such recipe"):
        config.load("nowhere.toml")


@pytest.mark.parametrize(
    ("parallel", "data", "world", "message"),
    [
        ({"tensor": 3}, {}, 3, "parallel.tensor=3 does not divide 32 .*; use 1, 2, 4, 8, 16, 32"),
        ({"tensor": 2, "pipeline": 2}, {}, 3, "3 processes do not fit tensor x pipeline = 4"),
        ({"pipeline": 64}, {}, 64, "more than the 32 layers"),
        ({}, {"global_batch_size": 5}, 2, "not a multiple of data-parallel ranks x micro-batch = 2 x 1"),
        ({}, {"sequence_length": 8192}, 1, "longer than the model's 4096 positions"),
        ({"tensor": 2}, {"sequence_length": 33}, 2, "33 tokens a micro-batch do not split over parallel.tensor=2"),
        ({"pipeline": 2, "virtual": 2}, {}, 2, "interleaved needs 2 or more"),
        ({"tensor": 0}, {}, 1, "must be 1 or more"),
        ({}, {"sources": ()}, 1, "data.sources is empty"),
    ],
)
def test_layouts_that_do_not_fit(parallel, data, world, message):
    data = {"global_batch_size": 8, "sources": (Source("any"),)} | data
    recipe = dataclasses.replace(Recipe(), parallel=Parallel(**parallel), data=Data(**data))
    with pytest.raises(ValueError, match=message):
        checks.check(recipe, Architecture(), world)


def test_parameters_of_llama2_and_ziya2():
    assert Architecture().parameters() == 6_738_415_616
    llama2_13b = Architecture(hidden_size=5120, intermediate_size=13824, layers=40, heads=40)
    assert llama2_13b.parameters() == 13_015_864_320
    assert dataclasses.replace(llama2_13b, vocabulary_size=39424).parameters() == 13_091_886_080
    llama2_70b = Architecture(hidden_size=8192, intermediate_size=28672, layers=80, heads=64, kv_heads=8)
    assert llama2_70b.parameters() == 68_976_648_192


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("data", {"micro_batch_size": 0}, "data.micro_batch_size=0 must be 1 or more"),
        ("data", {"pad_id": -1}, "data.pad_id=-1 must be 0 or more"),
        ("run", {"seed": -1}, "run.seed=-1 must be 0 or more"),
        ("run", {"threads": 0}, "run.threads=0 must be 1 or more"),
        ("optimizer", {"learning_rate": float("nan")}, "optimizer.learning_rate=nan must be 0 or more"),
        ("optimizer", {"minimum": 1.0}, "optimizer.minimum=1 is above optimizer.learning_rate"),
        ("optimizer", {"warmup": 10.0}, "optimizer.warmup=10.0 must be a share of the steps"),
        ("optimizer", {"beta2": 1.0}, "optimizer.beta2=1.0 must be 0 or more and below 1"),
        ("checkpoint", {"keep": -1}, r"checkpoint.keep=-1 must be 0 \(all\) or more"),
        ("log", {"every": 0}, "log.every=0 must be 1 or more"),
        ("data", {"sources": (Source(paths=("x",)),)}, r"data.sources\[0\] has no name"),
    ],
)
def test_values_out_of_range(section, value, message):
    recipe = dataclasses.replace(Recipe(), data=Data(global_batch_size=8, sources=(Source("any"),)))
    recipe = dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **value)})
    with pytest.raises(ValueError, match=message):
        checks.check(recipe, Architecture(), 1)


def test_every_number_with_a_range_is_a_knob():
    for name in checks.RANGES:
        section, _, key = name.partition(".")
        assert isinstance(getattr(getattr(Recipe(), section), key), int | float), name
