"""A LLaMA model out of a llama.cpp file (.gguf), as a Hugging Face folder with a head of its own.

Weights are made plain by the package gguf, the tokenizer by transformers. llama.cpp turns the rows of query and key so
that the two numbers that rotary turns together stand side by side; Hugging Face has them half a head apart.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from megatron_ziya.checkpoint.huggingface import names
from megatron_ziya.config import Architecture

OUTER = {
    "embedding.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}
LAYER = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.query.weight": "attn_q.weight",
    "attention.key.weight": "attn_k.weight",
    "attention.value.weight": "attn_v.weight",
    "attention.output.weight": "attn_output.weight",
    "mlp_norm.weight": "ffn_norm.weight",
    "mlp.gate.weight": "ffn_gate.weight",
    "mlp.up.weight": "ffn_up.weight",
    "mlp.down.weight": "ffn_down.weight",
}


def write(gguf_path: Path, out: Path) -> Architecture:
    """Writes the BF16 model folder `out`. Where the file ties head and embedding, the head becomes a copy.

    Raises FileNotFoundError, or ValueError where the file holds no LLaMA model.
    """
    from gguf import GGUFReader, dequantize

    if not gguf_path.is_file():
        raise FileNotFoundError(f"no file {gguf_path}; give a model of llama.cpp (.gguf)")
    reader = GGUFReader(gguf_path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    a = architecture(reader, gguf_path, tensors["token_embd.weight"].shape[-1])
    weights = {}
    for logical, name in names(a).items():
        theirs = _name(logical)
        found = tensors.get(theirs) or tensors["token_embd.weight"]
        plain = np.array(dequantize(found.data, found.tensor_type))
        if ".query." in logical or ".key." in logical:
            heads = a.heads if ".query." in logical else a.kv_heads
            plain = plain.reshape(heads, -1, 2, a.hidden_size).swapaxes(1, 2).reshape(-1, a.hidden_size)
        weights[name] = torch.from_numpy(np.ascontiguousarray(plain)).bfloat16()
    out.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(gguf_path, out)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "vocab_size": a.vocabulary_size, "hidden_size": a.hidden_size, "intermediate_size": a.intermediate_size,
        "num_hidden_layers": a.layers, "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads,
        "rms_norm_eps": a.rms_norm_eps, "rope_theta": a.rope_theta, "max_position_embeddings": a.max_positions,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return a


def architecture(reader: Any, where: Path, rows: int) -> Architecture:
    """The shape that the file's fields tell; rows: of the embedding."""

    def field(name: str, otherwise: Any = None) -> Any:
        found = reader.fields.get(f"llama.{name}")
        if found is None and otherwise is None:
            raise ValueError(f"{where} lacks llama.{name}; it holds no LLaMA model")
        return otherwise if found is None else found.contents()

    return Architecture(
        vocabulary_size=int(rows),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        layers=field("block_count"),
        heads=field("attention.head_count"),
        kv_heads=field("attention.head_count_kv", field("attention.head_count")),
        rms_norm_eps=round(field("attention.layer_norm_rms_epsilon"), 9),
        rope_theta=field("rope.freq_base", 10000.0),
        max_positions=field("context_length"),
    )


def _name(logical: str) -> str:
    if logical in OUTER:
        return OUTER[logical]
    _, number, rest = logical.split(".", 2)
    return f"blk.{number}.{LAYER[rest]}"


def _write_tokenizer(gguf_path: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name).save_pretrained(out)
