"""The human sheet: the page that is written, its own script under Node where there is one, and what marks say."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ziya import cli
from ziya_data.factory import pipeline, recipe, sheet

PRESS = """
"use strict";
const fs = require("fs");
const html = fs.readFileSync(process.argv[2], "utf8");
const part = pattern => html.match(pattern)[1];
const nodes = {}, listeners = {}, kept = {};
const node = id => nodes[id] ??= {
  textContent: "", attributes: {}, addEventListener() {},
  append(...more) { this.textContent += more.map(one => one.textContent ?? one).join(""); },
  setAttribute(name, value) { this.attributes[name] = value; },
};
node("data").textContent = part(/<script type="application\\/json" id="data">([^]*?)<\\/script>/);
let saved = null;
globalThis.document = {
  getElementById: node, createElement: () => ({ click() {} }), addEventListener: (name, f) => listeners[name] = f,
};
globalThis.localStorage = { getItem: key => kept[key] ?? null, setItem: (key, value) => kept[key] = value };
globalThis.getSelection = () => "那一段";
globalThis.scrollTo = () => {};
globalThis.Blob = class { constructor(parts) { saved = parts[0]; } };
URL.createObjectURL = () => "";
new Function(part(/<script>([^]*?)<\\/script>/))();
for (const key of JSON.parse(process.argv[3])) listeners.keydown({ key, preventDefault() {} });
console.log(JSON.stringify({ saved: saved && JSON.parse(saved), state: nodes.state.textContent, kept }));
"""
Run = Callable[[list[str]], dict[str, Any]]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, prose: Callable[..., list[str]]) -> Path:
    folder = tmp_path_factory.mktemp("sheet")
    texts = [*prose("zh", 60), *prose("en", 39), "</script><script>alert(1)</script> " + prose("en", 1, seed=7)[0]]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    table = {
        "run": {"output": str(folder / "out"), "holdout": 0.1},
        "source": [{"name": "a", "paths": [str(folder / "a.jsonl")], "skip": ["deduplicate.near", "rules"]}],
        "evaluate": {"level_1": 0.03},
    }
    pipeline.run(recipe.parse(table), say=lambda line: None)
    return folder / "out"


def test_the_page_holds_the_items_and_no_text_can_break_it(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["factory", "sheet", str(out), "--items", "1000"]) == 0
    assert f"{out}/sheet.html: 100 items" in capsys.readouterr().out
    page = (out / "sheet.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert "http://" not in page and "https://" not in page, "it works offline"
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))  # type: ignore[union-attr]
    assert len(data["items"]) == 100 and data["allowed"] == 3
    assert any("<script>alert(1)" in item["text"] for item in data["items"])
    first = [item["id"] for item in data["items"]]
    cli.main(["factory", "sheet", str(out), "--items", "7"])
    page = (out / "sheet.html").read_text(encoding="utf-8")
    assert [item.id for item in sheet.drawn(out, 7)] == first[:7]
    assert all(f'"{name}"' in page for name in first[:7])


@pytest.fixture
def press(out: Path, tmp_path: Path) -> Run:
    """press(keys) -> what the page's own script says and saves after these keys."""
    if not shutil.which("node"):
        pytest.skip("no node here to run the page's script")
    (tmp_path / "press.js").write_text(PRESS, encoding="utf-8")

    def run(keys: list[str]) -> dict[str, Any]:
        sheet.write(out, 100)
        command = ["node", str(tmp_path / "press.js"), str(out / "sheet.html"), json.dumps(keys)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def test_marks_by_keyboard_are_saved_and_read_back(
    press: Run, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pressed = press([" ", "2", "r", " ", "1", "1", "3", "ArrowRight", "ArrowLeft", "3", "Enter", *" " * 97, "s"])
    assert pressed["state"].startswith("100 marked, 1 unqualified, at most 3 allowed. All are marked")
    marks = pressed["saved"]["marks"]
    second = list(marks)[1]
    assert marks[second] == {"seen": True, "coherence": 0, "readability": 1, "toxic": 0, "span": "那一段"}
    assert sum(mark["toxic"] + mark["coherence"] for mark in marks.values()) == 0, "3 twice and 1 twice: taken back"
    assert json.loads(next(iter(pressed["kept"].values()))).keys() == marks.keys()
    (tmp_path / "v.json").write_text(json.dumps(pressed["saved"]))
    assert cli.main(["factory", "sheet", str(out), "--verdict", str(tmp_path / "v.json")]) == 0
    said = capsys.readouterr().out
    assert "100 of 100 items are marked, 1 unqualified" in said
    assert f"== {second}  readability: 那一段" in said
    assert "passed: at most 3 of 100" in said
    assert json.loads((out / "verdict.json").read_text())["passed"]


def test_a_verdict_that_is_short_or_bad_does_not_pass(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v.json"
    run = json.loads((out / "report.json").read_text())["key"]
    names = [item.id for item in sheet.drawn(out, 50)]

    def told(marks: dict[str, Any], code: int, run: str = run) -> str:
        path.write_text(json.dumps({"run": run, "items": 50, "marks": marks}))
        assert cli.main(["factory", "sheet", str(out), "--verdict", str(path)]) == code
        return "".join(capsys.readouterr())

    assert "not decided: 30 items are not marked yet" in told({name: {"toxic": 0} for name in names[:20]}, 1)
    assert "FAILED: 2 unqualified, at most 1 of 50" in told(
        {name: {"toxic": int(name in names[:2])} for name in names}, 1
    )
    assert "marks 'nobody', which this sheet does not hold" in told({"nobody": {}}, 2)
    assert "was marked on another run" in told({}, 2, "0")
    path.write_text("[]")
    assert cli.main(["factory", "sheet", str(out), "--verdict", str(path)]) == 2
    assert "is not what the sheet saves" in capsys.readouterr().err
    path.unlink()
    assert cli.main(["factory", "sheet", str(out), "--verdict", str(path)]) == 2
    assert "v.json; press S on the sheet's page" in capsys.readouterr().err
