"""The factory's benchmark on text made here: that its tables hold what they say, not how fast anything is."""

import importlib.util
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ziya_data.factory.rules_text import CARD, IDENTITY, MAIL, PHONE, luhn

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def load() -> Callable[[str], ModuleType]:
    """load(name) -> the module tools/NAME.py."""
    sys.path.insert(0, str(TOOLS))

    def module(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made  # dataclasses look their module up
        spec.loader.exec_module(made)
        return made

    return module


def zipf(language: str, count: int, seed: int) -> list[str]:
    """Pages of sentences from one vocabulary, common words first; no two alike."""
    draw = random.Random(f"{language}{seed}")
    if language == "zh":
        common, rare = list("的了是在不我有他这"), [chr(0x4E00 + 7 * i) for i in range(800)]
    else:
        common, rare = (
            ["the", "of", "and", "to", "in", "that", "is", "was", "he", "for"],
            [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}o" for i in range(600)],
        )
    glue, stop = ("", "。") if language == "zh" else (" ", ". ")

    def sentence() -> str:
        return glue.join(draw.choice(common) if draw.random() < 0.4 else draw.choice(rare) for _ in range(15)) + stop

    return ["".join(sentence() for _ in range(8)).strip() for _ in range(count)]


def test_the_page_has_every_table(
    load: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for language in ("zh", "en"):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in zipf(language, 120, 0))
        (tmp_path / f"{language}.jsonl").write_text(rows)
        (tmp_path / f"{language}.txt").write_text("\n".join(zipf(language, 60, 1)))
    french = "Le vieux fermier a rencontré son voisin sur le pont ce matin, et ils ont parlé du temps qu'il fait."
    (tmp_path / "fr.jsonl").write_text("".join(json.dumps({"text": f"{french} {i}"}) + "\n" for i in range(20)))
    named = [f"{language}={tmp_path}/{language}" for language in ("zh", "en")]
    arguments = ["--text", *(f"{name}.jsonl" for name in named), "--scorer", *(f"{name}.txt" for name in named)]
    arguments += [
        "--foreign",
        f"{tmp_path}/fr.jsonl",
        "--each",
        "8",
        "--rounds",
        "1",
        "--pages-at-scale",
        "5000",
        "--copies",
        "2",
    ]
    arguments += ["--markdown", f"{tmp_path}/page.md", "--plot", f"{tmp_path}/curve.png"]
    assert load("benchmark_factory").main(arguments) == 0
    page = (tmp_path / "page.md").read_text()
    assert page in capsys.readouterr().out
    for job in (
        "preprocess",
        "rules",
        "likeness alone, minhash",
        "all five parts, files to files",
        "score: perplexity",
        "score: classifier",
        "all five parts, two processes, the same",
    ):
        assert f"{job} | " in page, job
    assert "| other language | 16 of neither | | 1.0000 | |" in page
    assert "| exact copy | 8 | 8 | 1.0000 | 1.0000 |" in page
    assert "| private data | 8 | 8 | 1.0000 | 1.0000 |" in page
    assert "| copy, 5% edited | 8 | 8 | 1.0000 | 1.0000 |" in page
    assert "| deduplicate.content | " in page
    assert "| zh, 120 | shuffled pages | " in page
    assert "| en, 120 | adverts and menus | " in page
    assert "| en | classifier | 120 | 48 | " in page
    assert (tmp_path / "curve.png").stat().st_size > 5000
    assert load("benchmark_factory").main(["--text", f"zh={tmp_path}/none.jsonl"]) == 2
    assert "benchmark_factory: " in capsys.readouterr().err


def test_plants_are_what_their_labels_say(load: Callable[[str], ModuleType]) -> None:
    labelled = load("factory_labelled")
    draw = random.Random(0)
    text = "".join(chr(0x4E00 + i) for i in range(200))
    for share in (0.01, 0.1, 0.15):
        changed = labelled.edited(text, share, "zh", ["甲", "乙"], draw)
        assert sum(a != b for a, b in zip(text, changed, strict=True)) in (share * 200, share * 200 - 1)
    words = " ".join(f"w{i}" for i in range(100))
    changed = labelled.edited(words, 0.1, "en", ["x"], draw).split()
    assert sum(a != b for a, b in zip(words.split(), changed, strict=True)) == 10
    for language in ("zh", "en"):
        for _ in range(50):
            line, data = labelled.private_data(language, draw)
            assert data in line
            kinds = (MAIL.search(line), PHONE.search(line), IDENTITY.search(line), CARD.search(line))
            assert any(kinds), line
            assert len(data) != 16 or not data.isdecimal() or luhn(data)
            line, data = labelled.number(language, draw)
            assert data in line and not PHONE.search(line) and not MAIL.search(line)
    ids = [item.id for item in labelled.plants({"zh": zipf("zh", 80, 2)}, ["x"] * 20, str.upper, 5)]
    assert len(ids) == len(set(ids))
