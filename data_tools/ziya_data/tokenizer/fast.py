"""The fast encoder (gigatoken), and the guard before it: only models and texts that it encodes as sentencepiece does,
or for byte-level BPE as the package tokenizers does.

`fast_encoder` and `fast_byte_level` read the model's settings, and then encode a few hundred odd strings both ways.
Whatever they do not know, or one difference, and the caller stays with the slow library. Texts in which a control token
is written out (`<s>`), which gigatoken would take for the token, go to the slow library one by one.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziya_data.tokenizer.model_file import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ModelProto,
    Pieces,
    new_model,
    tokenizer_json,
)

CHECKS = 400
"""Strings of the self-check."""
FRAGMENTS = (
    *("", " ", "  ", " " * 17, "\u2581", "\u2581\u2581", "\n", "\r\n", "\t", "\x00", "\x7f", "\u00a0", "\u3000"),
    *("a", "the", " the", "The", "THE", "hello", "world", "don't", "tokenization", "é", "e\u0301", "ß", "ﬁ", "ı"),
    *("0", "2023", "3.14", "-", "--", "====", "#", "...", "，", "。", "“", "”", "《", "(", ")", "{", "}", "://", "_"),
    *("中", "中国", "人工智能", "谢谢", "臺灣", "翩", "鄱", "𠀀", "々", "のは", "カタカナ"),
    *("한국어", "ไทย", "привет", "Ελ", "ا", "ע"),
    *("😀", "👨\u200d👩\u200d👧", "🇨🇳", "\ufe0f", "\ufeff", "\ufffd", "\u200b", "\u202e", "\ue000", "\U0010ffff"),
    *("<s>", "</s>", "<unk>", "<0x0A>", "<pad>", "[INST]", "return x;", "def f(self):\n        ", "<div>", "\\n"),
)  # fmt: skip
"""What the self-check's strings are made of."""


Slow = Callable[[bytes], NDArray[np.integer]]
"""The ids of one text (UTF-8), by the library that decides what is right."""


class FastEncoder:
    """gigatoken, with the slow library for the texts that it would read otherwise."""

    def __init__(self, content: str, apart: Iterable[bytes], slow: Slow) -> None:
        """`content`: of a tokenizer.json. apart: texts that hold one of these go to `slow`. Raises RuntimeError."""
        import gigatoken

        self._fast = gigatoken.Tokenizer.from_json(content)
        self._slow = slow
        self._apart = re.compile(b"|".join(map(re.escape, apart)) or b"(?!)")

    def encode(self, text: bytes) -> NDArray[np.integer]:
        """The ids of one text (UTF-8)."""
        return self._slow(text) if self._apart.search(text) else self._fast.encode(text)

    def encode_all(self, texts: Sequence[bytes], end: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """([sum of lengths], [texts]): the ids of all texts in a row, `end` (-1: nothing) after each, and how many."""
        # One search for the whole batch; hardly any has a match. What lies between two texts is nothing to be found.
        alone = self._apart.search(b"\n".join(texts))
        found = [(self.encode if alone else self._fast.encode)(text) for text in texts]
        lengths = np.fromiter(map(len, found), np.int32, len(found))
        flat = np.concatenate(found).astype(np.int32) if found else np.empty(0, np.int32)
        if end < 0:
            return flat, lengths
        return np.insert(flat, np.cumsum(lengths), end), lengths + 1


def fast_encoder(model: bytes, processor: Any) -> tuple[FastEncoder | None, str]:
    """(the encoder, "") or, where it must not be used, (None, why in a few words).

    model: the bytes of a SentencePiece model file. processor: sentencepiece's own of the same model.
    """
    proto = new_model()
    proto.ParseFromString(model)
    pieces = Pieces.of(proto)
    if why := unknown_setting(proto, pieces):
        return None, why
    marked = zip(pieces.texts, pieces.types, strict=True)
    control = [text.encode() for text, kind in marked if kind in (CONTROL, UNKNOWN)]
    own = [text.replace("\u2581", " ") for text in pieces.normal()]
    # from our tokenizer.json: gigatoken's own reading of a SentencePiece model takes twice as long
    content = json.dumps(tokenizer_json(proto, pieces), ensure_ascii=False)
    return checked(content, control, lambda text: np.array(processor.encode(text), np.uint32), own, "sentencepiece")


def fast_byte_level(made: dict[str, Any], slow: Slow, own: Sequence[str]) -> tuple[FastEncoder | None, str]:
    """As `fast_encoder`, of the table in a byte-level tokenizer.json. own: some of its pieces, as text."""
    if made.get("normalizer"):
        return None, "it rewrites its text"
    vocabulary, added = made["model"]["vocab"], made.get("added_tokens", [])
    if any(token.get("single_word") for token in added):
        return None, "it has added tokens that must be words of their own"
    # gigatoken wants all 256 bytes; what a vocabulary lacks gets an id that no text is given: such texts go to `slow`
    missing = {sign: byte for sign, byte in byte_signs().items() if sign not in vocabulary}
    first = 1 + max([*vocabulary.values(), *(token["id"] for token in added)])
    model = made["model"] | {"vocab": vocabulary | {sign: first + n for n, sign in enumerate(missing)}}
    special = [token["content"].encode() for token in added if token.get("special")]
    apart = [*special, *(bytes([byte]) for byte in missing.values())]
    return checked(json.dumps(made | {"model": model}, ensure_ascii=False), apart, slow, own, "tokenizers")


def byte_signs() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary: its own if it prints, or U+0100 and on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def checked(
    content: str, apart: Iterable[bytes], slow: Slow, own: Sequence[str], library: str
) -> tuple[FastEncoder | None, str]:
    """The encoder, if it gives the ids of `slow`, of `library`, for strings of fixed fragments and of `own` pieces."""
    if not find_spec("gigatoken"):
        return None, "gigatoken is not installed"
    try:
        encoder = FastEncoder(content, apart, slow)
    except RuntimeError as error:  # what gigatoken says of a file that it cannot read
        return None, f"gigatoken cannot read it: {str(error).splitlines()[0]}"
    for text in check_texts(own):
        if encoder.encode(text.encode()).tolist() != slow(text.encode()).tolist():
            return None, f"gigatoken differs from {library} on {text[:40]!r}"
    return encoder, ""


def unknown_setting(proto: ModelProto, pieces: Pieces) -> str:
    """Which setting of the model the fast encoder does not know, or ""."""
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    kinds = Counter(pieces.types)
    unknown = {
        "it is not a BPE model": trainer.model_type != BPE,
        "it rewrites its text": bool(spec.precompiled_charsmap) or bool(spec.normalization_rule_tsv),
        "it removes white space": spec.remove_extra_whitespaces,
        "it does not escape white space": not spec.escape_whitespaces,
        "it treats white space as a suffix": trainer.treat_whitespace_as_suffix,
        "it has no byte fallback": not trainer.byte_fallback or kinds[BYTE] != 256,
        "it has user-defined pieces": bool(kinds[USER_DEFINED]),
        "it has unused pieces": bool(kinds[UNUSED]),
        # sentencepiece would give its id to that character of a text
        "it has a control piece of one character": any(
            len(text) == 1 and kind != NORMAL for text, kind in zip(pieces.texts, pieces.types, strict=True)
        ),
    }
    return next((why for why, found in unknown.items() if found), "")


def check_texts(own: Sequence[str]) -> list[str]:
    """The self-check's strings: always the same for the same pieces."""
    rng = random.Random(0)
    texts = list(FRAGMENTS)
    while len(texts) < CHECKS:
        # Half from the fixed fragments, half from the model's pieces, whose joints are where merges compete.
        source = FRAGMENTS if len(texts) % 2 else own or FRAGMENTS
        texts.append("".join(rng.choices(source, k=rng.randrange(2, 40))))
    return texts
