"""Conversion both ways: byte-equal round trips from every form transformers writes, and a clear line for bad input."""

import dataclasses
import json
import os
import struct

import pytest
import torch
from models import save, small, train_tokenizer, transformers_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_ziya.checkpoint import commands, convert, huggingface
from megatron_ziya.checkpoint.distributed import Reader, write_weights
from megatron_ziya.checkpoint.folder import claimed
from megatron_ziya.checkpoint.huggingface import HuggingFaceFolder, architecture_of, config_of, names
from megatron_ziya.checkpoint.load import load_model
from megatron_ziya.model.weights import shapes

LLAMA2_70B_OF_TRANSFORMERS_4 = {  # shortened to what describes the model
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 8192, "intermediate_size": 28672, "max_position_embeddings": 4096, "model_type": "llama",
    "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
    "vocab_size": 32000,
}  # fmt: skip


def tensors(folder):
    """Every tensor of a folder as safetensors reads it, by name, with its bytes."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as handle:
            found |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return found


def assert_equal_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def model():
    return transformers_model(small())


@pytest.fixture
def source(model, tmp_path):
    return save(model, tmp_path / "source")


def save_bin(model, folder, legacy=False):
    folder.mkdir()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # LLaMA 1 exports carry this buffer
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    model.config.save_pretrained(folder)
    return folder


FORMS = {
    "one file": lambda model, folder: save(model, folder),
    "shards": lambda model, folder: save(model, folder, max_shard_size="40KB"),
    "bin": save_bin,
    "bin of old torch": lambda model, folder: save_bin(model, folder, legacy=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shard_bytes", [40_000, 10**9])
def test_round_trip_is_byte_equal(form, shard_bytes, model, tmp_path):
    source = FORMS[form](model, tmp_path / "source")
    assert (len(list(source.glob("*.safetensors"))) > 1) == (form == "shards")
    verify = form in ("shards", "bin")  # importing and running transformers once for each kind of file is enough
    proof = convert.from_hf(source, tmp_path / "checkpoint", verify)
    assert proof is None or (proof.passed and proof.logits is not None)
    convert.to_hf(tmp_path / "checkpoint", tmp_path / "back", verify=verify, shard_bytes=shard_bytes)
    assert_equal_tensors(tensors(tmp_path / "back"), dict(model.state_dict()))
    assert (len(list((tmp_path / "back").glob("*.safetensors"))) > 1) == (shard_bytes == 40_000)
    for file in ("config.json", "generation_config.json"):
        if (source / file).exists():
            expected = json.loads((source / file).read_text())
            found = json.loads((tmp_path / "back" / file).read_text())
            assert {key: found[key] for key in expected} == expected
            assert found.keys() - expected.keys() <= {"torch_dtype"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "checkpoint", "source"]


@pytest.mark.parametrize("changes", [{"tied": True}, {"rope_scaling": 4.0}, {"kv_heads": 4}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kinds_of_models(changes, dtype, tmp_path):
    a = small(**changes)
    source = save(transformers_model(a, dtype), tmp_path / "source")
    assert convert.from_hf(source, tmp_path / "checkpoint").passed
    assert Reader(tmp_path / "checkpoint").architecture == a
    assert convert.to_hf(tmp_path / "checkpoint", tmp_path / "back").passed
    assert_equal_tensors(tensors(tmp_path / "back"), tensors(source))


def test_mixed_types_stay(model, source, tmp_path):
    mixed = {n: t.bfloat16() if t.dim() == 2 else t for n, t in load_file(source / "model.safetensors").items()}
    save_file(mixed, source / "model.safetensors")
    convert.from_hf(source, tmp_path / "checkpoint", verify=False)
    convert.to_hf(tmp_path / "checkpoint", tmp_path / "back", verify=False)
    assert_equal_tensors(tensors(tmp_path / "back"), mixed)


def test_a_checkpoint_of_our_own_becomes_a_model_that_transformers_opens(model, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    a = small(vocabulary_size=700, max_positions=50)
    model = transformers_model(a)
    state = model.state_dict()
    write_weights(tmp_path / "run/checkpoints/step_000003", a, ((n, state[h]) for n, h in names(a).items()))
    assert convert.to_hf(tmp_path / "run", tmp_path / "out", torch.bfloat16, tokenizer).passed
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert opened.dtype == torch.bfloat16 and opened.config.rms_norm_eps == 1e-3
    assert opened.config.max_position_embeddings == 50 and opened.config.num_key_value_heads == 2
    assert opened.config.rope_parameters["rope_theta"] == 500.0
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("import string").input_ids
    assert ids[0] == opened.config.bos_token_id == opened.generation_config.bos_token_id == 1
    for name, tensor in opened.state_dict().items():
        assert torch.equal(tensor, state[name].bfloat16()), name
    again = load_model(tmp_path / "out", torch.device("cpu"), torch.float32).logits(torch.tensor([ids]))
    with torch.no_grad():
        torch.testing.assert_close(again, opened.float()(torch.tensor([ids])).logits, rtol=1e-4, atol=1e-4)


def test_masters_are_exported_where_a_wider_type_is_asked(tmp_path):
    from megatron_ziya.checkpoint.distributed import Origin, Segment, save

    a = small()
    weights = {name: torch.randn(shape) for name, shape in shapes(a).items()}

    def segments():
        for name, w in weights.items():
            for kind, tensor in (("weight", w.bfloat16()), ("master", w)):
                yield Segment(kind, name, 0, 0, w.shape[0], 0, w.numel()), tensor.flatten()

    save(tmp_path, Origin("run", 1), a, segments(), 0, "", {}, None)
    for dtype, expected in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        convert.to_hf(tmp_path, tmp_path / "out", dtype, verify=False)
        assert_equal_tensors(tensors(tmp_path / "out"), {names(a)[n]: w.to(expected) for n, w in weights.items()})


def test_config_of_either_transformers(model):
    old = architecture_of(LLAMA2_70B_OF_TRANSFORMERS_4)
    assert (old.kv_heads, old.rope_theta, old.rope_scaling, old.max_positions) == (8, 10000.0, 1.0, 4096)
    linear = LLAMA2_70B_OF_TRANSFORMERS_4 | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 8.0}}
    assert (architecture_of(linear).rope_theta, architecture_of(linear).rope_scaling) == (5e5, 8.0)
    for raw in (LLAMA2_70B_OF_TRANSFORMERS_4, linear, model.config.to_dict()):
        a = architecture_of(raw)
        assert config_of(a, torch.float16, raw) == raw | {"dtype" if "dtype" in raw else "torch_dtype": "float16"}
        other = dataclasses.replace(a, rope_theta=7.0, rope_scaling=3.0, vocabulary_size=9, rms_norm_eps=0.5)
        assert architecture_of(config_of(other, torch.float16, raw)) == other
        assert architecture_of(config_of(other, torch.float16)) == other
        back = dataclasses.replace(a, rope_scaling=1.0)
        assert architecture_of(config_of(back, torch.float16, config_of(other, torch.float16, raw))) == back


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "is not LLaMA"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is not LLaMA"),
        ({"attention_bias": True}, "attention_bias=True is not plain LLaMA"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not plain LLaMA"),
        ({"head_dim": 16}, "head_dim=16 is not hidden size / heads = 8"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1.0}}, "'llama3' is not LLaMA2's"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"num_attention_heads": 5}, "model.heads=5 does not divide 32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_architectures_are_refused(changes, says, source, tmp_path):
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(ValueError, match=says):
        convert.from_hf(source, tmp_path / "checkpoint")
    assert not list(tmp_path.glob("checkpoint*"))


def rewrite(source, change):
    content = load_file(source / "model.safetensors")
    change(content)
    save_file(content, source / "model.safetensors")


def truncate(source):
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(source):
    (source / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40))


BAD = {
    "unknown tensor": (lambda s: rewrite(s, lambda c: c.update(extra=torch.ones(1))), "holds extra"),
    "missing tensor": (lambda s: rewrite(s, lambda c: c.pop("model.norm.weight")), "no tensor model.norm.weight"),
    "one layer too many": (
        lambda s: rewrite(s, lambda c: c.update({"model.layers.2.mlp.up_proj.weight": torch.ones(1)})),
        "holds model.layers.2.mlp.up_proj.weight",
    ),
    "wrong shape": (
        lambda s: rewrite(s, lambda c: c.update({"model.norm.weight": torch.ones(7)})),
        r"model.norm.weight has shape \(7,\), config.json asks for \(32,\)",
    ),
    "integer tensor": (
        lambda s: rewrite(s, lambda c: c.update({"model.norm.weight": torch.ones(32, dtype=torch.int32)})),
        "I32 cannot be converted",
    ),
    "truncated": (truncate, "model.safetensors is damaged or truncated"),
    "no header": (cut_header, "model.safetensors is damaged or truncated"),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), "has no weights"),
    "no config": (lambda s: (s / "config.json").unlink(), "config.json is missing"),
    "config not JSON": (lambda s: (s / "config.json").write_text("{"), "config.json is not valid JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_and_nothing_is_left(case, source, tmp_path):
    change, says = BAD[case]
    change(source)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        convert.from_hf(source, tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_missing_shard_and_lying_index_are_named(model, tmp_path):
    source = save(model, tmp_path / "source", max_shard_size="40KB")
    shard = sorted(source.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard.name} is missing"):
        HuggingFaceFolder(source)
    shard.write_bytes(content)
    index = source / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["model.norm.weight"] = sorted(listed["weight_map"].values())[0]
    index.write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"does not hold model\.norm\.weight"):
        HuggingFaceFolder(source)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint ran')",))


def test_a_pickle_with_code_in_it_does_not_run(source, tmp_path):
    (source / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil()}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged or truncated"):
        HuggingFaceFolder(source)


def test_tied_head_that_differs_is_refused(tmp_path):
    source = save(transformers_model(small(tied=True)), tmp_path / "source")
    rewrite(source, lambda c: c.update({"lm_head.weight": c["model.embed_tokens.weight"] + 1}))
    with pytest.raises(ValueError, match="differs from the embedding it is tied to"):
        HuggingFaceFolder(source)


def test_targets_are_guarded(source, tokenizer, tmp_path, capsys):
    before = tensors(source)
    with pytest.raises(ValueError, match="is the source itself"):
        convert.from_hf(source, source)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="was not written by a conversion"):
        convert.from_hf(source, tmp_path / "precious")
    convert.from_hf(source, tmp_path / "out", verify=False)
    with pytest.raises(ValueError, match=r"has 600 pieces, the model's embedding 131 rows"):
        convert.to_hf(tmp_path / "out", tmp_path / "back", tokenizer=tokenizer)
    assert "is replaced" not in capsys.readouterr().out
    convert.from_hf(source, tmp_path / "out", verify=False)
    assert f"{tmp_path}/out holds what an earlier conversion wrote; it is replaced once" in capsys.readouterr().out
    assert_equal_tensors(tensors(source), before)


def test_wrong_bytes_are_kept_apart(source, tmp_path, monkeypatch, capsys):
    read = HuggingFaceFolder.read
    convert.from_hf(source, tmp_path / "checkpoint", verify=False)
    swap = {"layers.1.attention.output.weight": "layers.1.attention.query.weight"}
    monkeypatch.setattr(HuggingFaceFolder, "read", lambda self, name, kind="weight": read(self, swap.get(name, name)))
    assert commands.to_hf([str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 1
    assert "layers.1.attention.output.weight" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.failed/model.safetensors").exists()


def test_a_wrong_constant_is_seen_by_the_logits_alone(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface, "_rope_of", lambda raw, where: (501.0, 1.0))  # it is 500
    assert commands.from_hf([str(source), str(tmp_path / "checkpoint")]) == 1
    assert "none differs" in capsys.readouterr().out
    assert not (tmp_path / "checkpoint").exists()
    proof = json.loads((tmp_path / "checkpoint.failed/manifest.json").read_text())["proof"]
    assert not proof["passed"] and proof["logits"] > 100 * proof["bound"]


def test_a_wrong_config_is_seen(source, tmp_path, monkeypatch, capsys):
    convert.from_hf(source, tmp_path / "checkpoint", verify=False)
    monkeypatch.setattr(convert, "config_of", lambda *rest: config_of(*rest) | {"rms_norm_eps": 2e-3})
    assert commands.to_hf([str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 1
    assert "rms_norm_eps" in capsys.readouterr().out


def test_commands_say_what_they_did(source, tmp_path, capsys):
    assert commands.from_hf([str(source), str(tmp_path / "checkpoint")]) == 0
    assert "proof               passed" in capsys.readouterr().out
    assert commands.info([str(tmp_path / "checkpoint")]) == 0
    assert "proof               passed" in capsys.readouterr().out
    assert commands.verify([str(tmp_path / "checkpoint")]) == 0
    assert commands.to_hf([str(tmp_path / "checkpoint"), str(tmp_path / "out"), "--skip-verify"]) == 0
    assert "skipped" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/conversion.json").read_text())["proof"] == "skipped"
    assert commands.info([str(tmp_path / "out")]) == 0
    assert "proof               skipped" in capsys.readouterr().out
    file = tmp_path / "checkpoint/rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"rank_00000\.safetensors: weight .* does not have its checksum"):
        commands.verify([str(tmp_path / "checkpoint")])


def test_two_writers_of_one_folder(source, tmp_path, capsys):
    out = tmp_path / "out"
    with claimed(out), pytest.raises(ValueError, match=rf"out is being written by process {os.getpid()} on .*; wait"):
        commands.from_hf([str(source), str(out)])
    assert not list(tmp_path.glob("out*"))
    assert commands.from_hf([str(source), str(out), "--skip-verify"]) == 0
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
