"""Meta's own form of LLaMA, as it was released: `params.json` and `consolidated.NN.pth`, a file a tensor-parallel rank.

Read one tensor at a time by logical name, as huggingface.py reads its form. What differs beside the names: rotary pairs
are neighbours there and half a head apart here, so rows of query and key change places; and `params.json` tells neither
the vocabulary's size (often -1) nor the width of the MLP nor the number of positions. The first two are in the shapes.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ziya.checkpoint.huggingface import dtype_name, fingerprint, open_tensors, read_json
from megatron_ziya.config import Architecture
from megatron_ziya.model.weights import shapes

OUTER = {"embedding.weight": "tok_embeddings.weight", "norm.weight": "norm.weight", "head.weight": "output.weight"}
LAYER = {
    "attention_norm.weight": "attention_norm.weight",
    "attention.query.weight": "attention.wq.weight",
    "attention.key.weight": "attention.wk.weight",
    "attention.value.weight": "attention.wv.weight",
    "attention.output.weight": "attention.wo.weight",
    "mlp_norm.weight": "ffn_norm.weight",
    "mlp.gate.weight": "feed_forward.w1.weight",
    "mlp.up.weight": "feed_forward.w3.weight",
    "mlp.down.weight": "feed_forward.w2.weight",
}


class MetaFolder:
    """A model folder of Meta's release; nothing of it is changed."""

    def __init__(self, path: Path | str, max_positions: int = 0) -> None:
        """`max_positions` 0: 2,048 for LLaMA (eps 1e-6), 4,096 for LLaMA2 (1e-5).

        Raises FileNotFoundError, or ValueError when it is no such model, or lacks a tensor, or has one too many.
        """
        self.path = Path(path)
        params = read_json(self.path / "params.json")
        files = sorted(self.path.glob("consolidated.*.pth"))
        if not files:
            raise FileNotFoundError(f"{self.path} has params.json and no consolidated.*.pth")
        self.files = files
        self.parts: list[dict[str, Tensor]] = [open_tensors(file) for file in files]
        """What each rank holds, mapped into memory, not read."""
        self.architecture = self._architecture(params, max_positions)
        self.shapes = shapes(self.architecture)
        self.names = {name: _name(name) for name in self.shapes}
        self.tokenizer = fingerprint(self.path)
        """Of the tokenizer.model that lies with it; "" when none does."""
        self._check()

    def _architecture(self, params: dict[str, Any], max_positions: int) -> Architecture:
        where = self.path / "params.json"
        for key in ("dim", "n_layers", "n_heads"):
            if not isinstance(params.get(key), int):
                raise ValueError(f"{where} lacks {key}; it is not of a LLaMA of Meta's")
        if params.get("use_scaled_rope") or "moe" in params:
            raise ValueError(f"{where}: use_scaled_rope and moe are of later models; LLaMA and LLaMA2 can be converted")
        eps = params.get("norm_eps", 1e-5)
        hidden = params["dim"]
        embedding = self._shape("tok_embeddings.weight", (0, hidden))
        return Architecture(
            vocabulary_size=embedding[0],
            hidden_size=hidden,
            intermediate_size=self._shape("layers.0.feed_forward.w1.weight", (0, hidden))[0],
            layers=params["n_layers"],
            heads=params["n_heads"],
            kv_heads=params.get("n_kv_heads") or params["n_heads"],
            rms_norm_eps=eps,
            max_positions=max_positions or (2048 if eps == 1e-6 else 4096),
            rope_theta=float(params.get("rope_theta", 10000.0)),
            tied="output.weight" not in self.parts[0],
        )

    def _shape(self, theirs: str, logical: tuple[int, ...]) -> tuple[int, ...]:
        """The whole tensor's shape. `logical` is what it must be, 0 where that is not known."""
        if theirs not in self.parts[0]:
            raise ValueError(f"{self.files[0]} has no tensor {theirs}")
        shape = list(self.parts[0][theirs].shape)
        dim = self._split(theirs, logical)
        if dim is not None:
            shape[dim] *= len(self.parts)
        return tuple(shape)

    def _split(self, theirs: str, logical: tuple[int, ...]) -> int | None:
        """Along which dimension the ranks share a tensor: the one that is too short; None when each has it whole.

        (The embedding is cut along the hidden size in LLaMA and LLaMA2, along the vocabulary later.)
        """
        shape = self.parts[0][theirs].shape
        if len(self.parts) == 1 or len(shape) != len(logical) or len(shape) == 1:
            return None
        short = [d for d, (here, all_) in enumerate(zip(shape, logical, strict=True)) if all_ and here != all_]
        return short[0] if short else logical.index(0) if 0 in logical else None

    def _check(self) -> None:
        wanted = set(self.names.values())
        for file, part in zip(self.files, self.parts, strict=True):
            strange = sorted(name for name in part if name not in wanted and name != "rope.freqs")
            if strange:
                raise ValueError(f"{file} holds {strange[0]}, which a LLaMA of its params.json does not have")
            missing = sorted(wanted - set(part))
            if missing:
                raise ValueError(f"{file} has no tensor {missing[0]}")
        for logical, theirs in self.names.items():
            dtype_name(self.parts[0][theirs].dtype)
            found = self._shape(theirs, self.shapes[logical])
            if found != self.shapes[logical]:
                raise ValueError(
                    f"{self.files[0]}: {theirs} has shape {found}, params.json asks for {self.shapes[logical]}"
                )

    def dtype(self, name: str) -> torch.dtype:
        """The type of a logical tensor."""
        return self.parts[0][self.names[name]].dtype

    def read(self, name: str, kind: str = "weight") -> Tensor:
        """A whole logical tensor, its rotary pairs half a head apart."""
        assert kind == "weight", kind
        theirs = self.names[name]
        dim = self._split(theirs, self.shapes[name])
        whole = self.parts[0][theirs] if dim is None else torch.cat([part[theirs] for part in self.parts], dim)
        if name.endswith(("attention.query.weight", "attention.key.weight")):
            whole = halves_apart(whole, self.architecture.head_size)
        return whole

    def kinds(self) -> set[str]:
        return {"weight"}


def halves_apart(weight: Tensor, head_size: int) -> Tensor:
    """Rows of query or key `[heads * head size, inputs]`: a head's rotary pairs (2i, 2i + 1) to (i, i + size / 2)."""
    pairs = weight.view(-1, head_size // 2, 2, math.prod(weight.shape[1:]))
    return pairs.transpose(1, 2).reshape(weight.shape)


def _name(logical: str) -> str:
    if logical in OUTER:
        return OUTER[logical]
    _, number, rest = logical.split(".", 2)
    return f"layers.{number}.{LAYER[rest]}"
