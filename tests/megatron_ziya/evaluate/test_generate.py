"""Greedy text equals transformers' own; drawing follows the probabilities."""

import json

import pytest
import torch
from models import our_model, save, small, train_tokenizer, transformers_model

from megatron_ziya.evaluate import commands
from megatron_ziya.evaluate.generate import Sampling, choose, generate

A = small(vocabulary_size=620)  # 20 rows more than the tokenizer has pieces
PROMPTS = ["import string", "def f(", "中"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    theirs = transformers_model(A)
    with torch.no_grad():  # a padding row that would win every time
        theirs.lm_head.weight[610] = 100 * theirs.lm_head.weight[5]
    return save(theirs, tmp_path_factory.mktemp("model"))


def test_greedy_equals_transformers(model, tokenizer, tmp_path):
    found = []
    for engine in ("megatron-ziya", "transformers"):
        arguments = ["--model", str(model), "--tokenizer", str(tokenizer), "--tokens", "30", "--with", engine]
        prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
        out = tmp_path / f"{engine}.json"
        assert commands.generate([*arguments, *prompts, "--bos", "--out", str(out)]) == 0
        found.append(json.loads(out.read_text())["samples"])
    assert found[0] == found[1]
    for sample, prompt in zip(found[0], PROMPTS, strict=True):
        assert sample["prompt"] == prompt and sample["text"].startswith(prompt)
    assert any(sample["tokens"] for sample in found[0])


def test_drawn_tokens_repeat_with_the_seed_up_to_the_last_position():
    ours = our_model(A, transformers_model(A), torch.float32)
    sampling = Sampling(tokens=A.max_positions - 2, temperature=1.5, top_p=0.9, seed=3)
    first = generate(ours, [1, 5], sampling, eos_id=-1, pieces=600)
    assert first == generate(ours, [1, 5], sampling, eos_id=-1, pieces=600)
    assert len(first) == A.max_positions - 2 and max(first) < 600
    assert first != generate(ours, [1, 5], Sampling(A.max_positions - 2, 1.5, 0.9, seed=4), eos_id=-1, pieces=600)
    assert generate(ours, [1, 5], sampling, eos_id=first[3], pieces=600) == first[: first.index(first[3])]


def test_choice_follows_temperature_and_top_p():
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    generator = torch.Generator().manual_seed(1)

    def shares(**knobs):
        drawn = [choose(logits, Sampling(**knobs), generator) for _ in range(4000)]
        return torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)

    # five standard errors of 4,000 draws: 0.04
    torch.testing.assert_close(shares(temperature=1.0), logits.exp(), rtol=0, atol=0.04)
    torch.testing.assert_close(
        shares(temperature=1.0, top_p=0.7), torch.tensor([0, 2 / 3, 0, 1 / 3]), rtol=0, atol=0.04
    )
    squared = logits.exp() ** 2
    torch.testing.assert_close(shares(temperature=0.5), squared / squared.sum(), rtol=0, atol=0.04)
    assert shares(temperature=0.0).tolist() == [0, 1, 0, 0]
    assert shares(temperature=1.0, top_p=0.01).tolist() == [0, 1, 0, 0]


def test_mistakes_are_told(model, tokenizer, tmp_path):
    for knobs, says in (
        ({"tokens": 0}, "tokens=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_p": 0}, "top_p=0"),
    ):
        with pytest.raises(ValueError, match=says):
            Sampling(**knobs)
    arguments = ["--model", str(model), "--tokenizer", str(tokenizer), "--prompt"]
    with pytest.raises(ValueError, match="the prompt is empty"):
        commands.generate([*arguments, ""])
    with pytest.raises(ValueError, match="tokens, the model 64 positions"):
        commands.generate([*arguments, "a b " * 50])
    with pytest.raises(
        ValueError, match=r"tokens=500 new ones after a prompt of \d do not fit the model's 64 positions"
    ):
        commands.generate([*arguments, "a b", "--tokens", "500"])
    assert commands.generate([*arguments, "a b " * 20]) == 0  # the default is what fits
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor a run directory"):
        commands.generate(["--model", str(tmp_path), "--tokenizer", str(tokenizer), "--prompt", "x"])
