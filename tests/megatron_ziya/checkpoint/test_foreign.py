"""Meta's release and legacy Megatron-LM checkpoints, read: logits against a model written as theirs are described.

The judge for Meta's form is a plain model in this file with Meta's rotation, of neighbours as complex numbers
(arXiv 2104.09864), fed with the files themselves. Megatron-LM's form is built from a model of transformers by loops
over heads, as its documentation describes the order of rows.
"""

import argparse
import enum
import fractions
import json
import sys
import types

import pytest
import torch
from models import our_model, small, transformers_model
from torch.nn import functional

from megatron_ziya.checkpoint import commands, convert
from megatron_ziya.checkpoint.huggingface import names
from megatron_ziya.checkpoint.load import load_model
from megatron_ziya.checkpoint.meta import MetaFolder
from megatron_ziya.checkpoint.reader import Reader
from megatron_ziya.model.weights import shapes

A = small(kv_heads=2, max_positions=64)
TOKENS = torch.arange(40)[None] * 7 % A.vocabulary_size


# --- Meta -------------------------------------------------------------------------------------------------------------


def meta_logits(files, tokens, a):
    """LLaMA on Meta's names and with Meta's rotation, in FP64. `files` are the ranks' dicts, joined by their rules."""
    columns = ("tok_embeddings.weight", "wo.weight", "w2.weight")
    weights = {
        name: (
            part if part.dim() == 1 else torch.cat([f[name] for f in files], 1 if name.endswith(columns) else 0)
        ).double()
        for name, part in files[0].items()
    }
    norm = lambda x, w: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + a.rms_norm_eps) * w  # noqa: E731
    frequencies = 1.0 / a.rope_theta ** (torch.arange(0, a.head_size, 2).float() / a.head_size)  # FP32, as theirs
    angles = torch.outer(torch.arange(tokens.shape[1]).float(), frequencies)
    turns = torch.complex(angles.cos(), angles.sin()).to(torch.complex128)

    def rotated(x):  # [S, heads, D], pairs of neighbours
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turns[:, None]).flatten(2)

    x = weights["tok_embeddings.weight"][tokens[0]]
    for number in range(a.layers):
        w = {name.removeprefix(f"layers.{number}."): value for name, value in weights.items()}
        h = norm(x, w["attention_norm.weight"])
        q, k, v = ((h @ w[f"attention.w{name}.weight"].T).view(len(h), -1, a.head_size) for name in ("q", "k", "v"))
        q, k = rotated(q), rotated(k)
        k, v = (t.repeat_interleave(a.heads // a.kv_heads, 1) for t in (k, v))
        core = functional.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v)), is_causal=True)
        x = x + core.transpose(0, 1).flatten(1) @ w["attention.wo.weight"].T
        h = norm(x, w["ffn_norm.weight"])
        gate = functional.silu(h @ w["feed_forward.w1.weight"].T) * (h @ w["feed_forward.w3.weight"].T)
        x = x + gate @ w["feed_forward.w2.weight"].T
    return norm(x, weights["norm.weight"]) @ weights["output.weight"].T


def meta_folder(folder, ranks, **params):
    """Random weights in Meta's form. Returns what each rank holds."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(5)
    h, f, kv = A.hidden_size, A.intermediate_size, A.kv_heads * A.head_size
    columns = {"attention.wq": (h, h), "attention.wk": (kv, h), "attention.wv": (kv, h),
               "feed_forward.w1": (f, h), "feed_forward.w3": (f, h)}  # fmt: skip
    rows = {"attention.wo": (h, h), "feed_forward.w2": (h, f)}
    sizes = {"tok_embeddings": (A.vocabulary_size, h), "norm": (h,)}
    files = [{} for _ in range(ranks)]

    def put(name, shape, dim):
        whole = torch.randn(shape, generator=draw) * (0.3 if dim is not None else 0.1) + (dim is None)
        parts = whole.chunk(ranks, dim) if dim is not None else [whole] * ranks
        for file, part in zip(files, parts, strict=True):
            file[f"{name}.weight"] = part.clone().half()

    put("tok_embeddings", sizes["tok_embeddings"], 1)
    for number in range(A.layers):
        for name, shape in columns.items():
            put(f"layers.{number}.{name}", shape, 0)
        for name, shape in rows.items():
            put(f"layers.{number}.{name}", shape, 1)
        for name in ("attention_norm", "ffn_norm"):
            put(f"layers.{number}.{name}", (h,), None)
    put("norm", (h,), None)
    put("output", (A.vocabulary_size, h), 0)
    for number, file in enumerate(files):
        torch.save(file | {"rope.freqs": torch.ones(4)}, folder / f"consolidated.{number:02d}.pth")
    said = {"dim": h, "n_layers": A.layers, "n_heads": A.heads, "n_kv_heads": A.kv_heads, "norm_eps": A.rms_norm_eps,
            "rope_theta": A.rope_theta, "vocab_size": -1, "multiple_of": 8}  # fmt: skip
    (folder / "params.json").write_text(json.dumps(said | params))
    return files


@pytest.mark.parametrize("ranks", [1, 2])
def test_metas_release_gives_the_logits_of_metas_model(tmp_path, ranks, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules[__name__], "A", small(kv_heads=2, vocabulary_size=132))
    files = meta_folder(tmp_path / "meta", ranks)
    arguments = [str(tmp_path / "meta"), str(tmp_path / "out"), "--max-positions", "64"]
    assert commands.from_meta(arguments) == 0
    assert "none differ" in capsys.readouterr().out
    assert Reader(tmp_path / "out").architecture == A
    expected = meta_logits(files, TOKENS, A)
    found = load_model(tmp_path / "out", torch.device("cpu"), torch.float64).logits(TOKENS)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    proof = convert.to_hf(tmp_path / "out", tmp_path / "hf")  # and transformers agrees with what comes out at the end
    assert proof is not None and proof.passed and proof.logits is not None


def test_what_is_no_release_of_metas_is_refused_in_a_line(tmp_path):
    folder = tmp_path / "meta"
    meta_folder(folder, 1)
    assert MetaFolder(folder).architecture.max_positions == 4096  # eps is not LLaMA 1's
    params, file = folder / "params.json", folder / "consolidated.00.pth"
    content = torch.load(file, weights_only=True)
    for changed, told in (
        (
            {name: t for name, t in content.items() if "layers.1.attention.wk" not in name},
            "has no tensor layers.1.attent",
        ),
        (content | {"layers.0.extra.weight": torch.ones(2)}, "holds layers.0.extra.weight, which a LLaMA of its"),
        (content | {"norm.weight": torch.ones(5)}, r"norm.weight has shape \(5,\), params.json asks for \(32,\)"),
    ):
        torch.save(changed, file)
        with pytest.raises(ValueError, match=told):
            MetaFolder(folder)
    torch.save(content, file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"consolidated.00.pth is damaged or truncated"):
        MetaFolder(folder)
    params.write_text(json.dumps(json.loads(params.read_text()) | {"use_scaled_rope": True}))
    torch.save(content, file)
    with pytest.raises(ValueError, match="use_scaled_rope and moe are of later models"):
        MetaFolder(folder)
    params.write_text("{}")
    with pytest.raises(ValueError, match=r"params.json lacks dim"):
        MetaFolder(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has params.json and no consolidated"):
        MetaFolder(folder)


# --- Megatron-LM ------------------------------------------------------------------------------------------------------


class ModelType(enum.Enum):
    """Stands for an enum of Megatron-LM's that lies in the options, whose module is not there when we read."""

    encoder_or_decoder = 1


def megatron_folder(folder, model, a, tensor, stages, monkeypatch, interleaved=False, old_names=False, **changes):
    """A model of transformers as Megatron-LM's legacy format has it, head by head."""
    state, ours = model.state_dict(), names(a)
    get = lambda name: state[ours[name]]  # noqa: E731
    size, group = a.head_size, a.heads // a.kv_heads
    order = [i // 2 + (i % 2) * (size // 2) for i in range(size)] if interleaved else list(range(size))
    padding = -a.vocabulary_size % (8 * tensor)
    first, second, last = (
        ("input_layernorm", "post_attention_layernorm", "final_layernorm") if old_names
        else ("input_norm", "post_attention_norm", "final_norm")
    )  # fmt: skip
    options = argparse.Namespace(
        hidden_size=a.hidden_size, num_layers=a.layers, num_attention_heads=a.heads,
        ffn_hidden_size=a.intermediate_size,
        group_query_attention=True, num_query_groups=a.kv_heads, swiglu=True, normalization="RMSNorm",
        add_bias_linear=False, norm_epsilon=a.rms_norm_eps, rotary_base=int(a.rope_theta),
        rotary_interleaved=interleaved,
        max_position_embeddings=a.max_positions, untie_embeddings_and_output_weights=True, params_dtype=torch.float32,
        model_type=ModelType.encoder_or_decoder,
    )  # fmt: skip

    version = changes.pop("version", 3.0)
    vars(options).update(changes)

    def shared(whole, rank, dim=0):
        return whole.chunk(tensor, dim)[rank].clone()

    def padded(whole, rank):
        return shared(torch.cat([whole, torch.full((padding, whole.shape[1]), 9.0)]), rank)

    for stage in range(stages):
        for rank in range(tensor):
            encoder = {}
            for local in range(a.layers // stages):
                at = f"layers.{stage * (a.layers // stages) + local}."
                q, k, v = (
                    get(f"{at}attention.{n}.weight").view(-1, size, a.hidden_size) for n in ("query", "key", "value")
                )
                blocks = []
                for g in range(a.kv_heads):
                    blocks += [q[g * group + i][order] for i in range(group)] + [k[g][order], v[g]]
                to = f"layers.{local}."
                encoder |= {
                    f"{to}{first}.weight": get(f"{at}attention_norm.weight"),
                    f"{to}self_attention.query_key_value.weight": shared(torch.cat(blocks), rank),
                    f"{to}self_attention.dense.weight": shared(get(f"{at}attention.output.weight"), rank, 1),
                    f"{to}{second}.weight": get(f"{at}mlp_norm.weight"),
                    f"{to}mlp.dense_h_to_4h.weight": torch.cat(
                        [shared(get(f"{at}mlp.gate.weight"), rank), shared(get(f"{at}mlp.up.weight"), rank)]
                    ),
                    f"{to}mlp.dense_4h_to_h.weight": shared(get(f"{at}mlp.down.weight"), rank, 1),
                }
            part = {"encoder": encoder}
            if stage == 0:
                part["embedding"] = {"word_embeddings": {"weight": padded(get("embedding.weight"), rank)}}
            if stage == stages - 1:
                encoder[f"{last}.weight"] = get("norm.weight")
                part["output_layer"] = {"weight": padded(get("head.weight"), rank)}
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
            (folder / "iter_0000007" / name).mkdir(parents=True)
            content = {
                "args": options,
                "checkpoint_version": version,
                "iteration": 7,
                "model": {"language_model": part},
            }
            with monkeypatch.context() as patch:  # pickled by the name that it has there
                for name_of_module in ("megatron", "megatron.core", "megatron.core.enums"):
                    patch.setitem(sys.modules, name_of_module, types.ModuleType(name_of_module))
                sys.modules["megatron.core.enums"].ModelType = ModelType
                patch.setattr(ModelType, "__module__", "megatron.core.enums")
                torch.save(content, folder / "iter_0000007" / name / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("7")
    return folder


@pytest.mark.parametrize(("tensor", "stages", "interleaved", "old"), [
    (1, 1, False, False), (2, 1, True, False), (2, 2, False, True),
])  # fmt: skip
def test_legacy_megatron_gives_the_model_it_was_made_of(tmp_path, tensor, stages, interleaved, old, monkeypatch):
    model = transformers_model(A)
    source = megatron_folder(tmp_path / "megatron", model, A, tensor, stages, monkeypatch, interleaved, old)
    assert commands.from_megatron([str(source), str(tmp_path / "out"), "--vocabulary-size", "131"]) == 0
    reader = Reader(tmp_path / "out")
    assert reader.architecture == A
    state, ours = model.state_dict(), names(A)
    for name in shapes(A):
        assert torch.equal(reader.read(name), state[ours[name]]), name
    expected = our_model(A, model, torch.float32).logits(TOKENS)
    assert torch.equal(load_model(tmp_path / "out", torch.device("cpu"), torch.float32).logits(TOKENS), expected)


@pytest.mark.parametrize(("changes", "told"), [
    ({"position_embedding_type": "learned_absolute"}, "its args say position_embedding_type='learned_absolute', not"),
    ({"rotary_percent": 0.25}, r"its args say rotary_percent=0\.25, not 1\.0"),
    ({"add_bias_linear": True}, "its args say add_bias_linear=True, not False"),
    ({"swiglu": False}, "its args do not say swiglu"),
    ({"version": 1.0}, r"is of checkpoint_version 1\.0; from 2\.0 on they can be read"),
])  # fmt: skip
def test_another_model_of_megatrons_is_not_taken_for_a_llama(tmp_path, monkeypatch, changes, told):
    source = megatron_folder(tmp_path / "megatron", transformers_model(A), A, 1, 1, monkeypatch, **changes)
    with pytest.raises(ValueError, match=told):
        convert.from_megatron(source, tmp_path / "out")


def test_linear_scaling_of_positions_is_kept(tmp_path, monkeypatch):
    scaled = {"rotary_seq_len_interpolation_factor": 4}
    source = megatron_folder(tmp_path / "megatron", transformers_model(A), A, 1, 1, monkeypatch, **scaled)
    convert.from_megatron(source, tmp_path / "out")
    assert Reader(tmp_path / "out").architecture.rope_scaling == 4.0


def test_what_is_no_legacy_megatron_llama_is_refused_in_a_line(tmp_path, monkeypatch):
    model = transformers_model(A)
    source = megatron_folder(tmp_path / "megatron", model, A, 2, 1, monkeypatch)
    convert.from_megatron(source, tmp_path / "padded")
    assert Reader(tmp_path / "padded").architecture.vocabulary_size == 144  # the padding stays unless it is cut
    file = source / "iter_0000007/mp_rank_01/model_optim_rng.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2000])
    with pytest.raises(ValueError, match=r"model_optim_rng.pt is damaged or truncated"):
        convert.from_megatron(source, tmp_path / "out")
    torch.save({"model": fractions.Fraction(1, 2)}, file)
    with pytest.raises(ValueError, match=r"asks for fractions\.Fraction, which is not loaded"):
        convert.from_megatron(source, tmp_path / "out")
    torch.save({"model": {"model0": {}}}, file)
    with pytest.raises(ValueError, match=r"has no model\.language_model"):
        convert.from_megatron(source, tmp_path / "out")
    file.unlink()
    (source / "iter_0000007/mp_rank_02").mkdir()
    torch.save({}, source / "iter_0000007/mp_rank_02/model_optim_rng.pt")
    with pytest.raises(FileNotFoundError, match="tensor-parallel rank 1 of stage 0 is missing"):
        convert.from_megatron(source, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"has no mp_rank_\*/model_optim_rng.pt"):
        convert.from_megatron(tmp_path / "padded", tmp_path / "out")
    (source / "latest_checkpointed_iteration.txt").write_text("8")
    with pytest.raises(FileNotFoundError, match="iter_0000008 is missing"):
        convert.from_megatron(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
