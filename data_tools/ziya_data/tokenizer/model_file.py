"""The SentencePiece model as data, and the folder that carries it to sentencepiece and to transformers.

A folder holds `tokenizer.model` (SentencePiece), `tokenizer.json` (the same vocabulary for Hugging Face's
`tokenizers`) and `tokenizer_config.json`. transformers 5 has no SentencePiece LLaMA tokenizer any more, and the
one that it builds from `tokenizer.model` alone swallows a leading space; with our `tokenizer.json`, whose
normaliser always adds the dummy prefix, its ids equal sentencepiece's.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

SPACE = "\u2581"
"""How SentencePiece writes a space inside a piece."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Piece types of sentencepiece_model.proto."""
BPE = 2
"""`trainer_spec.model_type` of a BPE model."""

# A protobuf message; its class is made at run time, so there is no static type to name.
ModelProto = Any


def model_path(path: Path) -> Path:
    """The `tokenizer.model` that `path` is or, as a folder, holds. Raises FileNotFoundError where there is none."""
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}; give a tokenizer.model or a folder that holds one")
    return file


def new_model() -> ModelProto:
    """An empty SentencePiece `ModelProto`."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]


def read_model(path: Path) -> ModelProto:
    """The SentencePiece BPE model at `path`, a `tokenizer.model` or a folder that holds one.

    Raises FileNotFoundError, or ValueError where it is not a SentencePiece BPE model that leaves text as it is.
    """
    from google.protobuf.message import DecodeError

    file = model_path(path)
    model = new_model()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise ValueError(f"{file} is not a SentencePiece model; give a tokenizer.model") from None
    if not model.pieces:
        raise ValueError(f"{file} is not a SentencePiece model: it has no pieces; give a tokenizer.model")
    if model.trainer_spec.model_type != BPE:
        kind = type(model.trainer_spec).ModelType.Name(model.trainer_spec.model_type).lower()
        raise ValueError(f"{file} is a SentencePiece {kind} model; only BPE models, as LLaMA's is, can be used here")
    ids = {name: getattr(model.trainer_spec, f"{name}_id") for name in ("unk", "bos", "eos")}
    if missing := [name for name, token in ids.items() if token < 0]:
        raise ValueError(f"{file} has no {', '.join(missing)} token; a LLaMA tokenizer needs unk, bos and eos")
    spec = model.normalizer_spec
    if spec.precompiled_charsmap or spec.remove_extra_whitespaces or not spec.escape_whitespaces:
        raise ValueError(
            f"{file} rewrites its text first (normaliser {spec.name!r}); only models that leave text as it is "
            "(identity, white space kept), as LLaMA's does, can be used here"
        )
    return model


class Pieces(NamedTuple):
    """All pieces of a model by id, taken out once: reading a field of 39,400 protobuf messages takes 10 ms."""

    texts: list[str]
    scores: list[float]
    types: list[int]

    @classmethod
    def of(cls, model: ModelProto) -> "Pieces":
        found = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
        return cls(*map(list, zip(*found, strict=True))) if found else cls([], [], [])

    def normal(self) -> list[str]:
        """The pieces that texts are spelled with, bytes aside."""
        return [text for text, kind in zip(self.texts, self.types, strict=True) if kind == NORMAL]


def merges(pieces: Pieces) -> list[tuple[str, str]]:
    """The merges of the BPE model, best first, as `tokenizers` wants them.

    SentencePiece merges any two neighbours whose join is a piece, best score first; so each way to cut a piece into
    two pieces is a merge, ranked by the score of the whole, then (the convention of transformers) by the left length.
    """
    known = set(pieces.normal())
    ranked = sorted(zip(pieces.scores, pieces.texts, pieces.types, strict=True), key=lambda piece: -piece[0])
    return [
        (left, right)
        for _, text, kind in ranked
        if kind == NORMAL and len(text) > 1
        for cut in range(1, len(text))
        if (left := text[:cut]) in known and (right := text[cut:]) in known
    ]


def tokenizer_json(model: ModelProto, pieces: Pieces | None = None) -> dict[str, Any]:
    """The content of `tokenizer.json`: the same vocabulary and the same ids for Hugging Face's `tokenizers`."""
    spec, pieces = model.trainer_spec, pieces or Pieces.of(model)
    bos, unknown = pieces.texts[spec.bos_id], pieces.texts[spec.unk_id]
    prefix = model.normalizer_spec.add_dummy_prefix
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    unspace = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != USER_DEFINED,
            }
            for token, (text, kind) in enumerate(zip(pieces.texts, pieces.types, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": ([{"type": "Prepend", "prepend": SPACE}] if prefix else []) + [space],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special(bos, 0), _sequence("A", 0)],
            "pair": [_special(bos, 0), _sequence("A", 0), _special(bos, 1), _sequence("B", 1)],
            "special_tokens": {bos: {"id": bos, "ids": [spec.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [unspace, {"type": "ByteFallback"}, {"type": "Fuse"}, *(strip if prefix else [])],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": spec.byte_fallback,
            "ignore_merges": False,
            "vocab": {text: token for token, text in enumerate(pieces.texts)},
            "merges": merges(pieces),
        },
    }


def _special(token: str, kind: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": kind}}


def _sequence(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}


def tokenizer_config(model: ModelProto) -> dict[str, Any]:
    """The content of `tokenizer_config.json`.

    The class is the generic one because transformers' LlamaTokenizer throws the normaliser of `tokenizer.json` away.
    As LLaMA's does, `tokenizer(text)` puts `<s>` first; padding is `<unk>`, id 0, as in Ziya2's configuration.
    """
    spec = model.trainer_spec
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": model.pieces[spec.bos_id].piece,
        "eos_token": model.pieces[spec.eos_id].piece,
        "unk_token": model.pieces[spec.unk_id].piece,
        "pad_token": model.pieces[spec.pad_id if spec.pad_id >= 0 else spec.unk_id].piece,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }


def write_folder(model: ModelProto, out: Path, extra: dict[str, str] | None = None) -> None:
    """Writes the tokenizer folder `out`, and `extra` (file name to text) beside it; `tokenizer.model` comes last, so
    that a folder left by a crash is not taken for a tokenizer."""
    files = {
        "tokenizer.json": json.dumps(tokenizer_json(model), ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(tokenizer_config(model), ensure_ascii=False, indent=2).encode(),
        **{name: text.encode() for name, text in (extra or {}).items()},
        "tokenizer.model": model.SerializeToString(deterministic=True),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_file(out / name, content)


def write_file(path: Path, content: bytes) -> None:
    """Writes `path` whole or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(content)
    unfinished.replace(path)
