"""Small LLaMA models made by transformers, and a small tokenizer made by sentencepiece."""

import inspect
import io
import json
import string
from pathlib import Path
from typing import Any

import torch

from megatron_ziya.checkpoint.huggingface import names
from megatron_ziya.config import Architecture, Parallel
from megatron_ziya.model import parallelize
from megatron_ziya.model.llama import Llama
from megatron_ziya.parallel.mesh import Mesh
from ziya_kernels import select


def small(**changes: Any) -> Architecture:
    """A model of some 30,000 weights, with values that no library has as its default."""
    sizes: dict[str, Any] = {
        "vocabulary_size": 131, "hidden_size": 32, "intermediate_size": 56, "layers": 2, "heads": 4, "kv_heads": 2,
        "rms_norm_eps": 1e-3, "rope_theta": 500.0, "max_positions": 64,
    }  # fmt: skip
    return Architecture(**(sizes | changes))


def transformers_model(a: Architecture, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """transformers' own random model; weights large enough that every part of it matters to the logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "default", "rope_theta": a.rope_theta}
    if a.rope_scaling != 1.0:
        rope = {"rope_type": "linear", "rope_theta": a.rope_theta, "factor": a.rope_scaling}
    settings = LlamaConfig(
        vocab_size=a.vocabulary_size, hidden_size=a.hidden_size, intermediate_size=a.intermediate_size,
        num_hidden_layers=a.layers, num_attention_heads=a.heads, num_key_value_heads=a.kv_heads,
        rms_norm_eps=a.rms_norm_eps, max_position_embeddings=a.max_positions, tie_word_embeddings=a.tied,
        rope_parameters=rope, initializer_range=0.2, pad_token_id=0, **changes,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(settings)
    for weight in model.parameters():
        if weight.dim() == 1:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model.to(dtype)


def save(model: Any, folder: Path, **options: Any) -> Path:
    """`save_pretrained`, without a progress bar."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    return folder


def our_model(a: Architecture, theirs: Any, dtype: torch.dtype) -> Llama:
    """Our model with the weights of transformers' one."""
    state, mapped, mesh = theirs.state_dict(), names(a), Mesh()
    model = parallelize.build(a, Parallel(), mesh, select("torch", mesh.device), dtype)[0]
    parallelize.fill(model, mesh, lambda name, _: state[mapped[name]])
    return model


def train_tokenizer(folder: Path, pieces: int = 600, extra: tuple[str, ...] = ()) -> Path:
    """A tokenizer folder with LLaMA's settings, its own pieces and then `extra` ones."""
    import sentencepiece

    from ziya_data.tokenizer.model_file import new_model, write_folder
    from ziya_data.tokenizer.vocabulary import with_pieces

    lines = [line for module in (string, inspect, json) for line in inspect.getsource(module).splitlines()]
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=content, model_type="bpe", vocab_size=pieces, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, minloglevel=2,
    )  # fmt: skip
    model = new_model()
    model.ParseFromString(content.getvalue())
    write_folder(with_pieces(model, extra), folder)
    return folder
