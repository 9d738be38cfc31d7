"""Held against the model that a .gguf was written from, and llama.cpp's cases where the demo has fetched them."""

from pathlib import Path

import pytest
import sentencepiece
from gguf import GGUFWriter

from ziya_data.tokenizer import Tokenizer, row_sources
from ziya_data.tokenizer.build import CASE_MARK, from_gguf, shipped_cases
from ziya_data.tokenizer.expand import expand
from ziya_data.tokenizer.model_file import read_model

GENUINE = Path(__file__).parents[3] / "runs/demo/raw/vocabulary/ggml-vocab-llama-spm.gguf"


def write_gguf(path: Path, base: Path, kind: str = "llama") -> Path:
    pieces = read_model(base).pieces
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list([piece.piece for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.type for piece in pieces])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write_cases(gguf: Path, texts: list[str], ids: list[list[int]]) -> None:
    gguf.with_name(gguf.name + ".inp").write_bytes("".join(text + CASE_MARK for text in texts).encode())
    gguf.with_name(gguf.name + ".out").write_text("".join(" " + " ".join(map(str, row)) + "\n" for row in ids))


def test_a_vocabulary_comes_back_whole(base: Path, tmp_path: Path, lines: list[str]) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(base))
    texts = ["\r\n a", "谢谢\n\nyou", "", " lead"]
    gguf = write_gguf(tmp_path / "vocabulary.gguf", base)
    write_cases(gguf, texts, [theirs.encode(text) for text in texts])
    tokenizer, cases = from_gguf(gguf, tmp_path / "out")
    assert cases == len(texts)
    rebuilt = Tokenizer.load(tmp_path / "out")
    assert rebuilt.fingerprint() == tokenizer.fingerprint()
    assert rebuilt.encode_batch(lines) == theirs.encode(lines)


def test_a_failing_case_leaves_nothing_behind(base: Path, tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "vocabulary.gguf", base)
    write_cases(gguf, ["谢"], [[1, 2, 3]])
    with pytest.raises(ValueError, match="the case shipped with it as"):
        from_gguf(gguf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_clear_line(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file"):
        from_gguf(tmp_path / "missing.gguf", tmp_path / "out")
    with pytest.raises(ValueError, match="cannot be read as gguf"):
        from_gguf(base, tmp_path / "out")
    with pytest.raises(ValueError, match="vocabulary of kind 'gpt2'"):
        from_gguf(write_gguf(tmp_path / "other.gguf", base, "gpt2"), tmp_path / "out")
    gguf = write_gguf(tmp_path / "short.gguf", base)
    write_cases(gguf, ["a", "b"], [[1]])
    with pytest.raises(ValueError, match=r"has 2 texts and .* has 1 answers"):
        from_gguf(gguf, tmp_path / "out")


@pytest.mark.skipif(not GENUINE.is_file(), reason="the demo has not fetched the LLaMA vocabulary")
def test_the_genuine_llama_vocabulary(tmp_path: Path) -> None:
    tokenizer, cases = from_gguf(GENUINE, tmp_path)
    assert tokenizer.vocab_size == 32_000
    assert cases == len(shipped_cases(GENUINE)) > 40
    # As readers of the Ziya paper report it.
    assert tokenizer.encode("谢") == [29871, 235, 179, 165]
    # 32,000 + 7,400 pieces pad to Ziya2's 39,424 rows; the leading-space piece 29871 is no part of a row's sources.
    ideographs = [chr(point) for point in range(0x4E00, 0x9FFF)]
    wide = expand(tmp_path, tmp_path / "wide", characters=["谢", *ideographs], count=7400)
    assert (wide.size, wide.padded_size) == (39_400, 39_424)
    assert row_sources(tmp_path / "wide")[0] == [235, 179, 165]
