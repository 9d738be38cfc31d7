"""The fast encoder (gigatoken), and the guard before it: only models and texts that it encodes as sentencepiece does.

`fast_encoder` reads the model's settings, and then encodes a few hundred odd strings both ways. Whatever it does not
know, or one difference, and the caller stays with sentencepiece. Texts in which a control token is written out
(`<s>`), which gigatoken would take for the token, go to sentencepiece one by one.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
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


class FastEncoder:
    """gigatoken, with sentencepiece for the texts that it would read otherwise."""

    def __init__(self, proto: ModelProto, pieces: Pieces, processor: Any) -> None:
        import gigatoken

        # from our tokenizer.json: gigatoken's own reading of a SentencePiece model takes twice as long
        self._fast = gigatoken.Tokenizer.from_json(json.dumps(tokenizer_json(proto, pieces), ensure_ascii=False))
        self._processor = processor
        marked = zip(pieces.texts, pieces.types, strict=True)
        written = [text.encode() for text, kind in marked if kind in (CONTROL, UNKNOWN)]
        self._control = re.compile(b"|".join(map(re.escape, written)))

    def encode(self, text: bytes) -> NDArray[np.integer]:
        """The ids of one text (UTF-8)."""
        if self._control.search(text):
            return np.array(self._processor.encode(text), np.uint32)
        return self._fast.encode(text)

    def encode_all(self, texts: Sequence[bytes], end: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """([sum of lengths], [texts]): the ids of all texts in a row, `end` (-1: nothing) after each, and how many."""
        # One search for the whole batch; hardly any has a match. No control token holds a zero byte.
        alone = self._control.search(b"\0".join(texts))
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
    if not find_spec("gigatoken"):
        return None, "gigatoken is not installed"
    proto = new_model()
    proto.ParseFromString(model)
    pieces = Pieces.of(proto)
    if why := unknown_setting(proto, pieces):
        return None, why
    encoder = FastEncoder(proto, pieces, processor)
    for text in check_texts(pieces):
        if encoder.encode(text.encode()).tolist() != processor.encode(text):
            return None, f"gigatoken differs from sentencepiece on {text[:40]!r}"
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


def check_texts(pieces: Pieces) -> list[str]:
    """The self-check's strings: always the same for a model."""
    rng = random.Random(0)
    own = [text.replace("\u2581", " ") for text in pieces.normal()]
    texts = list(FRAGMENTS)
    while len(texts) < CHECKS:
        # Half from the fixed fragments, half from the model's pieces, whose joints are where merges compete.
        source = FRAGMENTS if len(texts) % 2 else own or FRAGMENTS
        texts.append("".join(rng.choices(source, k=rng.randrange(2, 40))))
    return texts
