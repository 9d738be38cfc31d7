"""The second scorer: a linear classifier of good against bad text."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from factory_run import Make, silent

from ziya_data._factory import Classifier
from ziya_data.document import Document
from ziya_data.factory import commands, look, pictures, pipeline, score, tighten
from ziya_data.factory.recipe import Score


def shuffled(texts: list[str], language: str) -> list[str]:
    draw = np.random.default_rng(0)
    glue = "" if language == "zh" else " "
    return [glue.join(draw.permutation(list(text) if language == "zh" else text.split(" "))) for text in texts]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, prose: Callable[..., list[str]]) -> dict[str, tuple[Path, Path]]:
    """Language -> (prose, the same kind of prose shuffled)."""
    folder = tmp_path_factory.mktemp("classifier")
    made = {}
    for language in ("zh", "en"):
        pair = folder / f"{language}.good", folder / f"{language}.bad"
        pair[0].write_text("\n".join(prose(language, 250, 4, seed=1)), encoding="utf-8")
        pair[1].write_text("\n".join(shuffled(prose(language, 350, 4, seed=2), language)), encoding="utf-8")
        made[language] = pair
    return made


@pytest.mark.parametrize("language", ["zh", "en"])
def test_texts_it_never_saw_are_told_apart(
    language: str, files: dict[str, tuple[Path, Path]], prose: Callable[..., list[str]], tmp_path: Path
) -> None:
    model, apart = score.train_classifier(language, *files[language], tmp_path / "c")
    assert apart > 0.99
    clean = prose(language, 40, 6, seed=3)
    good, bad = model.score(clean), model.score(shuffled(clean, language))
    assert score.told_apart(good, bad) > 0.99
    assert np.median(good) < 0 < np.median(bad)
    assert model.score(["", "\n"]).tolist() == [math.inf, math.inf]
    long = "\n".join(clean)
    assert min(good) < model.score([long])[0] < max(good), "a long text is no surer than its parts"


def test_the_same_texts_make_the_same_file_and_pieces_do_not_lose_a_line(
    files: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        score.train_classifier("zh", *files["zh"], tmp_path / name, bits=16)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size == 32 + 4 * 2**16
    good = files["zh"][0]
    for count in (1, 3, 7):
        parts = list(score.pieces(good, count))
        assert len(parts) == count and "".join(parts) == good.read_text(encoding="utf-8")
    monkeypatch.setattr(score, "PIECE", 20_000)
    _, apart = score.train_classifier("zh", *files["zh"], tmp_path / "pieces", bits=16)
    assert apart > 0.99


def test_an_example_is_held_out_or_learned_never_both(tmp_path: Path, files: dict[str, tuple[Path, Path]]) -> None:
    model, _ = score.train_classifier("en", *files["en"], tmp_path / "c", passes=1)
    trainer = score.ClassifierTrainer(12)
    held = [len(trainer.held_out(path.read_text(encoding="utf-8"))) for path in files["en"]]
    every = [len(path.read_text(encoding="utf-8").split("\n")) // 2 for path in files["en"]]  # two lines an example
    assert model.examples + sum(held) == pytest.approx(sum(every), abs=2)
    assert 0.02 < sum(held) / sum(every) < 0.1


def test_mistakes_are_named(files: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    good, bad = files["zh"]
    score.train_classifier("zh", good, bad, tmp_path / "c", bits=8)
    (tmp_path / "cut").write_bytes((tmp_path / "c").read_bytes()[:-3])
    (tmp_path / "long").write_bytes((tmp_path / "c").read_bytes() + b"x")
    for name in ("cut", "long"):
        with pytest.raises(ValueError, match="not a whole classifier file"):
            Classifier(str(tmp_path / name))
    with pytest.raises(ValueError, match="bits=40 is not within 8 to 28"):
        score.train_classifier("zh", good, bad, tmp_path / "d", bits=40)
    with pytest.raises(ValueError, match="passes = 0 must be at least 1"):
        score.train_classifier("zh", good, bad, tmp_path / "d", passes=0)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="the bad text holds too few tokens to learn from"):
        score.train_classifier("zh", good, tmp_path / "empty", tmp_path / "d", bits=8)
    with pytest.raises(ValueError, match="the good text holds too few tokens"):
        score.train_classifier("zh", tmp_path / "empty", tmp_path / "empty", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    with pytest.raises(ValueError, match="is a scorer of zh, not of en"):
        score.load_models(Score(models={"en": str(tmp_path / "c")}))
    for arguments in (["--method", "classifier"], ["--against", str(bad)]):
        with pytest.raises(ValueError, match="give both or neither"):
            commands.train_scorer(["--language", "zh", "--text", str(good), "--out", str(tmp_path / "d"), *arguments])


def test_the_command_trains_it_and_the_file_says_what_it_is(
    files: dict[str, tuple[Path, Path]],
    scorers: dict[str, Path],
    prose: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = files["zh"]
    arguments = ["--language", "zh", "--text", str(good), "--against", str(bad), "--out", str(tmp_path / "c")]
    assert commands.train_scorer([*arguments, "--method", "classifier", "--bits", "18"]) == 0
    said = capsys.readouterr().out
    assert "examples, " in said and "% of held-out pairs ranked right, 1.0 MB" in said
    models = score.load_models(Score(models={"zh": str(tmp_path / "c"), "en": str(scorers["en"])}))
    clean = prose("zh", 60, 6, seed=3)
    texts = {"zh": [*clean, *shuffled(clean[:40], "zh")], "en": prose("en", 3)}
    documents = [
        Document(f"{code}{i}", text, "s", language=code) for code in texts for i, text in enumerate(texts[code])
    ]
    score.measure(documents, models)
    assert all(("score" in item.metadata) == (item.language == "zh") for item in documents)
    assert all(("perplexity" in item.metadata) == (item.language == "en") for item in documents)
    chinese = documents[:100]
    places = [place for item in chinese if (place := score.place_of(item)) is not None]
    bounds = score.cuts(Counter(places), Score())
    goes = [score.judge(item, bounds) for item in chinese]
    assert goes == [""] * 60 + ["score.low"] * 40
    assert chinese[-1].metadata["why"].startswith("score ")
    assert bounds is not None and score.middle_of(bounds[1], "score") < chinese[-1].metadata["score"]


def test_share_of_pairs() -> None:
    assert score.told_apart([0.0, 1.0], [2.0, 3.0]) == 1
    assert score.told_apart([1.0, 2.0], [1.0, 2.0]) == 0.5
    assert score.told_apart([1.0, 3.0], [2.0]) == 0.5
    assert math.isnan(score.told_apart([], [1.0]))


def test_bins_of_scores() -> None:
    def place(value: float) -> int | None:
        return score.place_of(Document("a", "x", "s", metadata={"score": value}))

    assert [place(value) for value in (-99.0, -15.0, 0.0, 15.0, math.inf)] == [0, 0, 960, 1920, 1920]
    assert place(-1.0) == 14 * 64
    assert score.middle_of(960, "score") == pytest.approx(0.5 / 64)
    assert score.place_of(Document("a", "x", "s")) is None


def test_a_run_ranks_by_it_beside_perplexity(
    make: Make,
    files: dict[str, tuple[Path, Path]],
    scorers: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    score.train_classifier("zh", *files["zh"], tmp_path / "c")
    settings = make(score={"models": {"zh": str(tmp_path / "c"), "en": str(scorers["en"])}})
    report = pipeline.run(settings, 1, silent)
    rows = {row["language"]: row for row in report["score"]}
    assert {language: row["measure"] for language, row in rows.items()} == {"zh": "score", "en": "perplexity"}
    assert rows["zh"]["high"] < rows["zh"]["medium"] < 15, "log odds"
    assert report["reasons"]["score.low"]["documents"] > 50
    records = look.dropped(tmp_path / "out", "score.low")
    whys = {record["language"]: record["why"].split(" ")[0] for record in records}
    assert whys == {"zh": "score", "en": "perplexity"}
    assert sum(record["id"].startswith("web:00001-") for record in records) > 60, "letters in any order"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("web zh") and page.count("web en")
    commands.explain([str(tmp_path / "out"), "web:00000-00000001"])
    assert "score        score -" in capsys.readouterr().out
    drawn = pictures.scores({"score": [rows["zh"]]})
    assert "<!-- −" in drawn and "10^" not in drawn, "an axis of log odds, not a logarithmic one"
    sample = tighten.Sample(tmp_path / "out", settings, report)
    chinese = sample.ranks[[document.id.startswith("web:") for document in sample.documents]]
    assert 0 <= chinese.min() < 0.05 and 0.5 < chinese.max() <= 0.6, "ranked by either"
