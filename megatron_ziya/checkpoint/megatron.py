"""Legacy Megatron-LM checkpoints of LLaMA models, as Megatron-LM's public documentation describes them.

    DIR/latest_checkpointed_iteration.txt        a number, or `release`
    DIR/iter_0001000/mp_rank_TT/model_optim_rng.pt            tensor-parallel rank TT
                     mp_rank_TT_PPP/...                       and pipeline stage PPP

Read one tensor at a time by logical name, as huggingface.py reads its form. What differs: query, key and value are one
matrix, by groups: the queries of a group, its key, its value; gate and up are one matrix on each rank; layers count
from 0 on every stage; the vocabulary is padded; some names have changed over the years (both are known). The rotary
pairs are half a head apart, as here, unless the run had `rotary_interleaved`.

No pickle is run: tensors and plain values are loaded (`weights_only`), and of the classes that the run's options name,
`argparse.Namespace` alone; the others become empty objects.
"""

import argparse
import errno
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ziya.checkpoint.huggingface import dtype_name, fingerprint
from megatron_ziya.checkpoint.meta import halves_apart
from megatron_ziya.config import Architecture
from megatron_ziya.model.weights import shapes

FILES = ("model_optim_rng.pt", "model_rng.pt")
OLDEST = 2.0  # of checkpoint_version; before it the rows of query, key and value lay otherwise
LLAMA = {
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "apply_layernorm_1p": False,
}
"""What the run's options must say where they say it."""
LAYER = {  # the newer name, then the older one
    "attention_norm.weight": ("input_norm.weight", "input_layernorm.weight"),
    "attention.output.weight": ("self_attention.dense.weight",),
    "mlp_norm.weight": ("post_attention_norm.weight", "post_attention_layernorm.weight"),
    "mlp.down.weight": ("mlp.dense_4h_to_h.weight",),
}
QKV, GATE_UP = "self_attention.query_key_value.weight", "mlp.dense_h_to_4h.weight"


class MegatronFolder:
    """A legacy checkpoint of Megatron-LM; nothing of it is changed."""

    def __init__(self, path: Path | str, vocabulary_size: int = 0) -> None:
        """`vocabulary_size` is the tokenizer's, if the padding is to be cut off; 0 keeps it.

        Raises FileNotFoundError, or ValueError when it is no such checkpoint of a LLaMA.
        """
        self.path = Path(path)
        self.folder = _iteration(self.path)
        self.parts, self.files = self._open()
        self.arguments = vars(self._content[0].get("args") or argparse.Namespace())
        self.architecture = self._architecture(vocabulary_size)
        self.shapes = shapes(self.architecture)
        self.tokenizer = fingerprint(self.path)
        """Of a tokenizer.model that lies with it; "" when none does."""
        for name in self.shapes:
            dtype_name(self.dtype(name))

    def _open(self) -> tuple[list[list[dict[str, Any]]], list[Path]]:
        """`parts[stage][tensor-parallel rank]`: what each holds, mapped into memory, not read; and their files."""
        files: dict[tuple[int, int], Path] = {}
        for folder in sorted(self.folder.glob("mp_rank_*")):
            number = re.fullmatch(r"mp_rank_(\d+)(?:_(\d+))?", folder.name)
            file = next((folder / name for name in FILES if (folder / name).is_file()), None)
            if number and file:
                files[int(number[2] or 0), int(number[1])] = file
        if not files:
            raise FileNotFoundError(f"{self.folder} has no mp_rank_*/{FILES[0]}; it is no Megatron-LM checkpoint")
        stages, ranks = (max(place[side] for place in files) + 1 for side in (0, 1))
        for stage in range(stages):
            for rank in range(ranks):
                if (stage, rank) not in files:
                    raise FileNotFoundError(f"{self.folder}: tensor-parallel rank {rank} of stage {stage} is missing")
        self._content = [_load(files[stage, rank]) for stage in range(stages) for rank in range(ranks)]
        parts = []
        for place, content in enumerate(self._content):
            model = content.get("model")
            if not isinstance(model, dict) or "language_model" not in model:
                raise ValueError(
                    f"{files[divmod(place, ranks)]} has no model.language_model: it is of virtual stages or of "
                    "megatron-core's format, which is not read; convert it with Megatron-LM's own tools first"
                )
            if content.get("checkpoint_version", 3.0) < OLDEST:
                raise ValueError(
                    f"{files[divmod(place, ranks)]} is of checkpoint_version {content['checkpoint_version']}; from "
                    f"{OLDEST} on they can be read"
                )
            parts.append(model["language_model"])
        grouped = [parts[stage * ranks : (stage + 1) * ranks] for stage in range(stages)]
        return grouped, list(files.values())

    def _architecture(self, vocabulary_size: int) -> Architecture:
        said = self.arguments
        missing = [key for key in ("hidden_size", "num_layers", "num_attention_heads") if key not in said]
        if missing:
            raise ValueError(f"{self.folder}: the checkpoint's args lack {missing[0]}")
        for key, only in LLAMA.items():
            if said.get(key, only) != only:
                raise ValueError(f"{self.folder} is not a LLaMA: its args say {key}={said[key]!r}, not {only!r}")
        if not said.get("swiglu"):
            raise ValueError(f"{self.folder} is not a LLaMA: its args do not say swiglu")
        heads = said["num_attention_heads"]
        groups = said.get("num_query_groups") if said.get("group_query_attention") else heads
        rows = len(self._words(0)) * len(self.parts[0])
        if vocabulary_size > rows:
            raise ValueError(f"--vocabulary-size {vocabulary_size} is more than the {rows} rows there are")
        return Architecture(
            vocabulary_size=vocabulary_size or rows,
            hidden_size=said["hidden_size"],
            intermediate_size=said.get("ffn_hidden_size")
            or self._layer(0, 0, (GATE_UP,)).shape[0] * len(self.parts[0]) // 2,
            layers=said["num_layers"],
            heads=heads,
            kv_heads=groups or heads,
            rms_norm_eps=said.get("norm_epsilon", said.get("layernorm_epsilon", 1e-5)),
            max_positions=said.get("max_position_embeddings") or said.get("seq_length", 4096),
            rope_theta=float(said.get("rotary_base") or 10000),
            rope_scaling=float(said.get("rotary_seq_len_interpolation_factor") or 1),
            tied=not said.get("untie_embeddings_and_output_weights", False),
        )

    def _words(self, rank: int) -> Tensor:
        return self._get(0, rank, "embedding", "word_embeddings", "weight")

    def _get(self, stage: int, rank: int, *keys: str) -> Tensor:
        found: Any = self.parts[stage][rank]
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, Tensor):
            raise ValueError(
                f"{self.folder}: {'.'.join(keys)} is missing on tensor-parallel rank {rank} of stage {stage}"
            )
        return found

    def _layer(self, number: int, rank: int, names: tuple[str, ...]) -> Tensor:
        """A tensor of layer `number` of the whole model, by the first of `names` that is there."""
        each = self.arguments["num_layers"] // len(self.parts)
        stage, local = divmod(number, each)
        return self._transformer(stage, rank, tuple(f"layers.{local}.{name}" for name in names))

    def _transformer(self, stage: int, rank: int, names: tuple[str, ...]) -> Tensor:
        part = self.parts[stage][rank]
        home = "encoder" if "encoder" in part else "transformer"
        name = next((name for name in names if name in part.get(home, {})), names[0])
        return self._get(stage, rank, home, name)

    def dtype(self, name: str) -> torch.dtype:
        """The type of a logical tensor."""
        return self._of_rank(name, 0).dtype

    def read(self, name: str, kind: str = "weight") -> Tensor:
        """A whole logical tensor."""
        assert kind == "weight", kind
        shape = self.shapes[name]
        if len(shape) == 1:
            whole = self._of_rank(name, 0)
        else:
            dim = 1 if name.endswith(("attention.output.weight", "mlp.down.weight")) else 0
            whole = torch.cat([self._of_rank(name, rank) for rank in range(len(self.parts[0]))], dim)
        if name in ("embedding.weight", "head.weight"):
            whole = whole[: shape[0]]
        if tuple(whole.shape) != shape:
            raise ValueError(f"{self.folder}: {name} has shape {tuple(whole.shape)}, its args ask for {shape}")
        if self.arguments.get("rotary_interleaved") and name.endswith(
            ("attention.query.weight", "attention.key.weight")
        ):
            whole = halves_apart(whole, self.architecture.head_size)
        return whole

    def _of_rank(self, name: str, rank: int) -> Tensor:
        """What a tensor-parallel rank has of a logical tensor."""
        a, last = self.architecture, len(self.parts) - 1
        if name == "embedding.weight":
            return self._words(rank)
        if name == "head.weight":
            return self._get(last, rank, "output_layer", "weight")
        if name == "norm.weight":
            return self._transformer(last, rank, ("final_norm.weight", "final_layernorm.weight"))
        _, number, rest = name.split(".", 2)
        if rest in LAYER:
            return self._layer(int(number), rank, LAYER[rest])
        if rest.startswith("mlp."):
            return self._layer(int(number), rank, (GATE_UP,)).chunk(2)[rest == "mlp.up.weight"]
        queries = a.heads // a.kv_heads
        fused = self._layer(int(number), rank, (QKV,)).view(-1, queries + 2, a.head_size, a.hidden_size)
        part = {"query": fused[:, :queries], "key": fused[:, queries], "value": fused[:, queries + 1]}
        return part[rest.split(".")[1]].reshape(-1, a.hidden_size)

    def kinds(self) -> set[str]:
        return {"weight"}


def _iteration(path: Path) -> Path:
    """The folder of the newest iteration, or `path` itself when it is one."""
    tracker = path / "latest_checkpointed_iteration.txt"
    if not tracker.is_file():
        return path
    said = tracker.read_text(encoding="utf-8").strip()
    folder = path / (f"iter_{int(said):07d}" if said.isdigit() else said)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; {tracker.name} names it")
    return folder


class _Nothing:
    """Stands for a class of Megatron-LM's, such as an enum's value among the options."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass


def _load(file: Path) -> dict[str, Any]:
    """Raises ValueError for a file that is damaged or asks for classes that no options of Megatron-LM have."""
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    try:
        strange = set(get_unsafe_globals_in_checkpoint(str(file))) - {"argparse.Namespace"}
        foreign = sorted(name for name in strange if not name.startswith("megatron."))
        if foreign:
            raise ValueError(f"{file} asks for {foreign[0]}, which is not loaded: a pickle may run anything")
        allowed: list[Any] = [argparse.Namespace, *((_Nothing, name) for name in strange)]
        with safe_globals(allowed):
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # how torch says it of some truncated files
            raise
        raise ValueError(f"{file} is damaged or truncated: {str(error).splitlines()[0]}") from None
    return content
