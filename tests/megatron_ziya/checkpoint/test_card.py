"""The model card tells what the checkpoints say, stage by stage."""

import dataclasses
import json

import pytest
from ranks import run_ranks, run_recipe
from tiny_run import recipe

from megatron_ziya.checkpoint import commands
from megatron_ziya.checkpoint.distributed import Reader
from megatron_ziya.config import Model


@pytest.fixture(scope="module")
def stages(tmp_path_factory, tiny_dataset):
    folder = tmp_path_factory.mktemp("stages")
    for number, steps in ((1, 3), (2, 2)):
        settings = recipe(folder / f"stage{number}", tiny_dataset, steps, every=0)
        run = dataclasses.replace(settings.run, stage=f"stage{number}")
        model = Model(load=str(folder / "stage1")) if number == 2 else settings.model
        run_ranks(1, run_recipe, dataclasses.replace(settings, run=run, model=model))
    return folder


def test_stages_tokens_and_scores(stages, tmp_path, capsys):
    score = {"characters": 1234, "bits_per_character": 2.34567, "perplexity": 12.5}
    (tmp_path / "after.json").write_text(json.dumps({"languages": {"zh": score}}))
    out, scores = tmp_path / "our-model", str(tmp_path / "after.json")
    assert commands.to_hf([str(stages / "stage2"), str(out), "--skip-verify", "--evaluation", scores]) == 0
    card = (out / "README.md").read_text()
    lines = card.splitlines()
    assert lines[0] == "---" and "library_name: transformers" in lines and "# our-model" in lines
    reader = Reader(stages / "stage2/checkpoints/step_000002")
    assert f"{reader.architecture.parameters():,} weights (bfloat16)" in card and reader.weights_sum in card
    assert [line.split(" | ")[:3] for line in lines if line.startswith("| stage")][1:] == [
        ["| stage1", "3", "192"], ["| stage2", "2", "128"],
    ]  # fmt: skip
    assert "320 tokens in all" in card and "random 100.0%" in card
    assert "| after | zh | 1,234 | 2.3457 | 12.50 |" in card


def test_a_stage_that_is_gone_is_left_out_and_bad_scores_are_told(stages, tmp_path):
    (stages / "stage1").rename(stages / "moved")
    try:
        assert commands.to_hf([str(stages / "stage2"), str(tmp_path / "out"), "--skip-verify"]) == 0
        card = (tmp_path / "out/README.md").read_text()
        assert "| stage2 |" in card and "| stage1 |" not in card and "## Evaluation" not in card
    finally:
        (stages / "moved").rename(stages / "stage1")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad.json has no `languages`; give what `ziya evaluate perplexity --out`"):
        commands.to_hf([str(stages / "stage2"), str(tmp_path / "out"), "--evaluation", str(tmp_path / "bad.json")])
