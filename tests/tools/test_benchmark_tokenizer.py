"""tools/benchmark_tokenizer.py on a small vocabulary: a page with a row for each encoder, and none with other ids."""

import json
import sys
from pathlib import Path

from models import train_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from benchmark_tokenizer import main


def test_every_encoder_is_timed_and_compared(tmp_path, capsys):
    folder = train_tokenizer(tmp_path / "tokenizer")
    lines = [json.dumps({"text": f"the {n}th line of 2023, 第{n}行 <s>\n" * 20}) for n in range(40)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    arguments = ["--tokenizer", f"small={folder}", "--text", f"mixed={tmp_path}/texts.jsonl", "--rounds", "2"]
    assert main([*arguments, "--megabytes", "0.005", "--markdown", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert page.strip() == capsys.readouterr().out.strip()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| small")
    ]
    assert [row[2] for row in rows][:3] == ["ours, array", "ours, lists", "sentencepiece"]
    assert {row[2]: row[6].split()[0] for row in rows}["jsonl.zst to .bin"] == "0"
    assert [row[6].split()[0] for row in rows[:3]] == ["0"] * 3
    assert main([*arguments, "--megabytes", "5"]) == 2
    assert "has no 2 x 5 MB of text; lower --rounds or --megabytes" in capsys.readouterr().err


def test_a_tokenizer_without_the_fast_encoder_is_told(tmp_path, monkeypatch, capsys):
    folder = train_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "texts.txt").write_text("a line\n" * 10)
    monkeypatch.setattr("ziya_data.tokenizer.fast.find_spec", lambda name: None)
    arguments = ["--tokenizer", f"small={folder}", "--text", f"en={tmp_path}/texts.txt", "--rounds", "1"]
    assert main([*arguments, "--megabytes", "0.00001"]) == 2
    assert "nothing to compare: gigatoken is not installed" in capsys.readouterr().err
