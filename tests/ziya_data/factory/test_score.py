import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziya_data._factory import LanguageModel
from ziya_data.document import Document
from ziya_data.factory import score
from ziya_data.factory.recipe import Score


def reference_text() -> list[str]:
    """400 lines over 40 words with a long tail, from a linear congruential generator: the same on every machine."""
    state, lines = 12345, []
    for _ in range(400):
        line: list[str] = []
        while True:
            state = (state * 1103515245 + 12345) % 2**31
            number = state >> 8
            if line and number % 7 == 0:
                break
            line.append(f"w{(number // 7 % 40) * (number // 280 % 40) // 40}")
        lines.append(" ".join(line))
    return lines


# KenLM 0.3.0 on that text: `lmplz -o 3 --discount_fallback --prune 0 0 P`, then `query`: log10 of each sentence.
LMPLZ = {
    0: [-4.8932276, -3.6946583, -9.918441, -8.662896, -3.8891907],
    1: [-4.9341497, -3.6541886, -9.857707, -8.471588, -3.8891907],
}
SENTENCES = ["w0 w1 w2 w3", "w0 w0 w0", "w5 w39 zzz w1", "w10 w3 w0 w7 w2 w1", "w30"]


@pytest.mark.parametrize("prune", [0, 1])
def test_probabilities_are_those_of_kenlm(prune: int, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("\n".join(reference_text()), encoding="utf-8")
    model = score.train("en", text, tmp_path / "m.bin", 3, prune)
    found = [model.score(sentence)[0] / math.log(10) for sentence in SENTENCES]
    assert found == pytest.approx(LMPLZ[prune], abs=2e-5)
    assert [model.score(sentence)[1] for sentence in SENTENCES] == [5, 4, 5, 7, 2]
    whole, count = model.score("\n\n".join(SENTENCES))
    assert whole / math.log(10) == pytest.approx(sum(LMPLZ[prune]), abs=1e-4)
    assert model.perplexity(["\n".join(SENTENCES), ""]) == pytest.approx([math.exp(-whole / count), math.inf])


def test_training_is_deterministic_and_bad_files_are_named(tmp_path: Path, scorers: dict[str, Path]) -> None:
    text = tmp_path / "text"
    text.write_text("一二三\n一二四\n" * 5, encoding="utf-8")
    for name in ("a", "b"):
        score.train("zh", text, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    (tmp_path / "cut").write_bytes((tmp_path / "a").read_bytes()[:-3])
    with pytest.raises(ValueError, match="not a whole scorer file"):
        LanguageModel(str(tmp_path / "cut"))
    with pytest.raises(FileNotFoundError, match="train-scorer --language en"):
        score.load_models(Score(models={"en": str(tmp_path / "none")}))
    with pytest.raises(ValueError, match="is a scorer of zh, not of en"):
        score.load_models(Score(models={"en": str(scorers["zh"])}))
    text.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no token"):
        score.train("zh", text, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert not (tmp_path / "c.tmp").exists()


@pytest.mark.parametrize("language", ["zh", "en"])
def test_prose_scores_better_than_the_same_words_shuffled(
    language: str, scorers: dict[str, Path], prose: Callable[..., list[str]]
) -> None:
    model = LanguageModel(str(scorers[language]))
    draw = np.random.default_rng(0)
    for text in prose(language, 20, seed=3):
        units = list(text) if language == "zh" else text.split(" ")
        shuffled = ("" if language == "zh" else " ").join(draw.permutation(units))
        clean, mixed = model.perplexity([text, shuffled])
        assert clean * 3 < mixed


@given(st.lists(st.floats(1.0, 1e6), min_size=50, max_size=400))
def test_cuts_are_the_quantiles(values: list[float]) -> None:
    """Against a sort of everything; a bin of 1/64 in log perplexity is all they may differ by."""
    bounds = score.cuts(Counter(map(score.bin_of, values)), Score())
    assert bounds is not None
    for last, share in zip(bounds, (0.30, 0.60), strict=True):
        kept = np.mean([score.bin_of(value) <= last for value in values])
        in_bin = max(Counter(map(score.bin_of, values)).values()) / len(values)
        assert abs(kept - share) <= in_bin / 2 + 1e-9


def test_judge_names_quality_and_reason() -> None:
    histogram = Counter({score.bin_of(value): 1 for value in np.geomspace(10, 1000, 100)})
    bounds = score.cuts(histogram, Score())
    found = []
    for value in np.geomspace(10, 1000, 100):
        document = Document("a", "x", "s", metadata={"perplexity": float(value)})
        reason = score.judge(document, bounds)
        found.append(reason or document.metadata["quality"])
    assert found == ["high"] * 30 + ["medium"] * 30 + ["score.low"] * 40
    assert score.cuts(Counter({1: 49}), Score()) is None
    few = Document("a", "x", "s", metadata={"perplexity": 1e9})
    assert score.judge(few, None) == ""
    assert few.metadata["quality"] == "medium"
