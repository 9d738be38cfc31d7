"""A byte-level BPE `tokenizer.json` as data: what makes it usable here, and its fingerprint. Needs no other package,
so that checkpoints can name their tokenizer on a machine that only trains."""

import hashlib
import json
from pathlib import Path
from typing import Any

MEANING = ("normalizer", "pre_tokenizer")
"""Besides the model and the added tokens: what decides which ids a text gets."""
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
"""Of an added token."""


def parsed(content: bytes) -> dict[str, Any]:
    """The table in `content`, of a tokenizer.json. Raises ValueError where it is no byte-level BPE."""
    try:
        made = json.loads(content)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}); give a tokenizer.json") from None
    if mistake := unusable(made):
        raise ValueError(mistake)
    return made


def unusable(made: Any) -> str:
    """Why the table of a tokenizer.json cannot be used as byte-level BPE, and what to do; "" where it can."""
    model = made.get("model") if isinstance(made, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or not {"vocab", "merges"} <= model.keys():
        return "it is no BPE tokenizer of the package tokenizers; only BPE can be used here"
    outer = made.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers", [outer])
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if model.get("byte_fallback") or not levels:
        return "it is BPE of characters, not of bytes; give the tokenizer.model that it was made from"
    if any(step.get("add_prefix_space") for step in levels):
        return "it puts a space before each part of a text (add_prefix_space); it cannot be used here"
    return ""


def fingerprint(made: dict[str, Any]) -> str:
    """SHA-256 over what decides the ids, in hexadecimal: it stays when transformers writes the file anew."""
    model = made["model"]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]  # two spellings in use
    added = [
        [token["id"], token["content"], *(bool(token.get(flag)) for flag in FLAGS)]
        for token in made.get("added_tokens", [])
    ]
    ignored = bool(model.get("ignore_merges"))
    told = [model["vocab"], merges, ignored, added, *(made.get(name) for name in MEANING)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def fingerprint_of(folder: Path) -> str:
    """`fingerprint` of the folder's tokenizer.json; "" where there is none, or one of another kind.

    Raises ValueError where it is not JSON.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return ""
    try:
        made = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); take the model's own") from None
    return "" if unusable(made) else fingerprint(made)
