"""Held against sentencepiece's own processor."""

import hashlib
import pickle
from pathlib import Path

import pytest
import sentencepiece

from ziya_data.tokenizer import Tokenizer


def test_ids_and_texts_equal_sentencepiece_in_order(base: Path, lines: list[str]) -> None:
    tokenizer = Tokenizer.load(base)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(base))
    expected = [theirs.encode(line) for line in lines]
    assert tokenizer.encode_batch(lines, threads=2) == expected
    assert [tokenizer.encode(line) for line in lines[:200]] == expected[:200]
    assert tokenizer.decode_batch(expected, threads=2) == [theirs.decode(ids) for ids in expected]
    assert tokenizer.decode(expected[-1]) == theirs.decode(expected[-1])


def test_text_survives_and_written_control_tokens_stay_text(base: Path) -> None:
    tokenizer = Tokenizer.load(base.parent)
    for text in ("", " two  spaces ", "a\r\n\tb", "谢谢😀𠀀", "<s> and </s> on a page"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)


def test_constants(base: Path) -> None:
    tokenizer = Tokenizer.load(base)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1500, 1, 2, 0)
    assert tokenizer.fingerprint() == hashlib.sha256(base.read_bytes()).hexdigest()
    assert tokenizer.piece(1) == "<s>"
    assert [tokenizer.is_byte(token) for token in (2, 3, 258, 259)] == [False, True, True, False]


def test_travels_to_another_process(base: Path) -> None:
    tokenizer = Tokenizer.load(base)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("谢谢 you") == tokenizer.encode("谢谢 you")
    assert copy.fingerprint() == tokenizer.fingerprint()


def test_bad_input_is_one_clear_line(base: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(base)
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 1"):
        tokenizer.encode_batch(["fine", "a\ud800b"])
    with pytest.raises(ValueError, match="token id 1500 is outside the vocabulary of 1500"):
        tokenizer.decode([5, 1500])
    with pytest.raises(ValueError, match="token id -1 is outside"):
        tokenizer.decode_batch([[5], [-1]])
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*give a tokenizer\.model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"junkjunk")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        Tokenizer.load(tmp_path)
