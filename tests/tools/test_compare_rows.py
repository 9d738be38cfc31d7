"""A tiny model goes through a .gguf and back with equal logits, and the table comes out of the real commands."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from models import small, transformers_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["人工智能正在改变世界，谢谢你的帮助。", "中国的城市和农村都在发展。", "鄱阳湖畔的鹭鸶翩跹起舞。"]


@pytest.fixture
def tools(monkeypatch):
    """The scripts find one another in their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    yield
    for name in ("compare_rows", "gguf_model", "machine"):
        sys.modules.pop(name, None)


def turned(weight, heads):
    """As llama.cpp stores query and key: the numbers that rotary turns together stand side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, tied):
    """A byte-level tokenizer and a random model of its size, by the packages' own writers; returns the model."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(["the cat and the dog"] * 20, trainer)
    vocabulary, merges = made.get_vocab(), json.loads(made.to_str())["model"]["merges"]
    a = small(vocabulary_size=len(vocabulary), tied=tied)
    model = transformers_model(a)
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()  # not the model's rotary table with them
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(a.layers)
    writer.add_context_length(a.max_positions)
    writer.add_embedding_length(a.hidden_size)
    writer.add_feed_forward_length(a.intermediate_size)
    writer.add_head_count(a.heads)
    writer.add_head_count_kv(a.kv_heads)
    writer.add_layer_norm_rms_eps(a.rms_norm_eps)
    writer.add_rope_freq_base(a.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3, 3] + [1] * (len(vocabulary) - 2))
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    theirs = {
        "embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
        "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    for name, weight in model.named_parameters():
        short = next(short for long, short in theirs.items() if long in name)
        layer = f"blk.{name.split('.')[2]}." if ".layers." in name else ""
        plain = weight.detach().numpy()
        if short in ("attn_q", "attn_k"):
            plain = turned(plain, a.heads if short == "attn_q" else a.kv_heads)
        writer.add_tensor(f"{layer}{short}.weight", np.ascontiguousarray(plain))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_becomes_the_same_model(tools, tmp_path, tied, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import gguf_model
    from transformers import AutoModelForCausalLM

    model = write_gguf(tmp_path / "model.gguf", tied)
    gguf_model.write(tmp_path / "model.gguf", tmp_path / "out")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(60)[None]
    with torch.no_grad():
        assert torch.equal(back(ids).logits, model(ids).logits)


def table(tools, tmp_path, capsys, steps):
    import compare_rows

    write_gguf(tmp_path / "model.gguf", True)
    text, held_out = tmp_path / "text.jsonl", tmp_path / "held.jsonl"
    text.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 9))
    held_out.write_text(json.dumps({"text": "谢谢中国的农村"}) + "\n")
    words = ["--gguf", tmp_path / "model.gguf", "--text", text, "--held-out", held_out, "--folder", tmp_path]
    words += ["--sequence", 32, "--steps", steps, "--markdown", tmp_path / "page.md", "--learning-rate", 0.003]
    words += ["--pairs", "mean:mean", "zero:embedding"]
    assert compare_rows.main([str(word) for word in words]) == 0
    assert (tmp_path / "page.md").read_text() in capsys.readouterr().out
    lines = (tmp_path / "page.md").read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]


def test_the_table_at_step_0(tools, tmp_path, capsys):
    _, old, mean, zero = table(tools, tmp_path, capsys, 0)
    assert (old[0], mean[:2], zero[:2]) == ("the old vocabulary", ["mean", "mean"], ["zero", "embedding"])
    assert len({old[-2], mean[2], zero[2]}) == 3
    assert all(0 < float(row[-2]) < 100 and row[-1] == "nan" for row in (old, mean, zero))


@pytest.mark.slow
def test_the_table_after_training(tools, tmp_path, capsys):
    _, *rows = table(tools, tmp_path, capsys, 30)
    assert all(0 < float(row[-1]) < float(row[-2]) for row in rows)


def test_bad_input_is_one_clear_line(tools, tmp_path, capsys):
    import compare_rows

    words = ["--gguf", str(tmp_path / "missing.gguf"), "--text", "a.jsonl", "--held-out", "b.jsonl"]
    assert compare_rows.main(words) == 2
    assert "compare_rows: no file " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare_rows.main([*words, "--pairs", "mean:best"])
    assert "'mean:best' is not EMBEDDING:HEAD" in capsys.readouterr().err
