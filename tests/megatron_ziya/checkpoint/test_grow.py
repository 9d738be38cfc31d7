"""New rows are what the old pieces say; everything else stays to the bit, and the engine takes the result."""

import json
import shutil

import numpy as np
import pytest
import torch
from models import save, small, train_tokenizer, transformers_model
from safetensors.torch import load_file

from megatron_ziya.checkpoint import commands, convert
from megatron_ziya.checkpoint.distributed import Reader
from megatron_ziya.checkpoint.grow import METHODS, grow_vocabulary, new_rows

NEW = ("中", "国", "é", "\u2581zebra")
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("new"), extra=NEW)


def make_model(folder, old, rows=600, dtype=torch.float32, **changes):
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


TABLE = torch.randn(500, 8, generator=torch.Generator().manual_seed(1)) * 3 + 1


def test_weighted_means_by_hand():
    """NumPy's weighted average in FP64; an FP32 sum of four products is off by a few ulps of the largest row."""
    sources = [[7], [3, 9, 11], [3, 9, 12, 11], [11, 9]]
    old = TABLE.double().numpy()
    # of ten pieces: 3 helped twice, 7 once, 9 three times, 11 three times, 12 once
    uses = {3: 2, 7: 1, 9: 3, 11: 3, 12: 1}
    wanted = {
        "mean": [[1], [1, 1, 1], [1, 1, 1, 1], [1, 1]],
        "rising": [[1], [1, 2, 3], [1, 2, 3, 4], [1, 2]],
        "falling": [[1], [3, 2, 1], [4, 3, 2, 1], [2, 1]],
        "frequency": [[1e-3 / (1e-3 + uses[i] / 10) for i in ids] for ids in sources],
    }
    for method, weights in wanted.items():
        rows = np.stack([np.average(old[ids], 0, w) for ids, w in zip(sources, weights, strict=True)])
        np.testing.assert_allclose(new_rows(TABLE, sources, method, 1), rows, rtol=0, atol=4 * 2**-23 * 10)
        assert method == "mean" or not np.allclose(rows, [old[ids].mean(0) for ids in sources], atol=1e-2)
    assert set(METHODS) == {*wanted, "random", "zero"}


def test_zero_and_random():
    sources = [[i, i + 1] for i in range(400)]
    assert not new_rows(TABLE, sources, "zero", 1).any()
    drawn = new_rows(TABLE, sources, "random", 1)
    assert torch.equal(drawn, new_rows(TABLE, sources, "random", 1))
    assert not torch.equal(drawn, new_rows(TABLE, sources, "random", 2))
    # 3,200 draws: mean and deviation within five standard errors
    assert abs(drawn.mean() - TABLE.mean()) < 5 * 3 / 3200**0.5 + 5 * 3 / 4000**0.5
    assert abs(drawn.std() / TABLE.std() - 1) < 0.1


def test_the_head_has_a_method_of_its_own(old, new, tmp_path, capsys):
    model = make_model(tmp_path / "model", old)
    words = ["--model", str(model), "--tokenizer", str(new), "--out"]
    for name, more in {
        "mean": [], "falling": ["--method", "falling"], "apart": ["--method", "mean", "--head-method", "falling"],
        "copied": ["--method", "rising", "--head-method", "embedding"],
    }.items():  # fmt: skip
        assert commands.grow_vocabulary([*words, str(tmp_path / name), *more]) == 0
    assert "new ones by rising, of the head by embedding" in capsys.readouterr().out
    mean, falling, apart, copied = (
        load_file(tmp_path / name / "model.safetensors") for name in ("mean", "falling", "apart", "copied")
    )
    embedding, head = TABLES
    assert torch.equal(apart[embedding], mean[embedding]) and torch.equal(apart[head], falling[head])
    assert not torch.equal(mean[head], falling[head]) and not torch.equal(mean[embedding], falling[embedding])
    assert torch.equal(copied[head][600:], copied[embedding][600:])
    assert torch.equal(copied[head][:600], mean[head][:600])
    record = json.loads((tmp_path / "copied/conversion.json").read_text())
    assert (record["method"], record["head_method"]) == ("rising", "embedding")


@pytest.mark.parametrize("carried", [True, False])
def test_a_checkpoint_grows_as_the_hugging_face_folder_does(old, tmp_path, carried):
    """Through our format and back: every tensor equal to the folder that was widened directly."""
    from ziya_data.tokenizer.expand import expand

    expand(old, tmp_path / "wide", characters="中国")
    model = make_model(tmp_path / "model", old, 601, torch.bfloat16)
    assert convert.from_hf(model, tmp_path / "checkpoint").passed
    if not carried:  # an older checkpoint that knows of no tokenizer: expansion.json says what is needed
        shutil.rmtree(tmp_path / "checkpoint/huggingface")
    words = ["--tokenizer", str(tmp_path / "wide"), "--method", "frequency", "--head-method", "falling"]
    for source, out in ("model", "directly"), ("checkpoint", "grown"):
        assert commands.grow_vocabulary([*words, "--model", str(tmp_path / source), "--out", str(tmp_path / out)]) == 0
    grown = Reader(tmp_path / "grown")
    grown.check()
    assert grown.manifest["grown_from"] == str(tmp_path / "checkpoint")
    assert convert.to_hf(tmp_path / "grown", tmp_path / "back").passed
    directly, back = (load_file(tmp_path / name / "model.safetensors") for name in ("directly", "back"))
    assert directly.keys() == back.keys() and all(torch.equal(back[name], directly[name]) for name in back)
    model_file = "tokenizer.model"
    assert (tmp_path / "back" / model_file).read_bytes() == (tmp_path / "wide" / model_file).read_bytes()
    assert json.loads((tmp_path / "back/config.json").read_text())["vocab_size"] == 602


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
    with pytest.raises(ValueError, match=r"one table for embedding and head \(tied\); leave out --head-method zero"):
        grow_vocabulary(make_model(tmp_path / "tied", old, tied=True), new, out, "mean", "zero")
    with pytest.raises(ValueError, match="rows can be carried over only where old ids stay"):
        grow_vocabulary(model, train_tokenizer(tmp_path / "other", 700), out)
    (model / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="nothing tells which old pieces spelled the new ones"):
        grow_vocabulary(model, new, out)
    assert not out.exists()
