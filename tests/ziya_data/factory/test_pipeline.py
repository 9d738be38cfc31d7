"""The whole run on a small corpus with planted defects: counts, files, report, the command line."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factory_run import Make, silent, write

from megatron_ziya import cli
from ziya_data.document import Document
from ziya_data.factory import commands, estimate, evaluate, finish, parts, pipeline, recipe, storage


def test_a_run_accounts_for_every_document(make: Make, tmp_path: Path) -> None:
    report = pipeline.run(make(), say=silent)
    out = tmp_path / "out"
    kept = [row for path in sorted((out / "kept").iterdir()) for row in storage.read_lines(path)]
    held = [row for path in sorted((out / "heldout").iterdir()) for row in storage.read_lines(path)]
    dropped = [row for path in sorted((out / "dropped").iterdir()) for row in storage.read_lines(path)]
    ids = [row["id"] for row in (*kept, *held, *dropped)]
    assert len(ids) == len(set(ids)) == 240 + 6 + 120 + 5 + 5 == report["totals"][0]["documents"]
    assert Counter(row["reason"] for row in dropped) == {name: n["documents"] for name, n in report["reasons"].items()}
    reasons = {row["id"]: row["reason"] for row in dropped}
    planted = {"french": "preprocess.language", "empty": "preprocess.empty", "garble": "rules.garble"}
    planted |= {"url": "deduplicate.url", "content": "deduplicate.content", "number": "read.broken"}
    for name, reason in planted.items():
        assert reasons[f"web:{name}"] in (reason, "score.low"), name
    assert reasons["web:number"] == "read.broken"
    junk = [reason for name, reason in reasons.items() if name.startswith("web:00001-")]
    assert Counter(junk)["score.low"] > 95, "40 % of 240 Chinese documents, and junk reads worst"
    assert {row["quality"] for row in kept if row["source"] == "web"} == {"high", "medium"}
    assert {tuple(row) for row in (*kept, *held)} == {("id", "text", "url", "source", "language", "kind", "quality")}
    assert {row["source"] for row in held} == {"web"}
    assert 8 <= len(held) <= 30
    code = next(row for row in kept if row["source"] == "code")
    assert code["text"] == "```c\nint a0;\n\treturn 0;\n```"
    shares = [row["share"] for row in report["totals"]]
    assert shares == sorted(shares, reverse=True)
    assert not (out / "work").exists()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://a.com", "").replace(
        "http://purl", ""
    ).replace("http://creativecommons", ""), "the page needs nothing from elsewhere"


def test_the_report_shows_the_first_drops_of_each_reason(make: Make, tmp_path: Path) -> None:
    report = pipeline.run(make(), 2, silent)
    dropped: dict[str, list[dict[str, Any]]] = {reason: [] for reason in report["reasons"]}
    for shard in ("web-00000", "web-00001", "code-00000", "qa-00000"):
        for row in storage.read_lines(tmp_path / "out" / "dropped" / f"{shard}.jsonl.zst"):
            dropped[row["reason"]].append({**row, "text": row["text"][:300]})
    assert len(dropped["score.low"]) > 3
    assert report["drop_samples"] == [row for rows in list(dropped.values())[:12] for row in rows[:3]]


def test_the_gate_looks_at_those_drawn_first(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Document]] = []

    def remember(sample: list[Document], *others: Any) -> dict[str, Any]:
        seen.append(sample)
        return evaluate.evaluate(sample, *others)

    monkeypatch.setattr(finish, "evaluate", remember)
    pipeline.run(make("all"), say=silent)
    pipeline.run(make("few", evaluate={"at_least": 10}), say=silent)
    everything, few = ([document.id for document in sample] for sample in seen)
    assert len(everything) > 100 and {name.partition(":")[0] for name in everything} == {"web"}, "prose alone"
    assert everything == sorted(everything, key=lambda name: evaluate.chosen(name, 0, "evaluate"))
    assert few == everything[:10]


def test_new_data_is_checked_against_an_older_run(make: Make, tmp_path: Path) -> None:
    first = pipeline.run(make("old"), say=silent)
    settings = make("new", deduplicate={"against": [str(tmp_path / "old" / "seen")]}, rules={"too_short": 1})
    second = pipeline.run(settings, say=silent)
    assert second["totals"][-1]["documents"] == 0
    assert not second["evaluate"]["passed"]
    assert first["totals"][-1]["documents"] == second["totals"][-2]["documents"] - sum(
        count["documents"] for reason, count in first["reasons"].items() if reason.startswith("deduplicate")
    )


def test_inspect_and_explain(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.run(make(score={}), say=silent)
    out = str(tmp_path / "out")
    assert commands.inspect([out, "--dropped", "rules.garble"]) == 0
    assert "web:garble" in capsys.readouterr().out
    assert commands.inspect([out, "--dropped", "deduplicate", "--sample", "1"]) == 0
    assert capsys.readouterr().out.count("== web:") == 1
    with pytest.raises(ValueError, match=r"no document was dropped for 'rules.x'; reasons here: .*rules.garble \(1\)"):
        commands.inspect([out, "--dropped", "rules.x"])
    commands.explain([out, "web:garble"])
    said = capsys.readouterr().out
    assert "language zh" in said
    assert "DROP rules.garble" in said
    assert "dropped      web-00000.jsonl.zst: rules.garble" in said
    commands.explain([out, "web:00000-00000001"])
    assert "web-00000.jsonl.zst" in capsys.readouterr().out or "heldout" in said
    with pytest.raises(ValueError, match="no document 'web:nobody'"):
        commands.explain([out, "web:nobody"])
    with pytest.raises(FileNotFoundError, match="no finished factory run"):
        commands.inspect([str(tmp_path)])


def test_commands_run_and_train(
    tmp_path: Path, corpus: Path, prose: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("\n".join(prose("zh", 50)), encoding="utf-8")
    assert commands.train_scorer(["--language", "zh", "--text", str(text), "--out", str(tmp_path / "zh.bin")]) == 0
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"[run]\noutput = '{tmp_path}/out'\n[[source]]\nname = 'web'\npaths = ['{corpus}/web-0.jsonl.zst']\n"
        f"[score.models]\nzh = '{tmp_path}/zh.bin'\n"
        "[evaluate]\nrequired = true\nlevel_1 = 1\nlevel_2 = 1\nlevel_3 = 1\n",
        encoding="utf-8",
    )
    assert commands.run([str(path)]) == 0
    assert "deduplicate" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["evaluate"]["passed"]
    assert recipe.load(tmp_path / "out" / "recipe.toml") == recipe.load(path), "the resolved recipe is a recipe"


def test_shard_and_estimate_on_the_command_line(
    tmp_path: Path, corpus: Path, prose: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": text} for text in prose("en", 40, 400)]
    write(tmp_path / "long.jsonl.zst", rows)
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"[run]\noutput = '{tmp_path}/out'\n[[source]]\nname = 'a'\npaths = ['{tmp_path}/long.jsonl.zst']\n"
        "skip = ['rules', 'deduplicate.near']\n"
    )
    for wrong in ("2/2", "1", "a/2", "-1/2", "0/0"):
        assert cli.main(["factory", "run", str(path), f"--shard={wrong}"]) == 2
        assert f"--shard {wrong} must be K/N with K from 0 to N - 1" in capsys.readouterr().err
    assert cli.main(["factory", "run", str(path), "--shard", "0/2"]) == 0
    capsys.readouterr()
    assert cli.main(["factory", "run", str(path), "--estimate-tb", "13"]) == 0
    before, said = capsys.readouterr().out.split("after the run, from all of it:\n")
    assert re.search(r"from the beginning of each source:\n13 TB of text like this run's 1\.6 MB", before)
    assert re.search(r"\n    1 cores .* h .* in one process: resolve, collect, evaluate\)\n", before)
    assert before.index("13 TB") < before.index("prepare")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    gate = 0.01 * report["seconds"].pop("evaluate")  # here all were looked at; of many more it would be 1 in 100
    alone = sum(report["seconds"][part] for part in ("resolve", "collect")) + gate
    hours = 13e12 / report["totals"][0]["bytes"] / 3600
    assert f"({hours * alone:,.1f} h of them in one process" in said
    assert f"    1 cores {hours * (sum(report['seconds'].values()) + gate):12,.1f} h" in said
    assert "Ziya2        866.7 h" in said  # 13 TB at 15 GB an hour
    assert estimate.estimate({**report, "totals": [{"bytes": 10}]}, 1).startswith("10 bytes of text are too few")


def test_batches_are_bounded_by_documents_and_characters() -> None:
    short = [Document(str(i), "x", "s") for i in range(1030)]
    assert [len(batch) for batch in parts.batches(short)] == [512, 512, 6]
    long = [Document(str(i), "x" * 3_000_000, "s") for i in range(3)]
    assert [len(batch) for batch in parts.batches(long)] == [2, 1]
