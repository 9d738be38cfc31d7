import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ziya_data.indexed import commands
from ziya_data.indexed.reader import IndexedDataset


def test_build_show_verify(
    tmp_path: Path, tokenizer_folder: Path, jsonl: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = str(tmp_path / "out" / "a")
    assert commands.build(["--tokenizer", str(tokenizer_folder), "--input", str(jsonl), "--output", prefix]) == 0
    assert f"{prefix}.bin, .idx, .meta.json: 200 documents" in capsys.readouterr().out
    assert commands.show([f"{prefix}.idx"]) == 0
    shown = capsys.readouterr().out
    assert "documents            200\n" in shown
    assert "vocabulary size      400\n" in shown
    assert commands.show([prefix, "--document", "7", "--tokenizer", str(tokenizer_folder)]) == 0
    # SentencePiece's NFKC writes some of the punctuation, the tab and the line break another way.
    assert capsys.readouterr().out[:4] == texts[7][:4]
    assert commands.verify([prefix]) == 0
    assert "structure, checksums and ids" in capsys.readouterr().out


def test_build_tells_its_result_once_and_what_it_replaced(
    tmp_path: Path, tokenizer_folder: Path, jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = str(tmp_path / "a")
    words = ["--tokenizer", str(tokenizer_folder), "--input", str(jsonl), "--output", prefix]
    for begin in (prefix, f"replaced {prefix}"):
        assert commands.build(words) == 0
        told = capsys.readouterr()
        assert (told.out + told.err).count("200 documents") == 1
        assert told.out.startswith(f"{begin}.bin, .idx, .meta.json: 200 documents")
        assert len(told.out.splitlines()) == 1


@pytest.mark.parametrize(("name", "exists"), [("data", True), ("data/", True), ("new/", False)])
def test_build_refuses_a_folder_as_output(
    name: str, exists: bool, tmp_path: Path, tokenizer_folder: Path, jsonl: Path
) -> None:
    if exists:
        (tmp_path / "data").mkdir()
    before = sorted(tmp_path.rglob("*"))
    words = ["--tokenizer", str(tokenizer_folder), "--input", str(jsonl), "--output", f"{tmp_path}/{name}"]
    plain = name.rstrip("/")
    with pytest.raises(ValueError, match=f"{name} is a folder; give a prefix such as {tmp_path}/{plain}/{plain}$"):
        commands.build(words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("name", "exists"), [("data", True), ("data/", True), ("new/", False)])
def test_merge_refuses_a_folder_as_output(name: str, exists: bool, tmp_path: Path, write: Callable[..., str]) -> None:
    if exists:
        (tmp_path / "data").mkdir()
    prefix = write([[1]], name="a")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{name} is a folder; give a prefix such as {tmp_path}/") as caught:
        commands.merge([prefix, "--output", f"{tmp_path}/{name}"])
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_merge_into_a_file_of_a_dataset_is_its_prefix(
    tmp_path: Path, write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write([[1]], name="a"), write([[2], [3]], name="b")
    for given in (f"{one}.bin", f"{tmp_path}/./a", f"{tmp_path}/x/../a.idx"):
        with pytest.raises(ValueError, match="is both read and written"):
            commands.merge([one, two, "--output", given])
    assert commands.merge([one, "--output", f"{two}.idx"]) == 0
    assert capsys.readouterr().out.startswith(f"replaced {two}.bin, .idx, .meta.json: 1 documents")


def test_text_of_another_tokenizer_is_refused(tokenizer_folder: Path, write: Callable[..., str]) -> None:
    """It would be other words, without a word of warning."""
    prefix = write([[1, 300]], tokenizer="0123456789abcdef")
    for command, words in ((commands.show, ["--document", "0"]), (commands.stats, [])):
        with pytest.raises(ValueError, match=r"built with another tokenizer \(0123456789ab\)"):
            command([prefix, "--tokenizer", str(tokenizer_folder), *words])


def test_numbers_out_of_range_are_refused(write: Callable[..., str]) -> None:
    prefix = write([[1, 2]])
    for command, words in ((commands.verify, ["--vocabulary", "-5"]), (commands.stats, ["--top", "-3"])):
        with pytest.raises(ValueError, match=f"{words[1]} must be"):
            command([prefix, *words])


def test_help_of_verify_tells_its_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.verify(["--help"])
    assert "1: something is wrong" in capsys.readouterr().out


def test_show_gives_the_ids_of_a_document(write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    prefix = write([[1], [2, 3]])
    assert commands.show([prefix, "--document", "1"]) == 0
    assert capsys.readouterr().out == "2 3\n"
    with pytest.raises(ValueError, match=r"document=2 is not in .*; it has 0 to 1"):
        commands.show([prefix, "--document", "2"])


def test_show_of_megatrons_data(write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    prefix = write([])
    Path(f"{prefix}.meta.json").unlink()
    assert commands.show([prefix]) == 0
    assert "not written by megatron-ziya" in capsys.readouterr().out


def test_verify_tells_and_exits_with_1(write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write([[1, 2]]), write([[1, 2]], name="bad")
    Path(f"{bad}.bin").write_bytes(b"\x01\x00\x03\x00")
    assert commands.verify([bad, good]) == 1
    output = capsys.readouterr()
    assert "bad.bin: bytes from 0" in output.err
    assert "data: structure, checksums and ids of 2 tokens in 1 documents are right" in output.out


def test_merge_stats_prepare_trace(
    tmp_path: Path, tokenizer_folder: Path, jsonl: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    one, both = str(tmp_path / "one"), str(tmp_path / "both")
    marked = ["--prompt-until", "dog.", "--validation", "0.1"]
    assert commands.build(["--tokenizer", str(tokenizer_folder), "--input", str(jsonl), "--output", one, *marked]) == 0
    assert commands.merge([one, f"{one}.validation", "--output", both]) == 0
    assert "200 documents" in capsys.readouterr().out
    assert commands.stats([both, "--tokenizer", str(tokenizer_folder), "--top", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("200 documents (0 empty), ")
    assert len(shown.split("the most frequent:\n")[1].splitlines()) == 3
    assert commands.stats([both, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 200
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "[run]\nsteps = 30\n[data]\nsequence_length = 32\nglobal_batch_size = 2\n"
        f'[[data.sources]]\nname = "a"\npaths = "{both}"\n'
        f'[[data.sources]]\nname = "b"\npaths = "{one}"\norder = "megatron"\nprompt_loss = false\n'
    )
    with pytest.raises(ValueError, match="no folder for the indexes"):
        commands.prepare([str(recipe)])
    assert commands.prepare([str(recipe), "--cache", str(tmp_path / "cache")]) == 0
    assert "a: 30 samples, epochs 0 to 0\nb: 30 samples, epochs 0 to 0\n" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").glob("*.index"))) == 2
    assert commands.trace([str(recipe), "--step", "3", "--tokenizer", str(tokenizer_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split("  ")[0] for line in lines} == {"row 0", "row 1"}
    assert commands.trace([str(recipe), "--step", "3", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(len(row["documents"]) for row in rows) == len(lines)


COMMANDS = [getattr(commands, n) for n in ("build", "show", "verify", "merge", "stats", "prepare", "trace")]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(["--help"])
    assert f"example:\n  ziya index {command.__name__} " in capsys.readouterr().out


def test_a_build_tells_its_split_and_never_leaves_a_stale_one(
    tmp_path: Path, tokenizer_folder: Path, jsonl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "one")
    build = ["--tokenizer", str(tokenizer_folder), "--input", str(jsonl), "--output", out]
    assert commands.build([*build, "--validation", "0.1"]) == 0
    kept, split = len(IndexedDataset(out)), len(IndexedDataset(f"{out}.validation"))
    assert kept + split == 200
    assert f"of these {split} documents are in {out}.validation, not in {out}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"one.validation holds documents that .*one would hold as well; give --valid"):
        commands.build(build)
    assert len(IndexedDataset(out)) == kept
    assert commands.build([*build, "--validation", "0.1"]) == 0
