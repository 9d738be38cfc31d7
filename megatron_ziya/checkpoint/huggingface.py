"""The Hugging Face form of a LLaMA model, as data: names, config.json, and reading one tensor after the other.

`LAYER` and `OUTER` are the one table of names, used both ways. convert.py moves whole models.
"""

import errno
import hashlib
import json
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_ziya.config import Architecture
from megatron_ziya.model.weights import shapes
from megatron_ziya.strict import from_dict
from ziya_data import tokenizer_json

OUTER = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
CARRIED = ("config.json", "generation_config.json", *TOKENIZER_FILES, "LICENSE*", "NOTICE*", "USE_POLICY*")
"""Patterns of the files that travel with the weights, in a checkpoint's `huggingface/` folder."""
WEIGHT_FILES = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
)  # fmt: skip
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Types of weights by the names that config.json gives them."""

CODES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights by safetensors' names."""


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> `bfloat16`. Raises ValueError for a type that weights do not have here."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"weights of type {name} cannot be converted; use {', '.join(DTYPES)}")
    return name


def dtype_of_code(code: str) -> torch.dtype:
    """safetensors' `BF16` -> `torch.bfloat16`. Raises ValueError for a type that weights do not have here."""
    if code not in CODES:
        raise ValueError(f"tensors of type {code} cannot be converted; use {', '.join(CODES)}")
    return CODES[code]


def dtype_of(name: str) -> torch.dtype:
    """`bfloat16` -> `torch.bfloat16`. Raises ValueError for a name that is none."""
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r} is not known; use {', '.join(DTYPES)}")
    return DTYPES[name]


def names(a: Architecture) -> dict[str, str]:
    """Logical name -> Hugging Face name of every weight, in the order of the forward pass."""
    return {name: _name(name) for name in shapes(a)}


def _name(logical: str) -> str:
    if logical in OUTER:
        return OUTER[logical]
    _, number, rest = logical.split(".", 2)
    return f"model.layers.{number}.{LAYER[rest]}"


# --- config.json ------------------------------------------------------------------------------------------------------

SIZES = {
    "vocabulary_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
}
OPTIONAL: dict[str, tuple[str, Any]] = {  # with the values that transformers' LlamaConfig takes when they are absent
    "kv_heads": ("num_key_value_heads", 0),
    "rms_norm_eps": ("rms_norm_eps", 1e-6),
    "max_positions": ("max_position_embeddings", 2048),
    "tied": ("tie_word_embeddings", False),
}
PLAIN = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""What the model cannot do otherwise."""


def architecture_of(raw: Mapping[str, Any], where: Path | str = "config.json") -> Architecture:
    """The shape that a config.json describes, whether transformers 4 or 5 wrote it.

    Raises ValueError for anything that is not plain LLaMA, naming the key.
    """
    classes = raw.get("architectures") or ["LlamaForCausalLM"]
    if raw.get("model_type") != "llama" or classes[0].lower() != "llamaforcausallm":
        raise ValueError(f"{where}: model_type={raw.get('model_type')!r}, architectures={classes} is not LLaMA")
    for key, only in PLAIN.items():
        if raw.get(key, only) != only:
            raise ValueError(f"{where}: {key}={raw[key]!r} is not plain LLaMA; only {only!r} can be converted")
    for key in SIZES.values():
        if raw.get(key) is None:
            raise ValueError(f"{where} lacks {key}")
    found = {ours: raw[theirs] for ours, theirs in SIZES.items()}
    for ours, (theirs, default) in OPTIONAL.items():
        found[ours] = default if raw.get(theirs) is None else raw[theirs]
    theta, scaling = _rope_of(raw, where)
    found |= {"rope_theta": theta, "rope_scaling": scaling}
    a = cast(Architecture, from_dict(Architecture, found, str(where)))
    if raw.get("head_dim") not in (None, a.head_size):
        raise ValueError(f"{where}: head_dim={raw['head_dim']} is not hidden size / heads = {a.head_size}")
    return a


def _rope_of(raw: Mapping[str, Any], where: Path | str) -> tuple[float, float]:
    """`(theta, linear factor)` from `rope_parameters` (transformers 5) or `rope_theta`, `rope_scaling` (4)."""
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ValueError(f"{where}: rope scaling {kind!r} is not LLaMA2's; only 'linear' can be converted")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError(f"{where}: partial_rotary_factor is not plain LLaMA; whole heads are rotated")
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    return 10000.0 if theta is None else float(theta), float(rope["factor"]) if kind == "linear" else 1.0


def config_of(
    a: Architecture, dtype: torch.dtype, carried: Mapping[str, Any] | None = None, token_ids: Mapping[str, int] = {}
) -> dict[str, Any]:
    """A config.json for `a`: the carried one with what it says of sizes, type and tokens put right, or a new one."""
    raw = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": ""}
    made: dict[str, Any] = raw if carried is None else dict(carried)
    made |= {theirs: getattr(a, ours) for ours, theirs in SIZES.items()}
    for ours, (theirs, _) in OPTIONAL.items():
        made[theirs] = getattr(a, ours)
    if made.get("head_dim") is not None:
        made["head_dim"] = a.head_size
    made |= token_ids
    made["dtype" if "dtype" in made else "torch_dtype"] = dtype_name(dtype)
    if _rope_of(made, "config.json") == (a.rope_theta, a.rope_scaling) and carried is not None:
        return made
    linear = {"rope_type": "linear", "factor": a.rope_scaling} if a.rope_scaling != 1.0 else None
    if "rope_parameters" in made:
        made["rope_parameters"] = {"rope_type": "default", **(linear or {}), "rope_theta": a.rope_theta}
    if "rope_parameters" not in made or "rope_theta" in made:  # transformers 5 reads the older form too
        made["rope_theta"] = a.rope_theta
    if "rope_parameters" not in made or "rope_scaling" in made:
        made["rope_scaling"] = linear
    return made


def read_json(file: Path) -> Any:
    """Raises FileNotFoundError, or ValueError that names the file when it is not JSON."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None


def copy_files(source: Path, target: Path, patterns: tuple[str, ...] = CARRIED) -> None:
    """Copy the small files that travel with a model; what `source` does not have is left out."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, target / file.name)


def fingerprint(folder: Path) -> str:
    """What `Tokenizer.fingerprint` gives for the folder's tokenizer.model or byte-level tokenizer.json; "" without.

    Raises ValueError where tokenizer.json is not JSON.
    """
    file = folder / "tokenizer.model"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else tokenizer_json.fingerprint_of(folder)


# --- reading ----------------------------------------------------------------------------------------------------------


class HuggingFaceFolder:
    """A LLaMA model folder, read one tensor at a time by logical name; nothing of it is changed."""

    def __init__(self, path: Path | str) -> None:
        """Raises FileNotFoundError, or ValueError when it is not LLaMA, lacks a tensor, or has one too many."""
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(
                f"{self.path}: no such folder; a model of the Hugging Face Hub must be downloaded first, for example "
                f"with `hf download NAME --local-dir DIR`; then give DIR"
            )
        self.tokenizer = fingerprint(self.path)
        """Of the tokenizer that lies with the model; "" when unknown."""
        self.config: dict[str, Any] = read_json(self.path / "config.json")
        self.architecture = architecture_of(self.config, self.path / "config.json")
        self.shapes, self.names = shapes(self.architecture), names(self.architecture)
        self._open: tuple[Path, Any] | None = None
        self.file_of = self._index()
        self.files = sorted(set(self.file_of.values()))
        self._check()

    def _index(self) -> dict[str, Path]:
        """Hugging Face name -> the file that holds it."""
        found = next((self.path / name for name in WEIGHT_FILES if (self.path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{self.path} has no weights; looked for {', '.join(WEIGHT_FILES)}")
        if found.suffix != ".json":
            return dict.fromkeys(self._tensors(found).keys(), found)
        listed = read_json(found).get("weight_map", {})
        for shard in sorted(set(listed.values())):
            if not (self.path / shard).is_file():
                raise FileNotFoundError(f"{self.path / shard} is missing; {found.name} lists it")
        inside: dict[str, Path] = {}
        for shard in sorted(set(listed.values())):
            inside |= dict.fromkeys(self._tensors(self.path / shard).keys(), self.path / shard)
        for name, shard in listed.items():
            if inside.get(name) != self.path / shard:
                raise ValueError(f"{self.path / shard} does not hold {name}; {found.name} says it does")
        return inside

    def _check(self) -> None:
        wanted = set(self.names.values())
        for name, file in self.file_of.items():
            known = name in wanted or name.endswith("rotary_emb.inv_freq")  # a buffer that old exports carry
            if not known and not (name == "lm_head.weight" and self.architecture.tied):
                raise ValueError(f"{file} holds {name}, which a LLaMA of this config.json does not have")
        for logical, name in self.names.items():
            if name not in self.file_of:
                raise ValueError(f"{self.path} has no tensor {name}")
            dtype_name(self.dtype(logical))
            shape = self._shape(name)
            if shape != self.shapes[logical]:
                raise ValueError(
                    f"{self.file_of[name]}: {name} has shape {shape}, config.json asks for {self.shapes[logical]}"
                )
        if self.architecture.tied and "lm_head.weight" in self.file_of:
            head = self.get("lm_head.weight")
            if not torch.equal(head, self.read("embedding.weight")):
                raise ValueError(f"{self.path}: lm_head.weight differs from the embedding it is tied to")

    def _shape(self, name: str) -> tuple[int, ...]:
        tensors = self._tensors(self.file_of[name])
        return tuple(tensors[name].shape if isinstance(tensors, dict) else tensors.get_slice(name).get_shape())

    def _tensors(self, file: Path) -> Any:
        """The open file; one at a time, so that a shard that cannot be mapped does not pile up on others."""
        if self._open is None or self._open[0] != file:
            self._open = None
            self._open = (file, open_tensors(file))
        return self._open[1]

    def get(self, name: str) -> Tensor:
        """A tensor by its Hugging Face name."""
        tensors = self._tensors(self.file_of[name])
        return tensors[name] if isinstance(tensors, dict) else tensors.get_tensor(name)

    def dtype(self, name: str) -> torch.dtype:
        """The type of a logical tensor."""
        tensors, theirs = self._tensors(self.file_of[self.names[name]]), self.names[name]
        if isinstance(tensors, dict):
            return tensors[theirs].dtype
        return dtype_of_code(tensors.get_slice(theirs).get_dtype())

    def read(self, name: str, kind: str = "weight") -> Tensor:
        """A whole logical tensor, as `distributed.Reader.read` gives it."""
        assert kind == "weight", kind
        return self.get(self.names[name])

    def kinds(self) -> set[str]:
        return {"weight"}


def open_tensors(file: Path) -> Any:
    """A safetensors handle, or the dict of a `.bin`, mapped where it can be. Raises ValueError for a damaged file."""
    try:
        if file.suffix == ".safetensors":
            return safe_open(file, framework="pt")
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # how torch says it of some truncated files
            raise
        raise ValueError(f"{file} is damaged or truncated: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"{file} is not a dict of tensors")
    return found
