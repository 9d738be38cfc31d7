"""Words held against Counter, sentencepiece and transformers."""

import json
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece

from ziya_data.tokenizer import Tokenizer, commands, row_sources
from ziya_data.tokenizer.expand import Expansion, add_words, expand
from ziya_data.tokenizer.model_file import read_model
from ziya_data.tokenizer.vocabulary import SentencePieceVocabulary, open_vocabulary, unreachable, with_pieces
from ziya_data.tokenizer.words import count_runs, frequent_words

TEXTS = ["中国人民，人工智能", "中国人民的人工智能", "中国 人民 x中国x", "天下大势，天下大势"] * 4


@pytest.fixture
def repeated(tmp_path: Path) -> Path:
    """A corpus in which words come again."""
    path = tmp_path / "repeated.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def worded(base: Path, repeated: Path, tmp_path: Path) -> Expansion:
    return expand(base, tmp_path / "worded", corpus=[repeated], words=8)


def test_runs_are_counted(repeated: Path) -> None:
    expected = Counter({"中国人民": 4, "人工智能": 8, "人民": 4, "天下大势": 8, "中国": 8, "中国人民的": 0})
    expected["中国人民的人工智能"] = 4
    expected["人工智能"] = 4
    assert count_runs([repeated], set("".join(TEXTS)) - set("，x ")) == +expected
    # without the letter 的 a run ends there; of a corpus that is too large, every second text
    assert "人工智能" in count_runs([repeated], "中国人民工智能")
    letters = sum(map(len, count_runs([repeated], "中国").elements()))
    assert count_runs([repeated], "中国", limit=letters // 2) == Counter({"中国": 12})
    assert count_runs([repeated], "中国", limit=letters // 4) == Counter({"中国": 4})


def test_the_most_frequent_pairs_are_found(repeated: Path) -> None:
    found = frequent_words([repeated], set("".join(TEXTS)) - set("，x "), 6)
    assert found[0] == "中国"  # sixteen times, more than any other pair
    assert {"人工", "智能", "天下"} & set(found)
    assert all(2 <= len(word) <= 4 for word in found)
    with pytest.raises(ValueError, match="no two of the characters side by side"):
        frequent_words([repeated], "x", 5)


def test_words_come_behind_the_characters_and_each_is_one_piece(base: Path, tmp_path: Path, worded: Expansion) -> None:
    assert worded.words == 8
    pieces = list(worded.pieces)
    assert all(len(piece) == 1 for piece in pieces[: worded.added])
    assert all(len(piece) > 1 for piece in pieces[worded.added :])
    tokenizer, old = Tokenizer.load(tmp_path / "worded"), Tokenizer.load(base)
    assert not tokenizer.slow_because
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "worded/tokenizer.model"))
    for token, piece in enumerate(pieces, 1500):
        assert theirs.encode("x" + piece)[-1] == token  # "▁中国" is an old piece, and the space before a text calls it
    assert row_sources(tmp_path / "worded") == row_sources((base, tmp_path / "worded"))
    for piece, ids in worded.pieces.items():
        assert old.decode(ids) == piece


def test_text_without_the_words_is_spelled_as_before(
    base: Path, repeated: Path, tmp_path: Path, worded: Expansion, lines: list[str]
) -> None:
    """Against the same model with the characters alone; where a word occurs, putting it back gives the same text."""
    expand(base, tmp_path / "characters", corpus=[repeated])
    narrow, wide = (
        sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name / "tokenizer.model"))
        for name in ("characters", "worded")
    )
    words = [piece for piece in worded.pieces if len(piece) > 1]
    without = [line for line in [*lines, *TEXTS] if not any(word in line for word in words)]
    assert len(without) > 3000 and any("智" in line or "中" in line for line in without)
    assert wide.encode(without) == narrow.encode(without)
    used = set()
    for text in TEXTS:
        back = []
        for token in wide.encode(text):
            used.add(token)
            piece = wide.id_to_piece(token)
            back += [narrow.piece_to_id(c) for c in piece] if piece in words else [token]
        assert back == narrow.encode(text)
    assert any(token >= 1500 + worded.added for token in used)


def test_transformers_gives_equal_ids(
    tmp_path: Path, worded: Expansion, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.load(tmp_path / "worded"), AutoTokenizer.from_pretrained(tmp_path / "worded")
    texts = [*lines, *TEXTS]
    assert theirs(texts, add_special_tokens=False)["input_ids"] == ours.encode_batch(texts)


def test_the_order_holds_where_the_lowest_old_score_is_far_down(
    base: Path, repeated: Path, tmp_path: Path, lines: list[str]
) -> None:
    """As in LLaMA's own model, whose runs of spaces have -1e9: FP32 cannot count on from there by ones."""
    from tokenizers import Tokenizer as Theirs

    model = read_model(base)
    model.pieces[-1].score = -1e9
    (tmp_path / "deep.model").write_bytes(model.SerializeToString())
    result = expand(tmp_path / "deep.model", tmp_path / "deep", corpus=[repeated], words=8)
    scores = [piece.score for piece in read_model(tmp_path / "deep").pieces[1500:]]
    assert scores == sorted(set(scores), reverse=True) and len(scores) == result.added + 8 and scores[0] < -1e9
    texts = [*lines, *TEXTS, "".join(result.pieces), "".join(reversed(result.pieces))]
    theirs = Theirs.from_file(str(tmp_path / "deep/tokenizer.json"))
    expected = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "deep/tokenizer.model")).encode(texts)
    assert Tokenizer.load(tmp_path / "deep").encode_batch(texts) == expected
    assert [made.ids for made in theirs.encode_batch(texts, add_special_tokens=False)] == expected


def test_a_word_that_is_never_reached_is_left_out(base: Path, tmp_path: Path) -> None:
    """With 国人 joined first by an old piece, 中国民 can only be reached through 中国, and 中国人 not at all."""
    vocabulary = SentencePieceVocabulary(with_pieces(open_vocabulary(base).model, ["国人", "民"]))  # type: ignore[attr-defined]
    assert unreachable(vocabulary.widened(["中国", "中国人x"]), ["中国", "中国人x"]) == ["中国人x"]
    text = tmp_path / "a.txt"
    text.write_text("中国人民\n" * 50 + "中国\n" * 200)
    chosen, never = add_words(vocabulary, [], [text], 4)
    assert not unreachable(vocabulary.widened(chosen), chosen)
    assert set(never).isdisjoint(chosen)
    assert "中国" in chosen


def test_the_command(base: Path, repeated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--base", str(base), "--out", str(tmp_path / "out"), "--words"]
    assert commands.expand([*arguments, "4", "--corpus", str(repeated)]) == 0
    assert "4 words added; 0 that would never be reached left out" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out/expansion.json").read_text())
    assert (saved["words"], saved["unreachable"]) == (4, [])
    assert commands.expand([*arguments, "900", "--corpus", str(repeated)]) == 0
    assert "900 words were asked for; the corpus has no more" in capsys.readouterr().out
    (tmp_path / "list.txt").write_text("谢")
    for words in ("3", "-1"):
        with pytest.raises(ValueError, match=f"words={words} needs a corpus"):
            commands.expand([*arguments, words, "--characters", str(tmp_path / "list.txt")])
