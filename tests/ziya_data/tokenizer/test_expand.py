"""Held against the base model, sentencepiece, transformers and collections.Counter."""

import json
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data.tokenizer import Tokenizer, row_sources
from ziya_data.tokenizer.corpus import count_characters
from ziya_data.tokenizer.expand import expand, padded, rank_chinese, read_characters
from ziya_data.tokenizer.model_file import read_model, write_folder
from ziya_data.tokenizer.vocabulary import with_pieces

CHARACTERS = "谢鄱阳翩跹𠀀，。、翩人"


@pytest.fixture(scope="session")
def wide(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wide")
    expand(base, out, characters=CHARACTERS)
    return out


def test_old_pieces_stay_where_they_are(base: Path, wide: Path) -> None:
    old, new = read_model(base), read_model(wide)
    assert list(new.pieces[: len(old.pieces)]) == list(old.pieces)
    added = new.pieces[len(old.pieces) :]
    assert [piece.piece for piece in added] == list("谢鄱阳翩跹𠀀，。、")
    scores = [piece.score for piece in added]
    assert max(scores) < min(piece.score for piece in old.pieces)
    assert scores == sorted(scores, reverse=True)
    assert new.trainer_spec.vocab_size == len(new.pieces)
    new.trainer_spec.vocab_size = old.trainer_spec.vocab_size
    assert new.trainer_spec == old.trainer_spec
    assert new.normalizer_spec == old.normalizer_spec


def assert_only_the_new_characters_changed(base: Path, wide: Path, texts: list[str]) -> None:
    """With each new id put back to the old ids that spelled it, the ids are the base's own."""
    old, new = (sentencepiece.SentencePieceProcessor(model_proto=read_bytes(path)) for path in (base, wide))
    sources = row_sources(wide)
    for before, after in zip(old.encode(texts), new.encode(texts), strict=True):
        back = [part for token in after for part in (sources[token - len(old)] if token >= len(old) else [token])]
        assert back == before


def read_bytes(path: Path) -> bytes:
    return (path / "tokenizer.model" if path.is_dir() else path).read_bytes()


def test_nothing_else_is_spelled_differently(base: Path, wide: Path, lines: list[str]) -> None:
    assert_only_the_new_characters_changed(base, wide, lines)


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from([*CHARACTERS, *" ▁-=中国的人a1谣\n", "self", "  "])).map("".join))
def test_nothing_else_is_spelled_differently_in_any_text(base: Path, wide: Path, text: str) -> None:
    assert_only_the_new_characters_changed(base, wide, [text])


def test_an_added_character_is_one_piece(base: Path, wide: Path) -> None:
    before, after = Tokenizer.load(base), Tokenizer.load(wide)
    assert len(before.encode("翩跹")) == 1 + 3 * 2  # the leading space, then three bytes a character
    assert len(after.encode("翩跹")) == 1 + 2
    assert after.decode(after.encode("翩跹 x谣")) == "翩跹 x谣"


@pytest.mark.parametrize("widened", [False, True])
def test_transformers_gives_equal_ids(
    base: Path, wide: Path, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, widened: bool
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    folder = wide
    if not widened:
        folder = tmp_path
        write_folder(read_model(base), folder)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    ids = ours.encode_batch(lines)
    assert theirs(lines, add_special_tokens=False)["input_ids"] == ids
    assert theirs.batch_decode(ids) == ours.decode_batch(ids)
    assert theirs("谢")["input_ids"] == [ours.bos_id, *ours.encode("谢")]
    assert (len(theirs), theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        (ours.vocab_size, ours.bos_id, ours.eos_id, ours.pad_id)
    )
    # Control tokens written out in a text: transformers reads them as such unless told to split them.
    split = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    page = "<s> a</s>b <unk>"
    assert split(page, add_special_tokens=False)["input_ids"] == ours.encode(page)


def test_no_merge_makes_a_control_piece(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_folder(with_pieces(read_model(base), ["s>"]), tmp_path)
    page = "中<s>"
    ids = Tokenizer.load(tmp_path).encode(page)
    assert ids[-1] == 1500
    assert AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)(page)["input_ids"] == [1, *ids]


def test_new_rows_come_from_the_bytes(base: Path, wide: Path) -> None:
    first_byte = 3  # as in LLaMA: <unk>, <s>, </s>, then the 256 bytes
    expected = [[byte + first_byte for byte in character.encode()] for character in "谢鄱阳翩跹𠀀，。、"]
    assert row_sources(wide) == expected
    assert row_sources((base, wide)) == expected


def test_a_word_is_spelled_without_the_leading_space_piece(base: Path, tmp_path: Path) -> None:
    write_folder(with_pieces(read_model(base), ["中国的人", "▁中国"]), tmp_path)
    old = Tokenizer.load(base)
    plain, spaced = row_sources((base, tmp_path))
    assert "".join(old.piece(token) for token in plain) == "中国的人"
    assert "".join(old.piece(token) for token in spaced) == "▁中国"


def test_corpus_characters_come_by_frequency_then_the_list(base: Path, corpus: Path, tmp_path: Path) -> None:
    text = "".join(json.loads(line)["text"] for line in corpus.read_text().splitlines())
    ranked = [c for c, _ in sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))]
    assert rank_chinese(count_characters([corpus])) == ranked

    known = {piece.piece for piece in read_model(base).pieces}
    result = expand(base, tmp_path / "out", corpus=[corpus], characters="囍囍中")
    new = [c for c in [*ranked, "囍"] if c not in known]
    assert list(result.pieces) == new
    assert (result.added, result.duplicates) == (len(new), 1)
    assert result.already_present == len({*ranked, "囍", "中"}) - len(new)
    assert result.covered_before == pytest.approx(sum(c in known for c in text) / len(text))
    assert result.covered_after == 1.0

    few = expand(base, tmp_path / "few", corpus=[corpus], count=5)
    assert list(few.pieces) == new[:5]
    assert (few.size, few.padded_size) == (1505, 1536)


def test_letters_emoji_and_surrogates_of_a_corpus_are_no_chinese(tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text('{"text": "abc é あ 😀 \\ud800 １Ａ 한 中〇𠀀，"}\n', encoding="utf-8")
    assert rank_chinese(count_characters([file])) == ["〇", "中", "，", "𠀀"]


def test_the_folder_says_what_was_done_and_is_reproducible(base: Path, wide: Path, tmp_path: Path) -> None:
    saved = json.loads((wide / "expansion.json").read_text())
    assert (saved["base_size"], saved["size"], saved["padded_size"], saved["padding_multiple"]) == (
        1500,
        1509,
        1536,
        128,
    )
    assert (saved["added"], saved["already_present"], saved["duplicates"]) == (9, 1, 1)
    assert saved["base_fingerprint"] == Tokenizer.load(base).fingerprint()
    expand(base, tmp_path, characters=CHARACTERS)
    for file in wide.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_ziya2_pads_as_we_do() -> None:
    assert [padded(size) for size in (39_408, 39_410, 39_424, 39_425)] == [39_424, 39_424, 39_424, 39_552]


def train_unigram(path: Path) -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox"] * 50),
        model_prefix=str(path.with_suffix("")),
        model_type="unigram",
        vocab_size=20,
        minloglevel=2,
    )
    return path


def test_a_base_that_cannot_be_widened(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a SentencePiece unigram model; only BPE"):
        expand(train_unigram(tmp_path / "unigram.model"), tmp_path / "out", characters="谢")
    (tmp_path / "junk.model").write_bytes(b"junkjunk")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        expand(tmp_path / "junk.model", tmp_path / "out", characters="谢")
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(ValueError, match="it has no pieces"):
        expand(tmp_path / "empty.model", tmp_path / "out", characters="谢")
    model = read_model(base)
    model.normalizer_spec.remove_extra_whitespaces = True
    (tmp_path / "rewrites.model").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="rewrites its text first"):
        expand(tmp_path / "rewrites.model", tmp_path / "out", characters="谢")
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        expand(tmp_path / "missing", tmp_path / "out", characters="谢")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("characters", "count", "message"),
    [
        (["谢", "\ud800"], None, r"U\+D800 is a lone surrogate"),
        (["谢谢"], None, "'谢谢' is not one character"),
        ([" "], None, "is not one character"),
        (["中", "国"], None, "nothing to add"),
        ([], None, "nothing to add"),
        (["谢"], 0, "count=0 must be at least 1"),
    ],
)
def test_bad_characters(base: Path, tmp_path: Path, characters: list[str], count: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand(base, tmp_path / "out", characters=characters, count=count)
    assert not (tmp_path / "out").exists()


def test_the_base_is_never_overwritten(base: Path) -> None:
    before = base.read_bytes()
    with pytest.raises(ValueError, match="is the base's own folder"):
        expand(base, base.parent, characters="谢")
    assert base.read_bytes() == before


def test_rows_need_a_pair_that_fits(base: Path, wide: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no .*expansion\.json"):
        row_sources(tmp_path)
    with pytest.raises(ValueError, match="give old, then new"):
        row_sources((wide, base))
    model = read_model(wide)
    model.pieces[300].piece = "moved"
    write_folder(model, tmp_path)
    with pytest.raises(ValueError, match=r"id 300 is .* and 'moved' in"):
        row_sources((base, tmp_path))


def test_a_file_of_characters(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\ufeff谢 谢\n\t鄱\r\n", encoding="utf-8")
    assert read_characters(file) == ["谢", "谢", "鄱"]
    file.write_bytes("人".encode("gb18030"))
    with pytest.raises(ValueError, match="is not UTF-8 at byte 0"):
        read_characters(file)
    file.write_bytes(b"\xed\xa0\x80")  # a lone surrogate, as some programs write it
    with pytest.raises(ValueError, match="is not UTF-8 at byte 0"):
        read_characters(file)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_characters(tmp_path / "missing.txt")
