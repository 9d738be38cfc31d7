"""examples/factory_check on small text made here."""

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[3] / "examples" / "factory_check" / "check.py"


def test_the_three_experiments_run(
    tmp_path: Path, prose: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(0)
    for language, names in {"zh": ("reviews_zh", "news_zh"), "en": ("wiki_en", "books_en")}.items():
        (tmp_path / f"scorer_{language}.txt").write_text("\n".join(prose(language, 200, 4, seed=9)))
        for seed, name in enumerate(names):
            texts = prose(language, 130, draw.randrange(2, 5), seed=seed)
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = importlib.util.spec_from_file_location("factory_check", CHECK)
    assert spec is not None and spec.loader is not None
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    assert check.main(["--raw", str(tmp_path), "--suffix", ".jsonl"]) == 0
    said = capsys.readouterr().out
    assert said.count("documents; high up to perplexity") == 2
    assert said.count("100 documents: high") == 2
    assert "files each, all the same" in said
    with pytest.raises(FileNotFoundError, match="is missing; run python"):
        check.main(["--raw", str(tmp_path / "none")])
