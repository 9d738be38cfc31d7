"""Held against counts taken with sentencepiece by hand."""

import json
from pathlib import Path

import pytest
import sentencepiece

from ziya_data.tokenizer.compare import compare, write_comparison
from ziya_data.tokenizer.expand import expand


def test_counts_table_and_picture(base: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expand(base, tmp_path / "wide", corpus=[corpus])
    english = tmp_path / "en.txt"
    english.write_text("A line of text.\nAnother one, longer than the first.\n")
    comparison = compare(base, tmp_path / "wide", {"zh": [corpus], "en": [english]})

    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(base))
    tokens = [token for text in texts for token in theirs.encode(text)]
    before, after = comparison.measures["zh"]
    assert (before.tokens, before.byte_tokens) == (len(tokens), sum(theirs.is_byte(token) for token in tokens))
    assert before.characters == after.characters == sum(map(len, texts))
    assert before.bytes == sum(len(text.encode()) for text in texts)
    assert before.tokens_per_character > 2
    # Every character is a piece now, and the leading space of each text makes one more, unless it joins a piece.
    assert after.characters <= after.tokens + 2 and after.tokens <= after.characters + len(texts)
    assert after.byte_share == 0
    assert comparison.saved("zh") == pytest.approx(1 - after.tokens / before.tokens)
    assert comparison.saved("en") == 0
    assert f"{before.tokens_per_character:.3f}" in comparison.table()

    write_comparison(comparison, tmp_path / "out")
    saved = json.loads((tmp_path / "out/comparison.json").read_text())
    assert saved["languages"]["zh"]["measures"][0]["tokens"] == before.tokens
    assert (tmp_path / "out/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["comparison.json", "comparison.png"]


def test_bad_input_is_one_clear_line(base: Path, corpus: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(ValueError, match="no text for language 'zh'"):
        compare(base, base, {"zh": [empty]})
    with pytest.raises(FileNotFoundError, match="no file"):
        compare(base, base, {"zh": [tmp_path / "missing.txt"]})
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        compare(base, tmp_path / "missing", {"zh": [corpus]})
