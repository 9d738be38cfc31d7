"""The commands, called as `ziya tokenizer NAME ...` calls them."""

from pathlib import Path

import pytest

from ziya_data.tokenizer import Tokenizer, commands


def test_widen_and_compare(base: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide, out = str(tmp_path / "wide"), str(tmp_path / "out")
    assert commands.expand(["--base", str(base), "--corpus", str(corpus), "--out", wide]) == 0
    printed = capsys.readouterr().out
    assert "1,500 -> " in printed
    assert "7,400 were asked for; there are no more" in printed
    assert commands.compare([str(base), wide, "--text", f"zh={corpus}", f"zh={corpus}", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "fewer tokens" in printed
    assert (tmp_path / "out/comparison.png").is_file()


def test_a_list_without_a_corpus_is_taken_whole(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("谢鄱谢中")
    arguments = ["--base", str(base), "--characters", str(tmp_path / "list.txt"), "--out", str(tmp_path / "wide")]
    assert commands.expand(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 characters added; 1 were pieces already and keep their ids; 1 duplicates" in printed
    assert "asked for" not in printed and "is replaced" not in printed
    assert commands.expand(arguments) == 0
    assert "wide holds an earlier expansion; it is replaced once this one is whole" in capsys.readouterr().out
    assert Tokenizer.load(tmp_path / "wide").vocab_size == 1502


def test_bad_arguments(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither --corpus nor --characters"):
        commands.expand(["--base", str(base), "--out", str(tmp_path / "wide")])
    with pytest.raises(ValueError, match=r"--text file\.txt is not LANGUAGE=FILE"):
        commands.compare([str(base), str(base), "--text", "file.txt"])


@pytest.mark.parametrize("name", ["from_gguf", "expand", "compare"])
def test_help_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        getattr(commands, name)(["--help"])
    assert f"example:\n  ziya tokenizer {name.replace('_', '-')} " in capsys.readouterr().out
