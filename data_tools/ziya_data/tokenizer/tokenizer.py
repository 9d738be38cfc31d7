"""`Tokenizer`: text to ids and back, exactly as sentencepiece does it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

SPACE = "\u2581"
"""How SentencePiece writes a space inside a piece."""


def model_path(path: Path) -> Path:
    """The `tokenizer.model` that `path` is or, as a folder, holds. Raises FileNotFoundError where there is none."""
    file = path / "tokenizer.model" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}; give a tokenizer.model or a folder that holds one")
    return file


class Tokenizer:
    """A SentencePiece model. Ids carry no bos and no eos; control tokens written out in a text (`</s>`) stay text."""

    def __init__(self, model: bytes) -> None:
        """`model`: the bytes of a SentencePiece model file. Raises ValueError where they are not one."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)  # type: ignore[call-arg]
        except RuntimeError:
            raise ValueError("the bytes are not a SentencePiece model; give the content of a tokenizer.model") from None
        self._fingerprint = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        pad = self._processor.pad_id()
        # LLaMA has no padding piece; Ziya2's configuration pads with id 0, which is <unk>.
        self.pad_id: int = pad if pad >= 0 else self._processor.unk_id()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer at `path`, a `tokenizer.model` or a folder that holds one.

        Raises FileNotFoundError where there is none, ValueError where the file is not a SentencePiece model.
        """
        file = model_path(path)
        try:
            return cls(file.read_bytes())
        except ValueError:
            raise ValueError(f"{file} is not a SentencePiece model; give a tokenizer.model") from None

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Raises ValueError where it holds a lone surrogate, which has no UTF-8 form."""
        return self._processor.encode(_utf8([text])[0])

    def encode_batch(self, texts: Sequence[str], threads: int = -1) -> list[list[int]]:
        """The ids of each text, in order, on `threads` cores (-1: all). Raises ValueError as `encode` does."""
        return self._processor.encode(_utf8(texts), num_threads=threads)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control tokens give nothing. Raises ValueError for an id outside the vocabulary."""
        try:
            return self._processor.decode(ids)
        except IndexError:
            raise self._unknown([ids]) from None

    def decode_batch(self, batch: Sequence[Sequence[int]], threads: int = -1) -> list[str]:
        """The text of each list of ids, in order, on `threads` cores (-1: all)."""
        try:
            return self._processor.decode(batch, num_threads=threads)
        except IndexError:
            raise self._unknown(batch) from None

    def piece(self, token: int) -> str:
        """The piece with id `token`, a space written as U+2581."""
        return self._processor.id_to_piece(token)

    def is_byte(self, token: int) -> bool:
        """Whether `token` is one of the 256 byte pieces that spell what no other piece can."""
        return self._processor.is_byte(token)

    def fingerprint(self) -> str:
        """SHA-256 of the model file, in hexadecimal."""
        return self._fingerprint

    def _unknown(self, batch: Sequence[Sequence[int]]) -> ValueError:
        wrong = next(token for ids in batch for token in ids if not 0 <= token < self.vocab_size)
        return ValueError(
            f"token id {wrong} is outside the vocabulary of {self.vocab_size} pieces; "
            "ids of padding rows stand for no text, keep them from being generated"
        )


def _utf8(texts: Sequence[str]) -> list[bytes]:
    encoded = []
    for text in texts:
        try:
            encoded.append(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(
                f"a text holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
                "which has no UTF-8 form; take it out of the text"
            ) from None
    return encoded
