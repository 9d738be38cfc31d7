"""Byte-level BPE held against the package tokenizers, whose trainer makes the base, and against transformers."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, models, pre_tokenizers, trainers

from ziya_data.indexed.build import build
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.tokenizer import Tokenizer, commands, row_sources
from ziya_data.tokenizer.byte_level import ByteLevelVocabulary
from ziya_data.tokenizer.expand import expand
from ziya_data.tokenizer.vocabulary import unreachable

CHARACTERS = "谢鄱阳翩跹𠀀，。、翩人"
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|im_start|>",
    "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
    "unk_token": "<|im_end|>",
}


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> Path:
    """A byte-level folder of 1,000 pieces with SmolLM2's settings; 人 is a piece, 国 only inside of 中国."""
    folder = tmp_path_factory.mktemp("plain")
    made = Theirs(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*lines[:1500], *["人", "中国"] * 200], trainer)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="session")
def wide(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wide")
    result = expand(plain, out, characters=CHARACTERS + "国")
    assert (result.base_size, result.size, result.already_present, result.bound) == (1000, 1009, 1, 1)
    return out


def of_package(folder: Path) -> Any:
    theirs = Theirs.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return theirs


def test_old_ids_stay_and_texts_without_new_characters_too(plain: Path, wide: Path, lines: list[str]) -> None:
    old, new = of_package(plain).get_vocab(), of_package(wide).get_vocab()
    assert old.items() <= new.items()
    assert sorted(new.keys() - old.keys(), key=new.__getitem__) == list("谢鄱阳翩跹𠀀，。、")
    texts = [line for line in lines if not set(line) & set(CHARACTERS)]
    assert len(texts) > 3000 and any("\u4e00" <= c <= "\u9fff" for text in texts for c in text)
    assert Tokenizer.load(wide).encode_batch(texts) == [
        made.ids for made in of_package(plain).encode_batch(texts, add_special_tokens=False)
    ]


def test_each_new_character_is_one_piece_and_text_survives(wide: Path, lines: list[str]) -> None:
    tokenizer = Tokenizer.load(wide / "tokenizer.json")
    assert tokenizer.encode("翩跹") == [1003, 1004]
    assert len(tokenizer.encode("中国")) == 1  # adding 国 would have cut it
    assert tokenizer.decode_batch(tokenizer.encode_batch(lines)) == lines
    assert not unreachable(ByteLevelVocabulary.load(wide), list("谢鄱阳翩跹𠀀，。、"))
    assert [tokenizer.is_byte(tokenizer.encode(text)[0]) for text in ("谢", "a", "国")] == [False, False, True]


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from([*CHARACTERS, *" ▁-=中国的人a1谣\n", "self", "  ", "<|im_end|>"])).map("".join))
def test_what_stands_between_new_characters_is_spelled_as_before(plain: Path, wide: Path, text: str) -> None:
    old, new = Tokenizer.load(plain), Tokenizer.load(wide)
    ids = new.encode(text)
    assert new.decode(ids) == text
    parts, part = [], ""
    for character in text:
        if character in "谢鄱阳翩跹𠀀，。、":
            parts += [*old.encode(part), 1000 + "谢鄱阳翩跹𠀀，。、".index(character)]
            part = ""
        else:
            part += character
    assert ids == [*parts, *old.encode(part)]


def test_transformers_gives_equal_ids(wide: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.load(wide), AutoTokenizer.from_pretrained(wide, split_special_tokens=True)
    ids = ours.encode_batch(lines)
    assert theirs(lines, add_special_tokens=False)["input_ids"] == ids
    assert theirs.batch_decode(ids) == ours.decode_batch(ids)
    assert (len(theirs), theirs.bos_token_id, theirs.eos_token_id) == (ours.vocab_size, ours.bos_id, ours.eos_id)
    assert ours.pad_id == ours.eos_id == 1


def changed(folder: Path, out: Path, change: Callable[[Any], None]) -> Path:
    made = json.loads((folder / "tokenizer.json").read_text())
    change(made)
    out.mkdir(exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(made))
    return out


def as_gpt2(made: Any) -> None:
    made["pre_tokenizer"] = made["pre_tokenizer"]["pretokenizers"][1]


def without_two_bytes(made: Any) -> None:
    as_gpt2(made)
    kept = sorted((token, sign) for sign, token in made["model"]["vocab"].items() if sign not in "\u0100\u0104")
    made["model"]["vocab"] = {sign: n for n, (_, sign) in enumerate(kept)}  # the bytes 0 and 4, and no gaps
    for token in made["added_tokens"]:
        token["id"] -= 0 if token["special"] else 2


@pytest.mark.parametrize("change", [as_gpt2, without_two_bytes])
def test_the_fast_encoder_gives_the_ids_of_the_package(
    change: Callable[[Any], None], wide: Path, lines: list[str], tmp_path: Path
) -> None:
    """Also where the vocabulary lacks bytes, as SmolLM2's does: the package leaves them out."""
    ours = Tokenizer.load(changed(wide, tmp_path, change))
    theirs = of_package(tmp_path)
    assert ours.slow_because == ""
    odd = ["", "\x04", "a\x04谢\x00", "<|im_end|>\x04", "谢<|im_start|>", " 谢谢  \n\n\t", "\r\n", "'s'T", "  12345 "]
    for text in (*odd, *lines):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
    assert ours.encode_batch([*odd, *lines]) == [ours.encode(text) for text in (*odd, *lines)]


def words_of_their_own(made: Any) -> None:
    as_gpt2(made)
    plain_token = made["added_tokens"][0] | {"special": False}
    made["added_tokens"] += [plain_token | {"id": 1000 + n, "content": f"«{n}»"} for n in range(250)]
    made["added_tokens"].append(plain_token | {"id": 1250, "content": "the", "single_word": True})


def normalized(made: Any) -> None:
    made["normalizer"] = {"type": "NFC"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (normalized, "it rewrites its text"),
        (words_of_their_own, "it has added tokens that must be words of their own"),
        (lambda made: None, "gigatoken cannot read it: Unsupported pre_tokenizer"),
    ],
)
def test_what_gigatoken_cannot_stays_with_the_package(
    change: Callable[[Any], None], why: str, plain: Path, tmp_path: Path
) -> None:
    ours = Tokenizer.load(changed(plain, tmp_path, change))
    assert ours.slow_because.startswith(why)
    assert ours.encode("e\u0301 12") == of_package(tmp_path).encode("e\u0301 12").ids


def test_control_tokens_that_are_written_out_stay_text(wide: Path) -> None:
    tokenizer = Tokenizer.load(wide)
    for text in ("<|im_end|>", "谢<|im_start|>谢"):
        assert not {0, 1} & set(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_rows_come_from_the_old_pieces(plain: Path, wide: Path, tmp_path: Path) -> None:
    expected = [made.ids for made in of_package(plain).encode_batch(list("谢鄱阳翩跹𠀀，。、"))]
    assert row_sources(wide) == row_sources((plain, wide)) == expected
    assert all(len(ids) > 1 for ids in expected)
    with pytest.raises(ValueError, match="give old, then new"):
        row_sources((wide, plain))
    moved = json.loads((wide / "tokenizer.json").read_text())
    moved["model"]["vocab"] |= {"e": moved["model"]["vocab"]["f"], "f": moved["model"]["vocab"]["e"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(moved))
    with pytest.raises(ValueError, match=r"id \d+ is '[ef]' in .* and '[ef]' in .*only where old ids stay"):
        row_sources((plain, tmp_path))


def test_arrays_and_travel_to_another_process(wide: Path) -> None:
    tokenizer = Tokenizer.load(wide)
    texts = [text.encode() for text in ["谢 a", "", "中国"]]
    for threads in (1, -1):
        tokens, lengths = pickle.loads(pickle.dumps(tokenizer)).encode_arrays(texts, end=1, threads=threads)
        assert tokens.dtype == lengths.dtype == np.int32
        assert tokens.tolist() == [*tokenizer.encode("谢 a"), 1, 1, *tokenizer.encode("中国"), 1]
        assert lengths.tolist() == [len(tokenizer.encode("谢 a")) + 1, 1, 2]


def test_words_the_commands_and_a_dataset(
    plain: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.write_text(corpus.read_text() * 3)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    arguments = ["--base", str(plain / "tokenizer.json"), "--corpus", str(corpus), "--words", "5"]
    assert commands.expand([*arguments, "--out", str(tmp_path / "wide")]) == 0
    printed = capsys.readouterr().out
    assert "5 words added; 0 that would never be reached" in printed
    assert "1 characters left out: longer old pieces hold them" in printed
    assert commands.compare([str(plain), str(tmp_path / "wide"), "--text", f"zh={corpus}"]) == 0
    assert "fewer tokens" in capsys.readouterr().out
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("人工智能和农村的城市\n")
    sizes = ["--base", str(plain), "--corpus", str(corpus), "--text", f"zh={held_out}", "--steps", "1", "--words", "5"]
    assert commands.curve(sizes) == 0
    printed = capsys.readouterr().out
    assert "zh: cheapest with " in printed and "pieces of the base" not in printed
    report = build([corpus], str(tmp_path / "data"), tmp_path / "wide")
    theirs = of_package(tmp_path / "wide")
    documents = [document.tolist() for document in IndexedDataset(tmp_path / "data")]
    assert documents == [[*theirs.encode(text).ids, 1] for text in texts]
    assert report.documents == len(texts)


def no_bytes(made: Any) -> None:
    made["pre_tokenizer"] = {"type": "Metaspace"}


def prefix_space(made: Any) -> None:
    made["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def word_piece(made: Any) -> None:
    made["model"]["type"] = "WordPiece"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_bytes, "BPE of characters, not of bytes"),
        (prefix_space, "a space before each part of a text"),
        (word_piece, "only BPE can be used"),
    ],
)
def test_other_kinds_are_refused(plain: Path, tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    changed(plain, tmp_path, change)
    for act in (Tokenizer.load, lambda path: expand(path, tmp_path / "out", characters="谢")):
        with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{message}"):
            act(tmp_path)
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_clear_line(plain: Path, wide: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*give a tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="is the base's own folder"):
        expand(plain, plain, characters="谢")
    with pytest.raises(ValueError, match="token id 1009 is outside the vocabulary of 1009"):
        Tokenizer.load(wide).decode([5, 1009])
    with pytest.raises(ValueError, match="lone surrogate"):
        Tokenizer.load(wide).encode("a\ud800")
