"""A tokenizer as something that can be widened, whichever kind it is: what it holds, how it spells, what it becomes.

SentencePiece BPE: a character that is a piece needs no merge. SentencePiece starts from single characters, and one that
is in the vocabulary at the end stays whole instead of falling to bytes; as no longer old piece contains it, nothing
else in a text is spelled differently than before. A word of two or more characters is merged from them after all old
merges, since its score is lower than any old one. Byte-level BPE: byte_level.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ziya_data.tokenizer.model_file import (
    NORMAL,
    SPACE,
    USER_DEFINED,
    ModelProto,
    new_model,
    read_model,
    write_folder,
)
from ziya_data.tokenizer.tokenizer import Tokenizer, is_byte_level


class Vocabulary(Protocol):
    """A tokenizer of either kind."""

    @property
    def pieces(self) -> list[str]:
        """Every piece by its id, as the tokenizer's file has it."""

    def present(self) -> set[str]:
        """The texts that are one piece."""

    def bound(self) -> set[str]:
        """Characters that must not be added, since an old piece that is longer would no longer be found."""

    def spell(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without a space piece that the tokenizer puts before it."""

    def widened(self, pieces: Sequence[str]) -> "Vocabulary":
        """With `pieces` behind its own, earlier ones better."""

    def tokenizer(self) -> Tokenizer:
        """The encoder."""

    def write(self, out: Path, extra: dict[str, str]) -> None:
        """Writes the tokenizer folder `out`, and `extra` (file name to text) in it."""


def open_vocabulary(path: Path) -> Vocabulary:
    """The tokenizer at `path`: a `tokenizer.model`, a byte-level `tokenizer.json`, or a folder that holds one of them.

    Raises FileNotFoundError, or ValueError for a kind that cannot be widened.
    """
    if is_byte_level(path):
        from ziya_data.tokenizer.byte_level import ByteLevelVocabulary

        return ByteLevelVocabulary.load(path)
    return SentencePieceVocabulary(read_model(path))


class SentencePieceVocabulary:
    """A SentencePiece BPE model."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.pieces = [piece.piece for piece in model.pieces]

    def present(self) -> set[str]:
        return {piece.piece for piece in self.model.pieces if piece.type in (NORMAL, USER_DEFINED)}

    def bound(self) -> set[str]:
        return set()  # merges go by scores, and the old ones keep theirs

    def spell(self, texts: Sequence[str]) -> list[list[int]]:
        return spell(self.model, texts)

    def widened(self, pieces: Sequence[str]) -> "SentencePieceVocabulary":
        return SentencePieceVocabulary(with_pieces(self.model, pieces))

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.model.SerializeToString(deterministic=True))

    def write(self, out: Path, extra: dict[str, str]) -> None:
        write_folder(self.model, out, extra)


def with_pieces(model: ModelProto, pieces: Sequence[str]) -> ModelProto:
    """A copy of `model` with `pieces` behind its own, scored below all of them, earlier ones better."""
    widened = new_model()
    widened.CopyFrom(model)
    score = np.float32(min(piece.score for piece in model.pieces))
    for piece in pieces:
        # LLaMA's runs of spaces have -1e9, where FP32 has only every 64th number: equal scores would lose the order
        score -= max(np.float32(1), np.spacing(abs(score)))
        widened.pieces.add(piece=piece, score=float(score), type=NORMAL)
    widened.trainer_spec.vocab_size = len(widened.pieces)
    return widened


def spell(model: ModelProto, texts: Sequence[str]) -> list[list[int]]:
    """The ids with which `model` spells each text, without the space piece that it puts before one."""
    import sentencepiece

    bare = new_model()
    bare.CopyFrom(model)
    bare.normalizer_spec.add_dummy_prefix = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())  # type: ignore[call-arg]
    return processor.encode([text.replace(SPACE, " ") for text in texts])


def unreachable(vocabulary: Vocabulary, pieces: Sequence[str]) -> list[str]:
    """Those of `pieces`, all of them in `vocabulary`, that no text is ever spelled with.

    A piece that its own text is not spelled with cannot come up in any other: merges inside a piece go in the same
    order whatever stands around it.
    """
    ids = {piece: token for token, piece in enumerate(vocabulary.pieces)}
    spelled = vocabulary.spell(pieces)
    return [piece for piece, found in zip(pieces, spelled, strict=True) if found != [ids[piece]]]
