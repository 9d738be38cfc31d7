"""Files between the steps of a run."""

from pathlib import Path

import pytest

from ziya_data.document import Document
from ziya_data.factory import storage


def test_batches_come_back_as_they_were(tmp_path: Path) -> None:
    """Lone surrogates, NUL, infinite numbers and line ends too."""
    first = [
        Document(
            "s:1", "甲\n乙\x00 \ud800", "s", "http://a.com/é", "zh", "text", {"perplexity": float("inf"), "size": 9}
        ),
        Document("s:\ud800\n2", "", "s", kind="code", metadata={"language_name": "c", "why": 'a"b\\'}),
    ]
    second = [Document("s:3", "x" * 3_000_000, "s")]
    with storage.batches_out(tmp_path / "a.zst") as file:
        for batch in (first, [], second):
            storage.write_batch(file, batch)
    assert list(storage.read_batches(tmp_path / "a.zst")) == [first, second]
    with storage.batches_out(tmp_path / "none.zst"):
        pass
    assert list(storage.read_batches(tmp_path / "none.zst")) == []


def test_a_file_of_batches_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def dies() -> None:
        with storage.batches_out(tmp_path / "a.zst") as file:
            storage.write_batch(file, [Document("1", "x", "s")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dies()
    assert not list(tmp_path.iterdir())


def test_two_may_write_one_file_at_once(tmp_path: Path) -> None:
    """On a cluster a task that was given up may go on beside the one that does its work again."""
    path = tmp_path / "a.jsonl"
    with storage.lines_out(path) as one, storage.lines_out(path) as other:
        for i in range(1000):
            storage.write_line(one, {"i": i})
            storage.write_line(other, {"i": i})
    assert [row["i"] for row in storage.read_lines(path)] == list(range(1000))
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    with storage.replacing(tmp_path / "a.json") as temporary:
        temporary.touch()
    temporary.touch()  # as one that was killed leaves it
    for name in ("a.tmp", "b.json.tmp"):
        (tmp_path / name).touch()
    storage.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.tmp", "b.json.tmp"]
