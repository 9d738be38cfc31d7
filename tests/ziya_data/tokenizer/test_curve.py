"""The curve held against tokenizers that `expand` really wrote, sentencepiece's counts and a transformers model."""

import json
from pathlib import Path

import pytest
import sentencepiece

from ziya_data.tokenizer import commands
from ziya_data.tokenizer.curve import curve, shape_of, write_curve
from ziya_data.tokenizer.expand import expand
from ziya_data.tokenizer.model_file import read_model, write_folder
from ziya_data.tokenizer.vocabulary import with_pieces

HELD_OUT = ["人工智能和农村的城市", "天下大势在改变世界"]


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in HELD_OUT))
    return path


@pytest.fixture
def thrice(corpus: Path) -> Path:
    corpus.write_text(corpus.read_text() * 3)
    return corpus


def counted(folder: Path) -> int:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return sum(map(len, theirs.encode(HELD_OUT)))


def test_each_end_is_what_expand_gives(base: Path, thrice: Path, held_out: Path, tmp_path: Path) -> None:
    found = curve(base, [thrice], {"zh": [held_out]}, characters=20, words=6, steps=2)
    assert [(p.characters, p.words) for p in found.points] == [(0, 0), (10, 0), (20, 0), (20, 3), (20, 6)]
    characters = sum(map(len, HELD_OUT))
    for point, options in (
        (found.points[1], {"count": 10}),
        (found.points[2], {"count": 20}),
        (found.points[4], {"count": 20, "words": 6}),
    ):
        result = expand(base, tmp_path / "out", corpus=[thrice], **options)
        assert (point.pieces, point.rows) == (result.size, result.padded_size)
        assert point.tokens_per_character["zh"] == pytest.approx(counted(tmp_path / "out") / characters)
    rates = [point.tokens_per_character["zh"] for point in found.points]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_costs_are_those_of_a_real_model(base: Path, thrice: Path, held_out: Path, tmp_path: Path) -> None:
    """Weights counted by transformers; FLOPs are 6 a weight that multiplies, and token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    for tied in (False, True):
        settings = LlamaConfig(
            vocab_size=1536, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=tied,
        )  # fmt: skip
        model = LlamaForCausalLM(settings)
        settings.save_pretrained(tmp_path)
        shape = shape_of(tmp_path / "config.json")
        tables = sum(weight.numel() for name, weight in model.named_parameters() if "embed" in name or "head" in name)
        assert (shape.layers, shape.tables) == (sum(w.numel() for w in model.parameters()) - tables, 2 - tied)
        found = curve(base, [thrice], {"zh": [held_out]}, 20, 0, 1, tmp_path / "config.json")
        point = found.points[-1]
        assert (point.pieces, point.rows) == (1520, 1536)
        assert point.rows_gb == pytest.approx(2e-9 * tables)
        assert point.rows_training_gb == pytest.approx(18e-9 * tables)
        per_token = 6 * (shape.layers + 1536 * 32)
        assert point.flops_per_character["zh"] == pytest.approx(per_token * point.tokens_per_character["zh"])
    # LLaMA2-13B: 13.016 billion weights, of them two tables of 32,000 x 5,120
    assert shape_of(None).layers + 2 * 32_000 * 5120 == 13_015_864_320


def test_pieces_that_are_never_reached_are_told(base: Path, thrice: Path, held_out: Path, tmp_path: Path) -> None:
    write_folder(with_pieces(read_model(base), ["囍囍", "囍囍囍囍囍"]), tmp_path / "odd")
    found = curve(tmp_path / "odd", [thrice], {"zh": [held_out]}, 20, 0, 1)
    assert "囍囍囍囍囍" in found.unreachable_old
    assert "囍囍" not in found.unreachable_old
    assert "pieces of the base that no text is ever spelled with: " in found.table()


def test_the_command_writes_table_data_and_picture(
    base: Path, thrice: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--base", str(base), "--corpus", str(thrice), "--text", f"zh={held_out}", "--steps", "2"]
    assert commands.curve([*words, "--words", "4", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "a model as LLaMA2-13B" in printed
    assert "zh: cheapest with " in printed
    saved = json.loads((tmp_path / "out/curve.json").read_text())
    assert saved["points"][-1]["words"] == 4
    assert saved["cheapest"]["zh"] in saved["points"]
    assert (tmp_path / "out/curve.png").read_bytes().startswith(b"\x89PNG")
    write_curve(curve(base, [thrice], {"zh": [held_out]}, 20, 0, 1), tmp_path / "out")  # without words


def test_bad_input_is_one_clear_line(base: Path, corpus: Path, held_out: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is part of the corpus; measure on text"):
        curve(base, [corpus, held_out], {"zh": [held_out]}, 10, 0)
    with pytest.raises(ValueError, match="characters=0 and steps=8 must be 1 or more"):
        curve(base, [corpus], {"zh": [held_out]}, 0, 0)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"no text in .*empty\.txt"):
        curve(base, [corpus], {"zh": [tmp_path / "empty.txt"]}, 10, 0)
    (tmp_path / "config.json").write_text('{"hidden_size": 5}')
    with pytest.raises(ValueError, match="lacks intermediate_size, num_hidden_layers, num_attention_heads"):
        curve(base, [corpus], {"zh": [held_out]}, 10, 0, config=tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        shape_of(tmp_path / "config.json")
