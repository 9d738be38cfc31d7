"""The `ziya` command: the road in order, and one line with exit code 2 for a mistake."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ziya import cli

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_the_road_in_order(capsys):
    assert cli.main(["--help"]) == 0
    listed = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  ziya")]
    assert listed == [f"ziya {command.name}" for command in cli.COMMANDS]


def test_help_needs_no_torch():
    code = "import sys; from megatron_ziya import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.name.split(), "--help"])
    assert stop.value.code == 0
    assert f"ziya {command.name} " in capsys.readouterr().out.partition("example")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], ""),
        (["tokeniser", "expand"], "no command 'tokeniser expand'"),
        (["train", "nowhere.toml"], "nowhere.toml: no such recipe"),
        (["train", "examples/demo/base.toml", "--run.step", "3"], "unknown key run.step; did you mean steps?"),
        (["train", "examples/demo/base.toml", "--parallel.tensor", "3"], "parallel.tensor=3 does not divide 4"),
        (
            [
                "train",
                "examples/demo/base.toml",
                "--parallel.tensor",
                "2",
                "--parallel.pipeline",
                "2",
                "--processes",
                "3",
            ],
            "3 processes do not fit tensor x pipeline = 4; start a multiple of 4",
        ),
        (["train", "examples/demo/base.toml", "--data.sources", '[{name="x", paths=["no/where"]}]'], "no/where"),
        (
            ["train", "examples/demo/stage1.toml", "--model.load", "tests", "--run.directory", "no/where"],
            "tests is neither a checkpoint nor a run",
        ),
        (["index", "show", "no/where"], "no/where"),
        (["report", "tests"], "tests is not a run directory: it has no metrics.jsonl"),
        (["convert", "from-hf", "tests", "/nonexistent/out"], "tests"),
        (["factory", "run", "nowhere.toml"], "nowhere.toml"),
        (
            ["tokenizer", "expand", "--base", "README.md", "--count", "3", "--corpus", "README.md", "--out", "x"],
            "README.md",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err.splitlines()) <= 1


def test_a_port_in_use():
    from megatron_ziya import launch

    with socket.socket() as busy:
        busy.bind(("localhost", 0))
        busy.listen()
        with pytest.raises(ValueError, match="is in use; give another with --port"):
            launch.check_port(busy.getsockname()[1])
    launch.check_port(launch.free_port())
