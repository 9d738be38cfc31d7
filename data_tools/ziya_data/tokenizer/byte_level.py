"""Byte-level BPE tokenizers (Hugging Face's `tokenizer.json`, such as SmolLM2's): read, used and widened.

In byte-level BPE a character of three bytes needs two merges, and the piece between them would also come up in every
other character that begins with the same two bytes: texts without a new character would change. So new pieces are
`added_tokens`: the package tokenizers finds them first, the longest from the left, and encodes what stands between
them exactly as before.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziya_data.tokenizer.fast import fast_byte_level
from ziya_data.tokenizer.model_file import write_file
from ziya_data.tokenizer.tokenizer import Tokenizer, flat_arrays, json_path
from ziya_data.tokenizer_json import fingerprint, parsed

PART = "\ufffd"
"""What the decoder gives for bytes that are no whole character."""
CARRIED = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class ByteLevelTokenizer(Tokenizer):
    """A byte-level BPE tokenizer. As with SentencePiece, ids carry no bos and no eos, and control tokens that are
    written out in a text stay text."""

    def __init__(self, content: bytes, names: dict[str, str]) -> None:
        """`content`: of tokenizer.json. `names`: the tokens that are `bos`, `eos` and `pad`, as far as there are any.

        Raises ValueError for another kind of tokenizer.
        """
        import tokenizers

        made = parsed(content)
        self._fingerprint = fingerprint(made)
        self._content, self._names = content, names
        self._tokenizer: Any = tokenizers.Tokenizer.from_str(content.decode())
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        own = [self._tokenizer.decode([token]) for token in range(0, len(made["model"]["vocab"]), 97)]
        added = [token["content"] for token in made.get("added_tokens", [])]
        added = added[:: len(added) // 200 + 1]
        self._encoder, self.slow_because = fast_byte_level(made, self._slow, [*own, *added])
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.bos_id, self.eos_id, pad = (self._id(names.get(name)) for name in ("bos", "eos", "pad"))
        self.pad_id = pad if pad >= 0 else max(self.eos_id, 0)

    def _slow(self, text: bytes) -> NDArray[np.integer]:
        return np.array(self._tokenizer.encode(text.decode(), add_special_tokens=False).ids, np.uint32)

    def _id(self, name: str | None) -> int:
        found = self._tokenizer.token_to_id(name) if name else None
        return -1 if found is None else found

    def __reduce__(self) -> Any:
        return type(self), (self._content, self._names)

    @classmethod
    def load(cls, path: Path) -> "ByteLevelTokenizer":
        """The tokenizer at `path`, a byte-level `tokenizer.json` or a folder that holds one.

        bos, eos and pad are those of the `tokenizer_config.json` beside it. Raises FileNotFoundError or ValueError.
        """
        file = json_path(path)
        try:
            return cls(file.read_bytes(), special_names(file.parent))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def encode_arrays(
        self, texts: Sequence[bytes], end: int = -1, threads: int = 1
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        if self._encoder is not None:
            return self._encoder.encode_all(texts, end)
        strings = [text.decode() for text in texts]
        # the package has no count of threads: it takes all cores for a batch, one for a single text
        parts = [[string] for string in strings] if threads == 1 else [strings]
        found = [made.ids for part in parts for made in self._tokenizer.encode_batch_fast(part, False, False)]
        return flat_arrays(found, end)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_batch([ids])[0]

    def decode_batch(self, batch: Sequence[Sequence[int]], threads: int = -1) -> list[str]:
        if any(not 0 <= token < self.vocab_size for ids in batch for token in ids):
            raise self._unknown(batch)
        return [self._tokenizer.decode(list(map(int, ids))) for ids in batch]

    def piece(self, token: int) -> str:
        return self._tokenizer.id_to_token(token)

    def is_byte(self, token: int) -> bool:
        """Whether `token` spells a part of a character."""
        return PART in self._tokenizer.decode([token])


class ByteLevelVocabulary:
    """A byte-level BPE tokenizer that can be widened."""

    def __init__(self, content: bytes, carried: dict[str, bytes], names: dict[str, str]) -> None:
        """`carried`: name and content of the small files beside tokenizer.json. names: see ByteLevelTokenizer."""
        self._content, self._carried, self._names = content, carried, names
        self._tokenizer = ByteLevelTokenizer(content, names)
        self.pieces = [self._tokenizer.piece(token) for token in range(self._tokenizer.vocab_size)]
        for token, piece in enumerate(self.pieces):
            if piece is None:
                raise ValueError(f"id {token} has no piece; only a vocabulary without gaps can be widened")

    @classmethod
    def load(cls, path: Path) -> "ByteLevelVocabulary":
        """As `ByteLevelTokenizer.load`. Raises ValueError also where ids have gaps."""
        file = json_path(path)
        carried = {name: (file.parent / name).read_bytes() for name in CARRIED if (file.parent / name).is_file()}
        try:
            return cls(file.read_bytes(), carried, special_names(file.parent))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def _texts(self) -> list[str]:
        return [self._tokenizer.decode([token]) for token in range(self._tokenizer.vocab_size)]

    def present(self) -> set[str]:
        return {text for text in self._texts() if PART not in text}

    def bound(self) -> set[str]:
        texts = self._texts()
        return {character for text in texts if len(text) > 1 for character in text} - {PART, *texts}

    def spell(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.encode_batch(texts)

    def widened(self, pieces: Sequence[str]) -> "ByteLevelVocabulary":
        made = json.loads(self._content)
        made["added_tokens"] = made.get("added_tokens", []) + [
            {
                "id": token,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": False,
            }
            for token, piece in enumerate(pieces, len(self.pieces))
        ]
        content = json.dumps(made, ensure_ascii=False).encode()
        found = ByteLevelVocabulary(content, self._carried, self._names)
        assert found.pieces == [*self.pieces, *pieces], "tokenizers gave a new piece another id"
        return found

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def write(self, out: Path, extra: dict[str, str]) -> None:
        """Writes the folder; `tokenizer.json` comes last, so that what a crash left is not taken for a tokenizer."""
        files = {name: text.encode() for name, text in extra.items()}
        files |= self._carried or {"tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}'}
        out.mkdir(parents=True, exist_ok=True)
        for name, content in (files | {"tokenizer.json": self._content}).items():
            write_file(out / name, content)


def special_names(folder: Path) -> dict[str, str]:
    """The tokens that `tokenizer_config.json` in `folder` names as bos, eos and pad."""
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} beside it is not JSON ({error})") from None
    found: dict[str, str] = {}
    for name in ("bos", "eos", "pad"):
        token = given.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found
