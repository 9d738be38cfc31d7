"""Nothing that another program or person wrote is lost, and a run that keeps nothing does not look like a success."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ziya import cli
from ziya_data.factory import commands, output, parts, pipeline, recipe, report, steps

Prose = Callable[..., list[str]]


@pytest.fixture
def start(tmp_path: Path, prose: Prose) -> Callable[..., Path]:
    """start(rows) -> a recipe whose only source holds these rows."""

    def make(rows: list[Any] | None = None, out: str = "out", more: str = "", skip: str = "deduplicate.near") -> Path:
        good = [{"text": text} for text in prose("en", 12)]
        lines = [row if isinstance(row, str) else json.dumps(row) for row in (good if rows is None else rows)]
        data, text = tmp_path / "a.jsonl", "\n".join(lines) + "\n"
        if not data.exists() or data.read_text(encoding="utf-8") != text:  # a run goes by the file's time of change
            data.write_text(text, encoding="utf-8")
        path = tmp_path / "recipe.toml"
        path.write_text(
            f"[run]\noutput = '{tmp_path / out}'\n[[source]]\nname = 'web'\npaths = ['{tmp_path}/a.jsonl']\n"
            f"skip = ['{skip}']  # the prose is made from one template\n{more}",
            encoding="utf-8",
        )
        return path

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        "kept/a.txt",
        "dropped/a.txt",
        "heldout/en.jsonl",
        "seen/a",
        "index/stage1.bin",
        "work/thesis.tex",
        "kept.tmp/a.txt",
        "report.html",
        "report.json",
        "recipe.toml",
    ],
)
def test_what_somebody_else_wrote_is_refused_and_stays(
    name: str, start: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text('{"key": "mine", "recipe": "soup"}', encoding="utf-8")
    before = contents(tmp_path / "out")
    assert cli.main(["factory", "run", str(start())]) == 2
    said = capsys.readouterr().err
    first = name.partition("/")[0] + "/" * ("/" in name)
    assert f"run.output = {tmp_path / 'out'} holds {first}, which no factory run wrote" in said
    assert "give a folder of its own" in said
    assert len(said.splitlines()) == 1
    assert contents(tmp_path / "out") == before


def test_other_files_beside_the_output_are_nobodys_business(start: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out" / "notes").mkdir(parents=True)
    (tmp_path / "out" / "notes" / "a.txt").write_text("x")
    assert commands.run([str(start())]) == 0
    assert (tmp_path / "out" / "notes" / "a.txt").read_text() == "x"


def test_datasets_put_beside_a_finished_run_outlive_the_next_one(start: Callable[..., Path], tmp_path: Path) -> None:
    assert commands.run([str(start())]) == 0
    dataset = tmp_path / "out" / "index" / "stage1.bin"
    dataset.parent.mkdir()
    dataset.write_bytes(b"tokens")
    assert commands.run([str(start(more="[rules]\ngarble = false\n"))]) == 0
    assert dataset.read_bytes() == b"tokens"


@pytest.mark.parametrize("left", ["report.json", "recipe.toml"])
def test_one_file_of_an_earlier_run_is_enough_to_go_on(left: str, start: Callable[..., Path], tmp_path: Path) -> None:
    assert commands.run([str(start())]) == 0
    other = {"report.json": "recipe.toml", "recipe.toml": "report.json"}[left]
    (tmp_path / "out" / other).unlink()
    assert commands.run([str(start(more="[rules]\ngarble = false\n"))]) == 0


@pytest.mark.parametrize("step", ["prepare", "filter_shard", "write_shard"])
def test_an_interrupted_run_may_go_on(
    step: str, start: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: Any) -> parts.Tally:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts, step, dies)
        with pytest.raises(KeyboardInterrupt):
            commands.run([str(start())])
    assert output.ours(tmp_path / "out")
    assert commands.run([str(start())]) == 0


def test_a_run_does_not_delete_its_own_input(start: Callable[..., Path], tmp_path: Path) -> None:
    assert commands.run([str(start())]) == 0
    text = start().read_text(encoding="utf-8").replace("a.jsonl", "out/kept/*.zst")
    (tmp_path / "again.toml").write_text(text, encoding="utf-8")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"web-00000.jsonl.zst lies in what this run replaces; give another folder"):
        commands.run([str(tmp_path / "again.toml")])
    assert contents(tmp_path / "out") == before


def test_a_file_as_output_is_refused(start: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl is a file; give a folder"):
        commands.run([str(start(out="a.jsonl"))])


def test_a_run_killed_over_finished_outputs_does_not_pass_for_the_finished_one(
    start: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: Any) -> None:
        raise KeyboardInterrupt

    assert commands.run([str(start())]) == 0
    before = contents(tmp_path / "out" / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.finish, "evaluate", dies)  # kept/ has been replaced by then
        with pytest.raises(KeyboardInterrupt):
            commands.run([str(start(more="[preprocess]\nlanguages = ['zh']\n"))])
    assert contents(tmp_path / "out" / "kept") != before
    assert commands.run([str(start())]) == 0
    assert contents(tmp_path / "out" / "kept") == before


def test_a_step_that_died_on_another_recipe_leaves_no_marker(
    start: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*arguments: Any) -> None:
        raise KeyboardInterrupt

    def interrupted(more: str, module: Any, name: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, dies)
            with pytest.raises(KeyboardInterrupt):
                commands.run([str(start(more=more))])

    interrupted("", pipeline, "filter_shard")  # prepared with the first recipe
    interrupted("[preprocess]\nlanguages = ['zh']\n", steps, "mark")  # prepared with the second one, but not marked
    assert commands.run([str(start())]) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["totals"][-1]["documents"] == 12


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"content": "a"}, {"content": "b"}, {"text": 5}],
            "nothing was kept of 3 documents; 3 were dropped for read.broken, such as web:00000-00000000: "
            'no key "text" in {file} line 1; keys there: content',
        ),
        (["not json"], "such as web:00000-00000000: {file} line 1 is not JSON: "),
        ([[1]], "{file} line 1 is not a JSON object"),
        ([{"text": 5}], '"text" in {file} line 1 is no string but 5'),
        ([{"text": "", "id": 1}], "1 were dropped for preprocess.empty, such as web:1: an empty text"),
        (
            [{"text": "Le vieux fermier a rencontré son voisin ce matin, et ils ont parlé."}],
            "1 were dropped for preprocess.language, such as web:00000-00000000: other, confidence",
        ),
        ([""], "nothing was kept: the input holds no record"),
    ],
)
def test_nothing_kept_is_a_mistake_told_by_its_commonest_reason(
    rows: list[Any],
    message: str,
    start: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = start(rows)
    for _ in range(2):  # the second time the run is finished already
        assert cli.main(["factory", "run", str(path)]) == 2
        said = capsys.readouterr().err
        assert message.format(file=tmp_path / "a.jsonl") in said
        assert len(said.splitlines()) == 1
    assert (tmp_path / "out" / "report.html").is_file(), "the report shows what was dropped"


def test_a_broken_record_tells_why_in_a_source_that_skips_preprocess_too(start: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r'no key "text" in .*a\.jsonl line 1; keys there: content'):
        commands.run([str(start([{"content": "a"}], skip="preprocess"))])


def test_a_key_named_broken_is_the_users_own(start: Callable[..., Path], tmp_path: Path, prose: Prose) -> None:
    assert commands.run([str(start([{"text": prose("en", 1)[0], "broken": True}]))]) == 0


def test_without_a_scorer_the_funnel_says_so(
    start: Callable[..., Path], tmp_path: Path, scorers: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    said = "Nothing was scored"
    assert commands.run([str(start())]) == 0
    assert "score        not scored\n" in capsys.readouterr().out
    assert said in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert commands.run([str(start(more=f"[score.models]\nen = '{scorers['en']}'\n"))]) == 0
    shown = capsys.readouterr().out
    assert "not scored" not in shown
    assert "score               12 documents" in shown
    assert said not in report.page(json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")))


def test_inspect_of_a_run_that_dropped_nothing(
    start: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run([str(start())]) == 0
    capsys.readouterr()
    assert commands.inspect([str(tmp_path / "out")]) == 0
    assert commands.inspect([str(tmp_path / "out"), "--dropped", "rules"]) == 0
    assert capsys.readouterr().out == "no document was dropped\n" * 2
    with pytest.raises(SystemExit):
        commands.inspect(["--help"])
    assert "ziya factory inspect runs/demo/factory --dropped deduplicate.content" in capsys.readouterr().out


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^.*nope\.toml: no such recipe; see examples/demo/factory\.toml$"):
        recipe.load(tmp_path / "nope.toml")
    with pytest.raises(FileNotFoundError, match="is a folder, not a recipe"):
        recipe.load(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\x80\x81\x00\xff")
    with pytest.raises(ValueError, match=r"weights\.bin is not TOML: byte 0 is not UTF-8"):
        recipe.load(tmp_path / "weights.bin")
