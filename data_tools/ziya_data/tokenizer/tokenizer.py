"""`Tokenizer`: text to ids and back, exactly as sentencepiece does it (or tokenizers, for byte-level BPE)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from ziya_data.tokenizer.fast import fast_encoder
from ziya_data.tokenizer.model_file import model_path


class Tokenizer:
    """A SentencePiece model. Ids carry no bos and no eos; control tokens written out in a text (`</s>`) stay text.

    `slow_because`: "" where the fast encoder is used (see fast.py), or why the slow library encodes.
    """

    def __init__(self, model: bytes) -> None:
        """`model`: the bytes of a SentencePiece model file. Raises ValueError where they are not one."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)  # type: ignore[call-arg]
        except RuntimeError:
            raise ValueError("the bytes are not a SentencePiece model; give the content of a tokenizer.model") from None
        self._model = model
        self._encoder, self.slow_because = fast_encoder(model, self._processor)
        self._fingerprint = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        pad = self._processor.pad_id()
        # LLaMA has no padding piece; Ziya2's configuration pads with id 0, which is <unk>.
        self.pad_id: int = pad if pad >= 0 else self._processor.unk_id()

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return type(self), (self._model,)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer at `path`, a `tokenizer.model` or a folder that holds one; or a byte-level `tokenizer.json`.

        Raises FileNotFoundError where there is none, ValueError where the file is of another kind.
        """
        if is_byte_level(path):
            from ziya_data.tokenizer.byte_level import ByteLevelTokenizer

            return ByteLevelTokenizer.load(path)
        file = model_path(path)
        try:
            return cls(file.read_bytes())
        except ValueError:
            raise ValueError(f"{file} is not a SentencePiece model; give a tokenizer.model") from None

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Raises ValueError where it holds a lone surrogate, which has no UTF-8 form."""
        return self.encode_arrays([utf8(text)])[0].tolist()

    def encode_batch(self, texts: Sequence[str], threads: int = -1) -> list[list[int]]:
        """The ids of each text, in order. Raises ValueError as `encode` does. threads: see `encode_arrays`."""
        return rows(*self.encode_arrays([utf8(text) for text in texts], threads=threads))

    def encode_arrays(
        self, texts: Sequence[bytes], end: int = -1, threads: int = 1
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """([sum of lengths], [texts]): the ids of all texts (UTF-8) in a row, and how many each has.

        end: an id put after each text (-1: none). threads: of sentencepiece (-1: all cores); gigatoken has one.
        """
        if self._encoder is not None:
            return self._encoder.encode_all(texts, end)
        return flat_arrays(self._processor.encode(texts, num_threads=threads), end)

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
        """SHA-256 of the model file, in hexadecimal; of byte-level BPE see `ziya_data.tokenizer_json`."""
        return self._fingerprint

    def _unknown(self, batch: Sequence[Sequence[int]]) -> ValueError:
        wrong = next(token for ids in batch for token in ids if not 0 <= token < self.vocab_size)
        return ValueError(
            f"token id {wrong} is outside the vocabulary of {self.vocab_size} pieces; "
            "ids of padding rows stand for no text, keep them from being generated"
        )


def is_byte_level(path: Path) -> bool:
    """Whether `path` is, or as a folder holds, a `tokenizer.json` and no `tokenizer.model`."""
    if path.is_dir():
        return (path / "tokenizer.json").is_file() and not (path / "tokenizer.model").is_file()
    return path.suffix == ".json"


def json_path(path: Path) -> Path:
    """The `tokenizer.json` that `path` is or, as a folder, holds. Raises FileNotFoundError where there is none."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}; give a tokenizer.json or a folder that holds one")
    return file


def flat_arrays(found: Sequence[Sequence[int]], end: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """([sum of lengths], [rows]): the rows in a row, `end` (-1: nothing) after each, and how many each has."""
    tail = [end] if end >= 0 else []
    flat = np.fromiter((token for ids in found for token in (*ids, *tail)), np.int32)
    return flat, np.fromiter((len(ids) + len(tail) for ids in found), np.int32, len(found))


def rows(ids: NDArray[np.integer], lengths: NDArray[np.integer]) -> list[list[int]]:
    """The rows of `ids` [sum of lengths] as lists."""
    flat, stops = ids.tolist(), np.cumsum(lengths).tolist()
    return [flat[stop - length : stop] for stop, length in zip(stops, lengths.tolist(), strict=True)]


def utf8(text: str) -> bytes:
    """The UTF-8 form of `text`. Raises ValueError where it holds a lone surrogate, which has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
            "which has no UTF-8 form; take it out of the text"
        ) from None
