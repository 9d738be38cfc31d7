"""A small LLaMA-like SentencePiece model, trained by sentencepiece itself, and texts that nobody here wrote."""

import inspect
import io
import json
import random
import string
from pathlib import Path
from types import ModuleType

import pytest
import sentencepiece

CHINESE = [
    "人工智能正在改变世界，谢谢你的帮助。",
    "鄱阳湖畔的鹭鸶翩跹起舞。",
    "中国的城市和农村都在发展，人们的生活越来越好。",
    "《三国演义》是一部小说；“天下大势，分久必合，合久必分。”",
]


def source_lines(*modules: ModuleType) -> list[str]:
    return [line for module in modules for line in inspect.getsource(module).splitlines()]


@pytest.fixture(scope="session")
def lines() -> list[str]:
    """Real lines (Python's library), Chinese ones, and odd ones with runs, controls, marks and rare planes."""
    rng = random.Random(7)
    alphabet = [*"a 中翩\n\té😀▁𠀀，-=1\x00\ufeff", "e\u0301"]
    odd = ["".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(2000)]
    runs = [mark * length for mark in " -=*#.\t中" for length in range(1, 70)]
    return source_lines(json, string, inspect, random) + CHINESE + odd + runs


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokenizer.model` of 1,500 pieces with LLaMA's settings; of Chinese it knows a few characters."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(source_lines(string, inspect) + ["中国的人"] * 50),
        model_writer=model,
        model_type="bpe",
        vocab_size=1500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("base") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A .jsonl file of the Chinese sentences."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in CHINESE))
    return path
