import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ziya import cli
from ziya_data.factory import pipeline, recipe, tighten

Prose = Callable[..., list[str]]


@pytest.fixture
def start(tmp_path: Path, prose: Prose, scorers: dict[str, Path]) -> Callable[..., Path]:
    """start(rows, skip, **sections) -> the folder of a finished run over clean prose and these rows."""

    def make(planted: list[str], skip: str = "deduplicate.near", **sections: Any) -> Path:
        texts = [*prose("zh", 300), *prose("en", 300), *planted]
        random.Random(0).shuffle(texts)
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        table: dict[str, Any] = {
            "run": {"output": str(tmp_path / "out")},
            "source": [{"name": "a", "paths": [str(tmp_path / "a.jsonl")], "skip": skip.split()}],
            **sections,
        }
        pipeline.run(recipe.parse(table), say=lambda line: None)
        return tmp_path / "out"

    return make


def test_a_threshold_that_tells_the_bad_from_the_good_is_found_and_works(
    start: Callable[..., Path], prose: Prose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phrases = ("免费咨询。", "全场包邮。", "限时优惠。", "加微信。")
    lines = prose("zh", 48, 1, seed=5)
    adverts = ["\n".join(lines[4 * i + k] + phrases[k] for k in range(4)) for i in range(12)]
    loose = {"advert_words": {"zh": 1000}, "paragraph_advert": {"zh": 1}}  # a line of one phrase stays
    out = start(adverts, rules=loose)
    found = tighten.propose(out)
    assert set(found.failed) == {"advert"} and found.failed["advert"][0] == 12
    (move,) = found.moves
    assert (move.knob, move.old, move.caught, move.documents) == ("rules.advert_words.zh", 1000, 12, 12)
    assert cli.main(["factory", "tighten", str(out), "--write", str(tmp_path / "new.toml")]) == 0
    said = capsys.readouterr().out
    assert "advert: 12 of 612 documents, at most 0 may be" in said
    assert "catches 12 of 12; costs about 12 documents (1.96 %)" in said
    assert cli.main(["factory", "run", str(tmp_path / "new.toml")]) == 0
    out = out.with_name("out-tight")  # what it was made of stays
    report = json.loads((out / "report.json").read_text())
    assert report["reasons"]["rules.advert_words"]["documents"] == 12, "what was proposed is what happens"
    assert report["evaluate"]["failed"] == []
    assert tighten.lines(tighten.propose(out)) == [
        "the gate is passed: no metric counts more of the 600 documents than it may"
    ]
    assert cli.main(["factory", "tighten", str(out), "--write", str(tmp_path / "new.toml")]) == 0, "nothing to write"


def test_a_repair_that_is_off_comes_before_any_threshold(start: Callable[..., Path], prose: Prose) -> None:
    mails = [f"{text} His address is a{i}@example.com." for i, text in enumerate(prose("en", 5, seed=5))]
    found = tighten.propose(start(mails, rules={"mask_mail": False}))
    (move,) = found.moves
    assert (move.knob, move.old, move.new, move.caught, move.documents) == ("rules.mask_mail.en", None, 1, 5, 0)
    assert move.size == sum(len(f"a{i}@example.com") - len("[email]") for i in range(5))


def test_the_cut_by_perplexity_is_one_of_the_thresholds(
    start: Callable[..., Path], scorers: dict[str, Path], prose: Prose
) -> None:
    draw = random.Random(3)
    garbled = ["".join(draw.sample(text, len(text))) for text in prose("zh", 40, seed=6)]
    models = {name: str(path) for name, path in scorers.items()}
    skip = "deduplicate.near rules"  # or a rule tells them too
    out = start(garbled, skip, score={"models": models, "medium": 1.0}, evaluate={"perplexity": 1.5})
    found = tighten.propose(out)
    (move,) = [move for move in found.moves if move.metric == "perplexity"]
    assert move.knob == "score.medium" and 0.85 < move.new < 0.95, (
        "40 of 340 Chinese documents read worst: 0.88, and some of them still pass"
    )
    assert 40 - 0.02 * 640 - 2 <= move.caught <= move.documents <= 42, "until 1 in 50 is left"


def test_what_no_threshold_tells_is_named(start: Callable[..., Path], prose: Prose) -> None:
    clean = prose("zh", 300)
    hidden = [text[:-1] + "，有人说裸聊。" for text in prose("zh", 6, seed=8)]
    found = tighten.propose(start(hidden, rules={"sentence_toxic": {"zh": 5}, "toxic_words": False}))
    assert clean and "toxic" in found.failed
    assert not found.moves or found.moves[0].metric == "toxic"


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["factory", "tighten", str(tmp_path)]) == 2
    assert "holds no finished factory run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "sign"), [(0.0312, 1.0), (12345.0, 1.0), (-60.0, -1.0), (-0.25, -1.0), (0.0, 1.0), (7.0, 1.0)]
)
def test_a_rounded_limit_lets_the_value_go_and_hardly_more(value: float, sign: float) -> None:
    limit = tighten.rounded(value, sign)
    assert value > sign * limit
    assert value - sign * limit <= max(abs(value) * 0.0101, 0.001)
