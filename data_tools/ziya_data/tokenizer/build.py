"""The genuine LLaMA vocabulary, rebuilt as a SentencePiece model from llama.cpp's vocabulary file (.gguf).

llama.cpp ships each vocabulary with cases that the original tokenizer produced: `NAME.gguf.inp` (texts) and
`NAME.gguf.out` (ids). Where they lie beside the file, the rebuilt model must reproduce every one.
"""

from pathlib import Path
from typing import Any

from ziya_data.tokenizer.model_file import BPE, ModelProto, new_model, write_folder
from ziya_data.tokenizer.tokenizer import Tokenizer

CASE_MARK = "\n__ggml_vocab_test__\n"
"""What stands between the texts of an `.inp` file."""


def from_gguf(gguf_path: Path, out: Path) -> tuple[Tokenizer, int]:
    """Writes the SentencePiece vocabulary of `gguf_path` as the tokenizer folder `out`.

    Returns the tokenizer and the number of shipped cases that it reproduced (0 where no cases lie beside the file).
    Raises FileNotFoundError, or ValueError where the file is no gguf, holds another kind of vocabulary, or gives a
    model that fails a shipped case; nothing is written then.
    """
    model = model_from_gguf(gguf_path)
    tokenizer = Tokenizer(model.SerializeToString(deterministic=True))
    cases = shipped_cases(gguf_path)
    for text, ids in cases:
        if tokenizer.encode(text) != ids:
            raise ValueError(
                f"{gguf_path}: the rebuilt vocabulary spells {text!r} as {tokenizer.encode(text)}, "
                f"the case shipped with it as {ids}; this vocabulary is not LLaMA's SentencePiece"
            )
    write_folder(model, out)
    return tokenizer, len(cases)


def model_from_gguf(gguf_path: Path) -> ModelProto:
    """The vocabulary of `gguf_path` as a SentencePiece model with LLaMA's settings."""
    fields = _read_fields(gguf_path)
    kind = fields["tokenizer.ggml.model"].contents() if "tokenizer.ggml.model" in fields else None
    if kind != "llama":
        raise ValueError(
            f"{gguf_path} holds a vocabulary of kind {kind!r}; "
            "only 'llama', which is SentencePiece BPE, can be used here"
        )
    model = new_model()
    names = ("tokens", "scores", "token_type")
    if missing := [name for name in names if f"tokenizer.ggml.{name}" not in fields]:
        raise ValueError(f"{gguf_path} lacks {', '.join(missing)} of its vocabulary; give a whole llama.cpp vocabulary")
    for text, score, piece_type in zip(*(fields[f"tokenizer.ggml.{name}"].contents() for name in names), strict=True):
        model.pieces.add(piece=text, score=score, type=piece_type)
    _llama_settings(model, fields)
    return model


def _read_fields(gguf_path: Path) -> dict[str, Any]:
    if not gguf_path.is_file():
        raise FileNotFoundError(f"no file {gguf_path}; give a llama.cpp vocabulary (.gguf)")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError("reading a .gguf needs the package gguf; pip install gguf") from None
    try:
        return dict(GGUFReader(gguf_path).fields)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{gguf_path} cannot be read as gguf: {error}") from error


def _llama_settings(model: ModelProto, fields: dict[str, Any]) -> None:
    """What a gguf leaves out because every LLaMA model has it: byte fallback, the dummy prefix, text left as it is."""

    def token(name: str, otherwise: int) -> int:
        key = f"tokenizer.ggml.{name}_token_id"
        return int(fields[key].contents()) if key in fields else otherwise

    spec = model.trainer_spec
    spec.model_type = BPE
    spec.vocab_size = len(model.pieces)
    spec.byte_fallback = True
    spec.split_digits = True
    spec.allow_whitespace_only_pieces = True
    spec.unk_id, spec.bos_id, spec.eos_id = token("unknown", 0), token("bos", 1), token("eos", 2)
    spec.pad_id = token("padding", -1)
    for name in ("unk", "bos", "eos"):
        setattr(spec, f"{name}_piece", model.pieces[getattr(spec, f"{name}_id")].piece)
    spec.unk_surface = " \u2047 "
    model.normalizer_spec.name = "identity"
    prefix = fields.get("tokenizer.ggml.add_space_prefix")
    model.normalizer_spec.add_dummy_prefix = prefix is None or bool(prefix.contents())
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True


def shipped_cases(gguf_path: Path) -> list[tuple[str, list[int]]]:
    """The (text, ids) pairs that lie beside `gguf_path`, or none."""
    texts = gguf_path.with_name(gguf_path.name + ".inp")
    answers = gguf_path.with_name(gguf_path.name + ".out")
    if not (texts.is_file() and answers.is_file()):
        return []
    # bytes, because reading as text would turn the cases' "\r\n" into "\n"
    cases = texts.read_bytes().decode().split(CASE_MARK)
    if cases[-1] == "":
        cases.pop()
    lines = answers.read_text().splitlines()
    if len(cases) != len(lines):
        raise ValueError(f"{texts} has {len(cases)} texts and {answers} has {len(lines)} answers; they must match")
    return [(text, [int(token) for token in line.split()]) for text, line in zip(cases, lines, strict=True)]
