"""Held-out loss against transformers run on each document by itself; packing never shows."""

import json
import math
import random
import re

import numpy as np
import pytest
import torch
from models import our_model, save, small, train_tokenizer, transformers_model

from megatron_ziya.evaluate import commands
from megatron_ziya.evaluate.perplexity import Result, evaluate, read_texts, rows, table

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def theirs():
    return transformers_model(small(vocabulary_size=600), torch.float64)


def write(file, texts):
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


TEXTS = ["import string", "x", "def inspect(self):\n    return 中国", "json.loads(text)", "a b c d e f g"]


def test_loss_is_that_of_transformers_on_each_document(tokenizer, theirs, tmp_path):
    from ziya_data.tokenizer import Tokenizer

    encoder = Tokenizer.load(tokenizer)
    nats, predicted = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([[*encoder.encode(text), encoder.eos_id]])
        with torch.no_grad():
            nats += theirs(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        predicted += ids.shape[1] - 1
    model = our_model(small(vocabulary_size=600), theirs, torch.float64)
    file = write(tmp_path / "text.jsonl", ["", *TEXTS])
    for length in (64, 40):  # all documents fit into a window
        found = evaluate(model, encoder, read_texts(file), length, CPU)
        characters = sum(map(len, TEXTS))
        assert (found.documents, found.characters, found.predicted) == (len(TEXTS), characters, predicted)
        assert found.loss == pytest.approx(nats / predicted, rel=1e-6)  # transformers' norms are FP32
        assert found.bits_per_character == pytest.approx(nats / math.log(2) / characters, rel=1e-6)
        assert found.perplexity_per_character == pytest.approx(2**found.bits_per_character)
        assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_every_token_but_the_first_is_predicted_once_from_its_own_document():
    draw = random.Random(1)
    for length in (1, 2, 7, 16):
        documents = [[1000 * d + i for i in range(draw.randrange(1, 40))] for d in range(1, 30)]
        seen = []
        for (inputs, targets), starts, mask in rows(documents, length):
            assert len(inputs) == len(targets) == len(starts) == len(mask) == length
            assert np.all(starts <= np.arange(length)) and np.all(np.diff(starts) >= 0)
            assert np.all(targets[mask] == inputs[mask] + 1)
            assert np.all(inputs[starts[mask]] // 1000 == inputs[mask] // 1000)
            # a document sees itself alone: the tokens from its start on follow one another
            assert np.all(inputs[mask] - inputs[starts[mask]] == np.flatnonzero(mask) - starts[mask])
            seen += targets[mask].tolist()
        assert sorted(seen) == sorted(token for document in documents for token in document[1:])


def test_texts_are_cut_at_the_limit(tmp_path):
    file = write(tmp_path / "text.jsonl", ["abc", "", "defg", "hij"])
    assert list(read_texts(file)) == [("abc", True), ("defg", True), ("hij", True)]
    assert list(read_texts(file, 5)) == [("abc", True), ("de", False)]
    assert list(read_texts(file, 7)) == [("abc", True), ("defg", True)]
    file.write_text('{"text": "a"}\n{"txt": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        list(read_texts(file))


def test_command_reads_every_kind_of_model_alike(tokenizer, theirs, tmp_path, capsys):
    from megatron_ziya.checkpoint import convert

    model = save(theirs.float(), tmp_path / "model")
    convert.from_hf(model, tmp_path / "run/checkpoints/step_000007", verify=False)
    text = write(tmp_path / "text.jsonl", TEXTS * 9)
    found = []
    for path in ("model", "run/checkpoints/step_000007", "run"):
        arguments = ["--model", str(tmp_path / path), "--tokenizer", str(tokenizer), "--max-characters", "300"]
        out = tmp_path / "deep/evaluation.json"
        assert commands.perplexity([*arguments, "--text", f"en={text}", f"zh={text}", "--out", str(out)]) == 0
        found.append(json.loads(out.read_text()))
    assert found[0]["languages"] == found[1]["languages"] == found[2]["languages"]
    assert found[0]["languages"]["en"] == found[0]["languages"]["zh"]
    assert found[0]["languages"]["en"]["characters"] == 300
    out = capsys.readouterr().out
    assert "bits/char" in out
    en = found[0]["languages"]["en"]
    assert f"en: {en['predicted']:,} of {en['tokens']:,} tokens predicted" in out


def test_columns_stay_apart_whatever_the_numbers():
    big = Result(1, 10**12, 10**12, 10**12 - 1, 123456.7, 1e30, 1234.5, 1e12)
    lines = table({"a language of a long name": big, "en": Result(1, 2, 3, 2, 0.5, 1.6, 0.7, 1.2)}).splitlines()
    assert [len(line) for line in lines] == [len(lines[0])] * 3
    assert len(re.split(r" {2,}", lines[1])) == len(re.split(r" {2,}", lines[0])) == 8


def test_mistakes_are_told(tokenizer, tmp_path):
    model = save(transformers_model(small()), tmp_path / "model")
    text = write(tmp_path / "text.jsonl", TEXTS)
    arguments = ["--model", str(model), "--tokenizer", str(tokenizer), "--text"]
    with pytest.raises(ValueError, match="has 600 pieces, the model's embedding 131 rows"):
        commands.perplexity([*arguments, f"en={text}"])
    with pytest.raises(ValueError, match="is not LANGUAGE=FILE"):
        commands.perplexity([*arguments, str(text)])
    model = save(transformers_model(small(vocabulary_size=600)), tmp_path / "model")
    with pytest.raises(ValueError, match="--sequence-length 65 does not fit the model's 64 positions"):
        commands.perplexity([*arguments, f"en={text}", "--sequence-length", "65"])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        commands.perplexity([*arguments, f"en={tmp_path}/nowhere.jsonl"])
