"""Clusters of near-duplicates: counted as they are found, shown on the report with their texts."""

import random
from pathlib import Path

import numpy as np
from factory_run import silent, write

from ziya_data.factory import pipeline, recipe
from ziya_data.factory.clusters import Copies, label
from ziya_data.factory.report import page


def test_sizes_and_the_largest() -> None:
    copies = Copies()
    assert copies.summary(str) == {"clusters": 0, "copies": 0, "sizes": {}, "largest": {}}
    for pages in ([3, 3, 9], [], [3, 0], [9, 40, *range(100, 112)]):
        copies.add(np.array(pages, np.int64))
    found = copies.summary("page {}".format)
    assert (found["clusters"], found["copies"]) == (16, 19)
    assert found["sizes"] == {"1": 14, "2": 2}
    assert list(found["largest"].items())[:4] == [("page 3", 4), ("page 9", 3), ("page 0", 2), ("page 40", 2)]
    assert len(found["largest"]) == 10
    assert [label(power) for power in (1, 2, 3, 11)] == ["2", "3-4", "5-8", "1,025-2,048"]


def test_the_report_shows_what_is_alike(tmp_path: Path) -> None:
    """A page alone, one with a copy, one with two, in three files."""
    draw = random.Random(0)
    texts = [" ".join("".join(draw.choices("abcdefghij", k=5)) for _ in range(200)) for _ in range(3)]
    for copy in range(3):
        rows = [
            {"id": f"{n}-{copy}", "text": f"{text} {copy}", "language": "en"}
            for n, text in enumerate(texts)
            if n >= copy
        ]
        write(tmp_path / f"raw/{copy}.jsonl.zst", rows)
    source = {"name": "a", "paths": [f"{tmp_path}/raw"], "skip": ["preprocess", "score", "rules"]}
    reports = [
        pipeline.run(recipe.parse({"run": {"output": f"{tmp_path}/{workers}"}, "source": [source]}), workers, silent)
        for workers in (1, 2)
    ]
    found = reports[0]["clusters"]
    assert (found["clusters"], found["copies"], found["sizes"]) == (2, 3, {"1": 1, "2": 1})
    assert found["largest"] == {"a:2-0": 3, "a:1-0": 2}
    assert found["texts"]["a:2-0"] == {"kept": texts[2][:300], "copy": texts[2][:300]}
    assert reports[1]["clusters"] == found
    shown = page(reports[0])
    assert "3 pages went because they are like one of 2 that stayed." in shown
    assert "<code>a:2-0</code><br>3 pages" in shown
