import tomllib
from pathlib import Path

import pytest

from ziya_data.factory import recipe

SMALLEST = '[run]\noutput = "out"\n[[source]]\nname = "a"\npaths = ["a.jsonl"]\n'


def parse(text: str) -> recipe.Recipe:
    return recipe.parse(tomllib.loads(text))


def test_defaults_are_those_of_the_paper() -> None:
    found = parse(SMALLEST)
    assert (found.score.high, found.score.medium) == (0.30, 0.60)
    assert found.evaluate.level_1 == 0.001
    assert found.preprocess.languages == ("zh", "en")
    assert found.source[0] == recipe.Source("a", ("a.jsonl",))


def test_rule_limits_are_written_over_the_defaults() -> None:
    found = parse(SMALLEST + "[rules]\nsymbol_ratio = {zh = 0.2}\ngarble = false\ntoo_short = 5\n").rules.limits
    assert found["symbol_ratio"] == {"zh": 0.2, "en": 0.10}
    assert found["garble"] == {"zh": None, "en": None}
    assert found["too_short"] == {"zh": 5.0, "en": 5.0}
    assert found["mask_mail"] == {"zh": 1, "en": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALLEST + "[scores]\n", "unknown key 'scores' in a recipe; did you mean score?"),
        (
            SMALLEST + "[rules]\nsymbol_ration = 1\n",
            r"unknown key 'symbol_ration' in \[rules\]; did you mean symbol_ratio?",
        ),
        (SMALLEST + "[deduplicate]\ndistanse = 3\n", "did you mean distance?"),
        (SMALLEST + '[deduplicate]\ndistance = "3"\n', "deduplicate.distance = '3' must be int"),
        (SMALLEST + "[deduplicate]\ndistance = 64\n", "must be 0 to 32"),
        (
            SMALLEST + '[deduplicate]\nmethod = "simhsh"\n',
            "deduplicate.method = 'simhsh' must be one of minhash, simhash",
        ),
        (SMALLEST + "[decontaminate]\nfile = []\n", "did you mean files?"),
        (SMALLEST + "[decontaminate]\nhits = 0\n", "hits at least 1"),
        (SMALLEST + "[score]\nhigh = 0.7\n", "score.high = 0.7 must be"),
        (SMALLEST + '[score.models]\nfr = "x"\n', "unknown key 'fr'"),
        (SMALLEST + "[rules]\ngarble = true\n", "must be a number, or false"),
        (SMALLEST + SMALLEST[SMALLEST.index("[[") :], "two sources are named 'a'"),
        (SMALLEST.replace('"a"', '"a/b"'), "it names files"),
        (SMALLEST + 'kind = "prose"\n', "must be one of text, code, supervised"),
        (SMALLEST + 'skip = ["scores"]\n', "did you mean score?"),
        (SMALLEST.replace('paths = ["a.jsonl"]', ""), "lacks paths"),
        (SMALLEST.replace('["a.jsonl"]', '"a.jsonl"'), "must be a list of strings"),
        ('[run]\noutput = "x"\n', "no .source. section"),
        (SMALLEST.replace("[[", "holdout = 1\n[[", 1), "run.holdout = 1.0 must be a share"),
        (SMALLEST + "[run]\n", "is not TOML"),
    ],
)
def test_a_mistake_is_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        recipe.load(path)
    assert "\n" not in str(error.value)


def test_the_demo_recipe_loads() -> None:
    found = recipe.load(Path(__file__).parents[3] / "examples" / "demo" / "factory.toml")
    assert {source.kind for source in found.source} == {"text", "code", "supervised"}
