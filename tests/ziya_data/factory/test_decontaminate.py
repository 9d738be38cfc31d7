import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ziya import cli
from ziya_data._factory import GramSet
from ziya_data.document import Document
from ziya_data.factory import recipe
from ziya_data.factory.decontaminate import decontaminate, grams_of, stamps

Prose = Callable[..., list[str]]


def plain_grams(text: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}


@pytest.mark.parametrize("language", ["zh", "en"])
def test_hits_are_those_of_plain_sets_of_grams(language: str) -> None:
    """Against Python's own sets of tuples, over texts of few words so that runs come again by chance."""
    draw = random.Random(1)
    words = ["天", "地", "人", "山"] if language == "zh" else ["ox", "bee", "cow", "elk"]
    glue = "" if language == "zh" else " "
    sets = [draw.choices(words, k=draw.randrange(3, 40)) for _ in range(60)]
    grams = GramSet(6, 4)
    wanted: set[tuple[str, ...]] = set()
    for units in sets:
        assert grams.add(glue.join(units), 0) == (len(units) >= 4)
        if len(units) >= 4:
            wanted |= plain_grams(units, min(6, len(units)))
    assert len(grams) == len(wanted)
    texts = [draw.choices(words, k=30) for _ in range(200)]
    lengths = {len(gram) for gram in wanted}
    expected = [sum(tuple(text[i : i + n]) in wanted for n in lengths for i in range(30 - n + 1)) for text in texts]
    assert grams.find([glue.join(text) for text in texts])[:, 0].tolist() == expected
    assert any(expected)


def benchmark(path: Path, rows: list[object]) -> recipe.Decontaminate:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return recipe.Decontaminate(files=(str(path),))


def test_a_quotation_goes_whatever_its_marks_and_case(tmp_path: Path, prose: Prose) -> None:
    question = "How many apples does the old farmer from the valley have left after he sold nineteen?"
    chinese = "老农夫卖掉了十九个苹果以后一共还剩下多少个苹果？"
    settings = benchmark(tmp_path / "b.jsonl", [{"id": "x", "data": {"q": question, "options": [chinese, "Yes"]}}])
    clean = prose("en", 1)[0]
    texts = [
        f"{clean} {question.upper().replace(' ', '  ')} {clean}",
        f"{prose('zh', 1)[0]}老农夫卖掉了，十九个“苹果”以后",
        clean,
        clean + " How many apples does the old farmer from the valley",  # ten tokens
    ]
    documents = [Document(str(i), text, "s") for i, text in enumerate(texts)]
    assert decontaminate(documents, settings) == ["decontaminate.benchmark"] * 2 + ["", ""]
    assert documents[0].metadata["why"] == (
        f"4 quotations, the first of {tmp_path}/b.jsonl: "
        "HOW MANY APPLES DOES THE OLD FARMER FROM THE VALLEY HAVE LEFT AFTER"
    )
    assert grams_of(settings, stamps(settings))[1] == {str(tmp_path / "b.jsonl"): 1}  # "Yes" cannot be looked for


def test_a_short_item_counts_as_a_whole(tmp_path: Path) -> None:
    settings = benchmark(tmp_path / "b.jsonl", [{"q": "the cat sat on the mat and slept"}])
    texts = ["Then the cat sat on the mat, and slept well.", "Then the cat sat on the mat and woke up again."]
    documents = [Document(str(i), text, "s") for i, text in enumerate(texts)]
    assert decontaminate(documents, settings) == ["decontaminate.benchmark", ""]


def test_benchmark_files_that_would_be_looked_for_in_vain_are_refused(tmp_path: Path) -> None:
    settings = benchmark(tmp_path / "b.jsonl", [{"q": "Yes"}])
    with pytest.raises(ValueError, match="holds no text of at least 8 tokens"):
        decontaminate([Document("1", "x", "s")], settings)
    (tmp_path / "b.jsonl").write_text('{"q": "the cat')
    with pytest.raises(ValueError, match="is not JSON"):
        decontaminate([Document("1", "x", "s")], settings)
    with pytest.raises(FileNotFoundError, match="is missing; check the recipe"):
        decontaminate([Document("1", "x", "s")], recipe.Decontaminate(files=("nowhere.jsonl",)))


def test_from_the_command_line(tmp_path: Path, prose: Prose, capsys: pytest.CaptureFixture[str]) -> None:
    good = prose("en", 40)
    rows = [{"id": f"{i}", "text": text} for i, text in enumerate(good)]
    rows.append(
        {
            "id": "leak",
            "text": good[0] + " " + "Which of the nineteen red boats came home first that windy evening in May?",
        }
    )
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark(
        tmp_path / "b.jsonl", [{"q": "Which of the nineteen red boats came home first that windy evening in May?"}]
    )
    (tmp_path / "r.toml").write_text(
        f"[run]\noutput = '{tmp_path}/out'\n[[source]]\nname = 'a'\npaths = ['{tmp_path}/a.jsonl']\n"
        f"skip = ['deduplicate.near']\n[decontaminate]\nfiles = ['{tmp_path}/b.jsonl']\n"
    )
    assert cli.main(["factory", "run", str(tmp_path / "r.toml")]) == 0
    said = capsys.readouterr().out
    assert "decontaminate: 2 runs of tokens of 1 files" in said
    assert cli.main(["factory", "inspect", str(tmp_path / "out"), "--dropped", "decontaminate"]) == 0
    assert "a:leak" in capsys.readouterr().out
    question = "Who has seen the seven white horses that ran along the beach before the storm came?"
    benchmark(tmp_path / "b.jsonl", [{"q": question}])
    assert cli.main(["factory", "run", str(tmp_path / "r.toml")]) == 0, "another benchmark, another output"
    assert json.loads((tmp_path / "out" / "report.json").read_text())["reasons"] == {}
    capsys.readouterr()
    (tmp_path / "r.toml").write_text((tmp_path / "r.toml").read_text() + "shortest = 14\n")
    assert cli.main(["factory", "run", str(tmp_path / "r.toml")]) == 2
    assert "decontaminate.shortest must be 1 to decontaminate.grams" in capsys.readouterr().err
