"""A model and data of different tokenizers do not meet, even where both have as many pieces."""

import json
import shutil
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import torch
from models import save, small, train_tokenizer, transformers_model
from ranks import run_ranks, run_recipe
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as bpe
from transformers import PreTrainedTokenizerFast

from megatron_ziya.checkpoint import commands, convert
from megatron_ziya.checkpoint.distributed import Reader, check_tokenizer, write_weights
from megatron_ziya.checkpoint.format import write_manifest
from megatron_ziya.checkpoint.huggingface import HuggingFaceFolder, fingerprint
from megatron_ziya.config import Checkpoint, Data, Log, Model, Optimizer, Parallel, Recipe, Run, Source
from megatron_ziya.evaluate import commands as evaluate
from megatron_ziya.model.weights import shapes
from ziya_data.indexed.mix import Mix
from ziya_data.indexed.mix import Source as MixSource
from ziya_data.indexed.writer import IndexedDatasetWriter
from ziya_data.tokenizer import Tokenizer
from ziya_data.tokenizer import commands as tokenizer_commands

A = small(vocabulary_size=602)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two of equal size: only their content tells them apart."""
    return [
        train_tokenizer(tmp_path_factory.mktemp("tokenizer"), extra=extra) for extra in (("中", "国"), ("国", "中"))
    ]


@pytest.fixture(scope="module")
def source(tokenizers, tmp_path_factory):
    folder = save(transformers_model(A), tmp_path_factory.mktemp("model"))
    shutil.copyfile(tokenizers[0] / "tokenizer.model", folder / "tokenizer.model")
    return folder


@pytest.fixture
def checkpoint(source, tmp_path):
    convert.from_hf(source, tmp_path / "checkpoint", verify=False)
    return tmp_path / "checkpoint"


def test_the_fingerprint_travels(source, checkpoint, tokenizers):
    expected = Tokenizer.load(tokenizers[0]).fingerprint()
    assert json.loads((checkpoint / "manifest.json").read_text())["tokenizer"] == expected
    assert Reader(checkpoint).tokenizer == HuggingFaceFolder(source).tokenizer == expected
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["tokenizer"]  # as older ones are: the folder itself tells
    write_manifest(checkpoint, manifest)
    assert Reader(checkpoint).tokenizer == expected
    assert (checkpoint / "huggingface").stat().st_mode == checkpoint.stat().st_mode


def test_data_of_another_tokenizer_is_refused(checkpoint, tokenizers, tmp_path):
    first, second = (Tokenizer.load(folder).fingerprint() for folder in tokenizers)
    check_tokenizer(checkpoint, first)
    check_tokenizer(Reader(checkpoint), "")
    for model in (checkpoint, str(checkpoint), Reader(checkpoint)):
        with pytest.raises(ValueError, match=rf"the data has another tokenizer \(SHA-256 {second[:12]}.*{first[:12]}"):
            check_tokenizer(model, second)
    a = small()
    write_weights(tmp_path / "bare", a, ((name, torch.zeros(shape)) for name, shape in shapes(a).items()))
    assert Reader(tmp_path / "bare").tokenizer == ""
    check_tokenizer(tmp_path / "bare", second)


def test_to_hf_takes_the_models_own_tokenizer_alone(checkpoint, tokenizers, tmp_path, capsys):
    own, other = (["--skip-verify", "--tokenizer", str(folder)] for folder in tokenizers)
    assert commands.to_hf([str(checkpoint), str(tmp_path / "out"), *own]) == 0
    assert "no tokenizer is written" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"the folder .* has another tokenizer .* use the model's own tokenizer \("):
        commands.to_hf([str(checkpoint), str(tmp_path / "out2"), *other])
    assert not (tmp_path / "out2").exists()
    shutil.rmtree(checkpoint / "huggingface")
    with pytest.raises(ValueError, match="has another tokenizer"):  # the manifest still knows
        commands.to_hf([str(checkpoint), str(tmp_path / "out2"), *other])
    assert commands.to_hf([str(checkpoint), str(tmp_path / "out2"), "--skip-verify"]) == 0
    assert "no tokenizer is written: the checkpoint carries none; give --tokenizer" in capsys.readouterr().out


def test_evaluation_takes_the_models_own_tokenizer_alone(checkpoint, source, tokenizers, tmp_path):
    for model in (checkpoint, source):
        arguments = ["--model", str(model), "--prompt", "a", "--tokens", "1", "--tokenizer"]
        assert evaluate.generate([*arguments, str(tokenizers[0])]) == 0
        with pytest.raises(ValueError, match=r"--tokenizer .* has another tokenizer"):
            evaluate.generate([*arguments, str(tokenizers[1])])
    (checkpoint / "huggingface/tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer lies with the model .*; give --tokenizer FOLDER"):
        evaluate.generate(["--model", str(checkpoint), "--prompt", "a"])


def byte_level(folder: Path, extra: str) -> Path:
    """A byte-level tokenizer.json of 256 bytes, one merge and one added token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = extra[0] * 2
    made = Theirs(bpe.BPE({piece: n for n, piece in enumerate([*alphabet, merged])}, [(extra[0], extra[0])]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_tokens([extra])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_byte_level_tokenizers_have_a_fingerprint_too(source, tmp_path, monkeypatch):
    """It travels like SentencePiece's, and stays when transformers writes the file anew."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    own, other = byte_level(tmp_path / "own", "ab"), byte_level(tmp_path / "other", "ba")
    model = tmp_path / "model"
    shutil.copytree(source, model)
    (model / "tokenizer.model").unlink()
    shutil.copyfile(own / "tokenizer.json", model / "tokenizer.json")
    convert.from_hf(model, tmp_path / "checkpoint", verify=False)
    first, second = (Tokenizer.load(folder).fingerprint() for folder in (own, other))
    assert Reader(tmp_path / "checkpoint").tokenizer == HuggingFaceFolder(model).tokenizer == first != second
    with pytest.raises(ValueError, match=r"has another tokenizer .*tokenizer\.json"):
        check_tokenizer(tmp_path / "checkpoint", second)
    assert evaluate.generate(["--model", str(tmp_path / "checkpoint"), "--prompt", "a", "--tokens", "1"]) == 0
    PreTrainedTokenizerFast(tokenizer_file=str(own / "tokenizer.json")).save_pretrained(tmp_path / "again")
    assert fingerprint(tmp_path / "again") == first
    for change in ({"model": {"ignore_merges": True}}, {"added_tokens": [{"lstrip": True}]}):
        made = json.loads((own / "tokenizer.json").read_text())
        for part, flags in change.items():
            (made[part] if part == "model" else made[part][0]).update(flags if part == "model" else flags[0])
        (tmp_path / "again/tokenizer.json").write_text(json.dumps(made))
        assert fingerprint(tmp_path / "again") != first
    (model / "tokenizer.json").write_text('{"model": {"type": "BPE", "byte_fallback": true}}')
    assert HuggingFaceFolder(model).tokenizer == ""  # made from a tokenizer.model that is not there: unknown
    (model / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not JSON"):
        HuggingFaceFolder(model)


@pytest.mark.parametrize("load", [True, False])
def test_a_run_hands_it_on(load, checkpoint, tokenizers, tmp_path):
    """From the checkpoint it starts from, or from the data where there is none."""
    first = Tokenizer.load(tokenizers[0]).fingerprint()
    draw = np.random.default_rng(0)
    with IndexedDatasetWriter(tmp_path / "data", 602, first) as writer:
        writer.add(draw.integers(3, 600, size=400), np.full(20, 20))
    assert Mix([MixSource("data", (str(tmp_path / "data"),))], 16, 4, 1, 0).tokenizer == first
    model = (
        Model(load=str(checkpoint))
        if load
        else Model(vocabulary_size=602, hidden_size=32, intermediate_size=48, layers=1, heads=4, max_positions=16)
    )
    recipe = Recipe(
        run=Run(directory=str(tmp_path / "run"), steps=1, device="cpu"),
        model=model,
        parallel=Parallel(bucket_mib=0.01, tensor=2),
        data=Data(sequence_length=16, global_batch_size=4, sources=(Source("data", (str(tmp_path / "data"),)),)),
        optimizer=Optimizer(learning_rate=0.0, minimum=0.0, schedule="constant"),
        checkpoint=Checkpoint(),
        log=Log(tensorboard=False, report=False, peak_tflops=1.0),
    )
    run_ranks(2, run_recipe, recipe)
    assert Reader(tmp_path / "run/checkpoints/step_000001").tokenizer == first
    assert (tmp_path / "run/checkpoints/step_000001/huggingface").exists() == load


def test_a_folder_that_is_not_here_must_be_downloaded_first(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"meta-llama/Llama-2-7b-hf: no such folder; .* must be downloaded first"
    ):
        commands.from_hf(["meta-llama/Llama-2-7b-hf", str(tmp_path / "out")])


def test_a_runs_checkpoint_is_not_converted_over(source, tmp_path):
    target = tmp_path / "run/checkpoints/step_000001"
    convert.from_hf(source, target, verify=False)
    before = (target / "manifest.json").read_bytes()
    for convert_over in (commands.from_hf, commands.to_hf):
        given = source if convert_over is commands.from_hf else target
        out = target if convert_over is commands.from_hf else tmp_path / "run/checkpoints/step_000001/huggingface"
        with pytest.raises(ValueError, match=r"is not replaced|was not written by a conversion"):
            convert_over([str(given), str(out)])
    assert (target / "manifest.json").read_bytes() == before


COMMANDS = [
    commands.from_hf, commands.to_hf, commands.grow_vocabulary, commands.info, commands.verify,
    evaluate.perplexity, evaluate.generate,
    tokenizer_commands.from_gguf, tokenizer_commands.expand, tokenizer_commands.compare,
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_option_has_a_help_text(command, monkeypatch):
    class Seen(Exception):
        pass

    def look(parser, *_):
        assert [action.dest for action in parser._actions if not action.help] == []
        raise Seen

    monkeypatch.setattr(ArgumentParser, "parse_args", look)
    with pytest.raises(Seen):
        command([])
