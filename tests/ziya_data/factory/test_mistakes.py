"""What a newcomer did on the first day, and what must come of it."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factory_run import silent, write

from megatron_ziya import cli
from ziya_data.factory import commands, pipeline, recipe


def parsed(paths: list[str], output: Path | str, **sections: Any) -> recipe.Recipe:
    source = {"name": "s", "paths": paths, "skip": ["rules", "deduplicate.near"]}
    return recipe.parse({"run": {"output": str(output)}, "source": [source], **sections})


@pytest.fixture
def mixed(tmp_path: Path, prose: Callable[..., list[str]]) -> Path:
    """A folder of each kind, one file of them below."""
    texts = prose("en", 4, 6)
    write(tmp_path / "raw/a.jsonl", [{"text": texts[0]}])
    (tmp_path / "raw/below").mkdir()
    (tmp_path / "raw/below/b.txt").write_text(texts[1])
    (tmp_path / "raw/page.html").write_text(f"<html><body><article><p>{texts[2]}</p></article></body></html>")
    return tmp_path / "raw"


def test_a_folder_is_read_with_all_that_it_holds(mixed: Path, tmp_path: Path) -> None:
    report = pipeline.run(parsed([str(mixed)], tmp_path / "out"), say=silent)
    assert report["totals"][0]["documents"] == report["totals"][-1]["documents"] == 3
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.md").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"no file in .*empty can be read; kinds are \.jsonl, "):
        pipeline.run(parsed([str(tmp_path / "empty")], tmp_path / "out2"), say=silent)


def test_an_output_within_a_source_or_without_a_name_is_refused(mixed: Path, tmp_path: Path) -> None:
    for output in (mixed / "out", mixed):
        with pytest.raises(ValueError, match=r"lies in the source .*, which is read whole"):
            pipeline.run(parsed([str(mixed)], output), say=silent)
    with pytest.raises(ValueError, match=r"run\.output is empty"):
        parsed([str(mixed)], " ")
    assert sorted(path.name for path in mixed.iterdir()) == ["a.jsonl", "below", "page.html"]


def test_against_oneself_is_refused_and_others_are_named(mixed: Path, tmp_path: Path) -> None:
    pipeline.run(parsed([str(mixed)], tmp_path / "out"), say=silent)
    against = {"deduplicate": {"against": [str(tmp_path / "out/seen")]}}
    with pytest.raises(ValueError, match="which this run writes; name seen/ of earlier runs alone"):
        pipeline.run(parsed([str(mixed)], tmp_path / "out", **against), say=silent)
    said: list[str] = []
    pipeline.run(parsed([str(mixed)], tmp_path / "new", **against), say=said.append)
    assert f"against  {tmp_path}/out/seen: 0 pages" in said  # deduplicate.near is skipped


def test_a_second_run_is_kept_out_and_a_finished_one_is_not_replaced_in_silence(mixed: Path, tmp_path: Path) -> None:
    said: list[str] = []
    pipeline.run(parsed([str(mixed)], tmp_path / "out"), say=said.append)
    assert not any("it is replaced" in line for line in said)
    other = parsed([str(mixed)], tmp_path / "out", evaluate={"share": 0.5})
    (tmp_path / "out/work").mkdir()
    with (tmp_path / "out/work/lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another run is at work in .*out; wait for it"):
            pipeline.run(other, say=silent)
    pipeline.run(other, say=said.append)
    assert f"{tmp_path}/out holds a finished run of another recipe or input; it is replaced" in said


def test_more_pages_than_the_capacity_are_no_repeats(tmp_path: Path) -> None:
    rows = [{"text": f"{n} " + "word " * n, "url": f"https://example.org/{n}"} for n in range(1, 300)]
    write(tmp_path / "a.jsonl.zst", rows)
    settings = parsed([str(tmp_path / "a.jsonl.zst")], tmp_path / "out", deduplicate={"capacity": 10})
    assert pipeline.run(settings, say=silent)["reasons"].get("deduplicate.url") is None


def test_the_last_shard_says_what_comes_next(mixed: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for k in range(2):
        pipeline.run(parsed([str(mixed)], tmp_path / "out"), 1, said.append, (k, 2))
    assert said.count("all 3 shards are filtered: run it once more without --shard") == 1 == said[-1].count("all 3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "a.jsonl"], r"a\.jsonl is no plain text; give a \.txt"),
        (["--text", "missing.txt"], r"no text at missing\.txt"),
        (["--text", "a.txt", "--prune", "-1"], "--prune -1 must be 0 or more"),
    ],
)
def test_a_scorer_wants_plain_text(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "a.txt").write_text("a b c")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        commands.train_scorer(["--language", "en", "--out", "out.bin", *words])


def test_an_estimate_wants_more_than_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text("[run]\noutput = 'out'\n[[source]]\nname = 'a'\npaths = ['a']\n")
    for value in ("0", "-3"):
        assert cli.main(["factory", "run", str(tmp_path / "r.toml"), f"--estimate-tb={value}"]) == 2
        assert f"--estimate-tb {value} must be above 0" in capsys.readouterr().err


def test_an_empty_document_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path / "a.jsonl",
        [{"id": "empty", "text": ""}, {"id": "b", "text": "It is a whole sentence, and it stays. " * 3}],
    )
    pipeline.run(parsed([str(tmp_path / "a.jsonl")], tmp_path / "out"), say=silent)
    assert commands.explain([str(tmp_path / "out"), "s:empty"]) == 0
    assert "s:empty: kind text, 0 characters" in capsys.readouterr().out


def test_a_reader_that_has_enough_ends_it_quietly(mixed: Path, tmp_path: Path) -> None:
    pipeline.run(parsed([str(mixed)], tmp_path / "out"), say=silent)
    read, written = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "megatron_ziya.cli", "factory", "inspect", str(tmp_path / "out")]
    done = subprocess.run(words, stdout=written, stderr=subprocess.PIPE, check=False)
    os.close(written)
    assert (done.returncode, done.stderr) == (141, b"")
