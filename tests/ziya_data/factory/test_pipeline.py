"""The whole run on a small corpus with planted defects: counts, files, resuming, any number of workers."""

import json
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from megatron_ziya import cli
from ziya_data.document import Document
from ziya_data.factory import commands, estimate, output, parts, pipeline, recipe, storage

Make = Callable[..., recipe.Recipe]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with storage.lines_out(path) as file:
        for row in rows:
            storage.write_line(file, row)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, prose: Callable[..., list[str]]) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    clean = [
        {"text": text, "url": f"http://a.com/{i}"} for i, text in enumerate(prose("zh", 120, 6) + prose("en", 120, 6))
    ]
    draw = random.Random(0)
    letters = [chr(0x4E00 + 7 * i) for i in range(900)]
    junk = ["".join(draw.choices(letters, k=80)) + "的了是在不。" for _ in range(120)]
    planted: list[dict[str, Any]] = [
        {"id": "url", "text": "新" + clean[0]["text"], "url": "https://www.a.com/0/#top"},
        {"id": "content", "text": clean[1]["text"].replace("，", " ") + "!!"},
        {"id": "french", "text": "Le vieux fermier a rencontré son voisin sur le pont ce matin, et ils ont parlé."},
        {"id": "empty", "text": " \n\u200b"},
        {"id": "garble", "text": clean[2]["text"] + "锟斤拷烫烫烫"},
        {"id": "number", "text": 5},
    ]
    write(folder / "web-0.jsonl.zst", [*clean, *planted])
    write(folder / "web-1.jsonl.zst", [{"text": text} for text in junk])
    write(folder / "code.jsonl.zst", [{"text": f"int a{i};\n\treturn {i};", "language_name": "c"} for i in range(5)])
    write(folder / "qa.jsonl.zst", [{"text": f"问题:{i}+1=? 回答:{i + 1}", "language": "zh"} for i in range(5)])
    return folder


@pytest.fixture
def make(tmp_path: Path, corpus: Path, scorers: dict[str, Path]) -> Make:
    def settings(name: str = "out", **sections: Any) -> recipe.Recipe:
        return recipe.parse(
            {
                "run": {"output": str(tmp_path / name), "holdout": 0.1},
                "source": [
                    {"name": "web", "paths": [str(corpus / "web-*.jsonl.zst")], "skip": ["deduplicate.near"]},
                    {
                        "name": "code",
                        "paths": [str(corpus / "code.jsonl.zst")],
                        "kind": "code",
                        "skip": ["score", "rules"],
                    },
                    {
                        "name": "qa",
                        "paths": [str(corpus / "qa.jsonl.zst")],
                        "kind": "supervised",
                        "skip": ["score", "rules"],
                    },
                ],
                "score": {"models": {name: str(path) for name, path in scorers.items()}},
                **sections,
            }
        )

    return settings


def files(out: Path) -> dict[str, bytes]:
    """Every output but the times and the pictures."""
    found = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith("report.")]
    return {str(path.relative_to(out)): path.read_bytes() for path in found if path.name != "recipe.toml"}


def silent(line: str) -> None:
    pass


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


def test_the_same_bytes_whatever_the_workers(make: Make, tmp_path: Path) -> None:
    pipeline.run(make("one"), 1, silent)
    pipeline.run(make("two"), 2, silent)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("step", ["prepare", "filter_shard", "unique"])
@pytest.mark.parametrize("shard", [1, 2])
def test_a_killed_run_goes_on_and_ends_the_same(
    step: str, shard: int, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.run(make("whole"), say=silent)
    real, calls = getattr(parts, step), 0

    def dies(*arguments: Any) -> parts.Tally:
        nonlocal calls
        calls += 1
        if calls == shard + 1:
            raise KeyboardInterrupt
        result: parts.Tally = real(*arguments)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(parts, step, dies)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(make(), say=silent)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not (tmp_path / "out" / "report.json").exists()
    said: list[str] = []
    pipeline.run(make(), say=said.append)
    assert any("are done already" in line for line in said)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_shards_prepared_as_tasks_give_the_bytes_of_one_run(make: Make, tmp_path: Path) -> None:
    pipeline.run(make("whole"), say=silent)
    said: list[str] = []
    for _ in range(2):  # a source that is ranked is filtered when all of it is prepared
        for k in range(3):
            assert pipeline.run(make(), 1, said.append, (k, 3)) == {}
    done = [line for line in said if line.startswith(("prepare", "filter")) and "kept" in line]
    assert len(done) == 2 * 4, "each shard once a step"
    assert sum("wait for others of their source, such as web-0000" in line for line in said) == 1
    assert not (tmp_path / "out" / "report.json").exists()
    said.clear()
    pipeline.run(make(), say=said.append)
    assert sum("4 of 4 shards are done already" in line for line in said) == 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_tasks_may_begin_at_once(tmp_path: Path) -> None:
    def task(out: Path) -> Path:
        output.check(out, [])
        return output.begin(out)

    with ThreadPoolExecutor(8) as pool:
        for i in range(20):
            out = tmp_path / str(i)
            assert set(pool.map(task, [out] * 8)) == {out / "work"}
            assert output.ours(out)
            assert [path.name for path in out.iterdir()] == ["work"]


def test_what_a_killed_run_left_is_not_taken_for_another_recipe(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: Any) -> parts.Tally:
        raise KeyboardInterrupt

    other = {"rules": {"garble": False, "too_short": {"en": 420}}, "preprocess": {"languages": ["en"]}}
    with monkeypatch.context() as patch:
        patch.setattr(parts, "unique", dies)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(make(), say=silent)
    pipeline.run(make(**other), say=silent)
    pipeline.run(make("fresh", **other), say=silent)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_a_finished_run_is_left_alone_and_a_changed_one_is_redone(make: Make, tmp_path: Path) -> None:
    pipeline.run(make(), say=silent)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    said: list[str] = []
    pipeline.run(make(), say=said.append)
    assert len(said) == 1
    assert "nothing changed" in said[0]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    report = pipeline.run(make(rules={"garble": False}), say=silent)
    assert "rules.garble" not in report["reasons"]


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
    assert cli.main(["factory", "run", str(path), "--estimate-tb", "13"]) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    gate = 0.01 * report["seconds"].pop("evaluate")  # here all were looked at; of many more it would be 1 in 100
    alone = sum(report["seconds"][part] for part in ("deduplicate", "collect")) + gate
    hours = 13e12 / report["totals"][0]["bytes"] / 3600
    assert f"({hours * alone:,.1f} h of them in one process" in said
    assert f"    1 cores {hours * (sum(report['seconds'].values()) + gate):12,.1f} h" in said
    assert "Ziya2        866.7 h" in said  # 13 TB at 15 GB an hour
    with pytest.raises(ValueError, match="too small to estimate from"):
        estimate.estimate({**report, "totals": [{"bytes": 10}]}, 1)


def test_batches_are_bounded_by_documents_and_characters() -> None:
    short = [Document(str(i), "x", "s") for i in range(1030)]
    assert [len(batch) for batch in parts.batches(short)] == [512, 512, 6]
    long = [Document(str(i), "x" * 3_000_000, "s") for i in range(3)]
    assert [len(batch) for batch in parts.batches(long)] == [2, 1]
