from collections.abc import Callable
from pathlib import Path

import pytest

from ziya_data.indexed import commands


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


@pytest.mark.parametrize("command", [commands.build, commands.show, commands.verify])
def test_help_shows_an_example(command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(["--help"])
    assert f"example:\n  ziya index {command.__name__} " in capsys.readouterr().out
