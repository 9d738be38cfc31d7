"""New rows are what the old pieces say; everything else stays to the bit, and the engine takes the result."""

import json

import pytest
import torch
from models import save, small, train_tokenizer, transformers_model
from safetensors.torch import load_file

from megatron_ziya.checkpoint import commands, convert
from megatron_ziya.checkpoint.grow import grow, grow_vocabulary

NEW = ("中", "国", "é", "\u2581zebra")
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("new"), extra=NEW)


def make_model(folder, old, rows=600, dtype=torch.float32, **changes):
    import shutil

    save(transformers_model(small(vocabulary_size=rows, **changes), dtype), folder)
    for file in ("tokenizer.model", "tokenizer.json"):
        shutil.copyfile(old / file, folder / file)
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [600, 602])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_the_mean_of_the_pieces_that_spelled_them(tied, rows, dtype, old, new, tmp_path):
    import sentencepiece

    model = make_model(tmp_path / "model", old, rows, dtype, tied=tied)
    assert grow_vocabulary(model, new, tmp_path / "out") == (600, rows, 604)
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    spelling = sentencepiece.SentencePieceProcessor(str(old / "tokenizer.model"))
    for name, tensor in before.items():
        if name not in TABLES:
            assert torch.equal(after[name], tensor)
            continue
        assert torch.equal(after[name][:600], tensor[:600])
        for row, piece in enumerate(NEW, 600):
            ids = spelling.encode(piece.removeprefix("\u2581"))  # sentencepiece itself puts the space before
            ids = ids if piece.startswith("\u2581") else ids[1:]
            assert len(ids) > 1
            expected = tensor[ids].double().mean(0)
            rounding = torch.finfo(dtype).eps * tensor[ids].abs().max().item()
            torch.testing.assert_close(after[name][row].double(), expected, rtol=0, atol=rounding)
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 604
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (new / "tokenizer.model").read_bytes()
    assert convert.from_hf(tmp_path / "out", tmp_path / "checkpoint").passed


def test_methods():
    table = torch.randn(500, 8, generator=torch.Generator().manual_seed(1)) * 3 + 1
    sources = [[i, i + 1] for i in range(400)]
    assert not grow(table, sources, "zero", 1)[500:].any()
    drawn = grow(table, sources, "random", 1)[500:]
    assert torch.equal(drawn, grow(table, sources, "random", 1)[500:])
    assert not torch.equal(drawn, grow(table, sources, "random", 2)[500:])
    # 3,200 draws: mean and deviation within five standard errors
    assert abs(drawn.mean() - table.mean()) < 5 * 3 / 3200**0.5 + 5 * 3 / 4000**0.5
    assert abs(drawn.std() / table.std() - 1) < 0.1


def test_expansion_json_is_enough_without_the_old_tokenizer(old, tmp_path, capsys):
    from ziya_data.tokenizer.expand import expand

    expand(old, tmp_path / "wide", characters="中国")
    model = make_model(tmp_path / "model", old)
    arguments = ["--model", str(model), "--tokenizer", str(tmp_path / "wide"), "--out"]
    assert commands.grow_vocabulary([*arguments, str(tmp_path / "one")]) == 0
    assert "600 -> 602 rows, new ones by mean" in capsys.readouterr().out
    (model / "tokenizer.model").unlink()
    assert commands.grow_vocabulary([*arguments, str(tmp_path / "two")]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_does_not_fit_is_refused(old, new, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"500 rows of embedding, its tokenizer 600 pieces"):
        grow_vocabulary(make_model(tmp_path / "narrow", old, 500), new, out)
    with pytest.raises(ValueError, match=r"704 rows of embedding, room for all 604 pieces"):
        grow_vocabulary(make_model(tmp_path / "wide", old, 704), new, out)
    model = make_model(tmp_path / "model", old)
    with pytest.raises(ValueError, match="nothing grows"):
        grow_vocabulary(model, old, out)
    with pytest.raises(ValueError, match="rows can be carried over only where old ids stay"):
        grow_vocabulary(model, train_tokenizer(tmp_path / "other", 700), out)
    (model / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="nothing tells which old pieces spelled the new ones"):
        grow_vocabulary(model, new, out)
    assert not out.exists()
