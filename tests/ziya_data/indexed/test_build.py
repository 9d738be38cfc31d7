import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import zstandard

from ziya_data.indexed import inputs, note
from ziya_data.indexed.build import BuildReport, build
from ziya_data.indexed.reader import IndexedDataset


@pytest.fixture
def expected(tokenizer_folder: Path, texts: list[str]) -> list[list[int]]:
    """The documents by sentencepiece itself."""
    processor = sentencepiece.SentencePieceProcessor(str(tokenizer_folder / "tokenizer.model"))
    return [[*processor.encode(text), processor.eos_id()] for text in texts]


def documents_of(prefix: str) -> list[list[int]]:
    return [document.tolist() for document in IndexedDataset(prefix)]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_dataset_is_the_texts_in_order(
    tmp_path: Path,
    tokenizer_folder: Path,
    jsonl: Path,
    expected: list[list[int]],
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inputs, "BATCH_BYTES", 2000)  # some thirty batches
    report = build([jsonl], str(tmp_path / "out" / "a"), tokenizer_folder, workers)
    assert documents_of(str(tmp_path / "out" / "a")) == expected
    assert (report.documents, report.tokens) == (200, sum(map(len, expected)))
    meta = IndexedDataset(tmp_path / "out" / "a").meta
    assert meta is not None
    assert meta.vocabulary_size == 400
    assert len(meta.tokenizer) == 64


def test_every_kind_of_input_gives_the_same_documents(
    tmp_path: Path, tokenizer_folder: Path, jsonl: Path, texts: list[str], expected: list[list[int]]
) -> None:
    zst, parquet = tmp_path / "a.jsonl.zst", tmp_path / "a.parquet"
    zst.write_bytes(zstandard.compress(jsonl.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), parquet)
    folder = tmp_path / "txt"
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i:05}.txt").write_text(text, encoding="utf-8")
    for path in (zst, parquet, folder):
        build([path], str(tmp_path / path.stem), tokenizer_folder)
        assert documents_of(str(tmp_path / path.stem)) == expected
    build([zst, parquet], str(tmp_path / "both"), tokenizer_folder)
    assert documents_of(str(tmp_path / "both")) == expected * 2


BAD = [
    (b"{", "not JSON"),
    (b"[]", "not a JSON object"),
    (b'{"html": "x"}', 'no key "text"'),
    (b'{"text": 5}', '"text" is a int, not a string'),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"text": "\\ud800"}', "surrogate"),
    (b"[" * 100_000, "not JSON"),
    (b'{"text": "two"} {"text": "objects"}', "not JSON"),
    (b'{"text": "rest"}]', "not JSON"),
]


def test_white_space_and_marks_around_a_record(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n  {"text": "a"}\t \n \t\n{"text": "a"}')
    report = build([path], str(tmp_path / "a"), tokenizer_folder)
    assert (report.documents, report.bad) == (3, 0)
    first, *others = documents_of(str(tmp_path / "a"))
    assert others == [first, first]


def test_bad_lines_are_counted_and_the_first_ten_told(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "good"}', b"", b'{"text": ""}', *[line for line, _ in BAD * 2]]
    path.write_bytes(b"\n".join(lines) + b"\n")
    report = build([path], str(tmp_path / "a"), tokenizer_folder)
    assert (report.documents, report.empty, report.bad) == (1, 1, 18)
    assert len(report.first_bad) == 10
    told = capsys.readouterr().err
    for number, (line, (_, why)) in enumerate(zip(report.first_bad, BAD, strict=False), start=4):
        assert line.startswith(f"{path}:{number}: ")
        assert why in line
        assert "\n" not in line
        assert line in told


def test_too_many_bad_lines_stop_the_build(tmp_path: Path, tokenizer_folder: Path, write: Callable[..., str]) -> None:
    prefix = write([[1, 2]], name="old")
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "good"}) + "\n" + "bad\n" * 3)
    assert build([path], str(tmp_path / "new"), tokenizer_folder, bad_limit=3).bad == 3
    with pytest.raises(ValueError, match=r"3 bad records, more than bad_limit=2.*a\.jsonl:2: not JSON"):
        build([path], prefix, tokenizer_folder, bad_limit=2)
    assert documents_of(prefix) == [[1, 2]]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_build_of_nothing_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="no document in 1 files"):
        build([path], str(tmp_path / "a"), tokenizer_folder)
    with pytest.raises(ValueError, match="workers=0"):
        build([path], str(tmp_path / "a"), tokenizer_folder, workers=0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_damaged_input_stops_a_build_of_several_workers(tmp_path: Path, tokenizer_folder: Path, jsonl: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(jsonl.read_bytes())[:-5])
    with pytest.raises(ValueError, match="truncated"):
        build([path], str(tmp_path / "a"), tokenizer_folder, workers=2)
    assert not list(tmp_path.glob("a.*i*"))


def test_a_report_reads_as_a_line() -> None:
    report = BuildReport(files=2, documents=1000, tokens=50_000, bad=3, seconds=2.0)
    assert str(report) == (
        "1,000 documents, 50,000 tokens from 2 files in 2.0 s (25,000 tokens/s); 0 empty and 3 bad records left out"
    )


OPTIONS = {"prompt_until": ["dog.", "："], "validation": 0.3}
KILLED = """
import sys
from ziya_data.indexed import build, inputs, note
inputs.BATCH_BYTES, note.NOTE_SECONDS = 2000, 0.0
count, dies = 0, int(sys.argv[1])
whole = build.encode
def dying(*arguments):
    global count
    count += 1
    if count > dies:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
build.encode = dying
build.build([sys.argv[2]], sys.argv[3], build.Path(sys.argv[4]), **eval(sys.argv[5]))
"""


def killed(after: int, jsonl: Path, prefix: Path, tokenizer: Path) -> int:
    arguments = [str(after), str(jsonl), str(prefix), str(tokenizer), repr(OPTIONS)]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    return subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True).returncode


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path,
    tokenizer_folder: Path,
    jsonl: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(inputs, "BATCH_BYTES", 2000)
    monkeypatch.setattr(note, "NOTE_SECONDS", 0.0)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    build([jsonl], str(tmp_path / "whole" / "a"), tokenizer_folder, **OPTIONS)
    for after in (3, 5):  # killed twice
        assert killed(after, jsonl, tmp_path / "cut" / "a", tokenizer_folder) == -9
    assert not (tmp_path / "cut" / "a.idx").exists()
    with (tmp_path / "cut" / "a.bin.tmp").open("ab") as file:
        file.write(b"written, but not noted")
    report = build([jsonl], str(tmp_path / "cut" / "a"), tokenizer_folder, workers=2, **OPTIONS)
    assert "going on after" in capsys.readouterr().err
    assert report.documents == 200
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "cut").iterdir()}
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_build_does_not_go_on(
    tmp_path: Path, tokenizer_folder: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BATCH_BYTES", 2000)
    assert killed(3, jsonl, tmp_path / "a", tokenizer_folder) == -9
    assert json.loads((tmp_path / "a.build.json").read_bytes())["batches"] > 1
    build([jsonl], str(tmp_path / "a"), tokenizer_folder)  # other options
    build([jsonl], str(tmp_path / "b"), tokenizer_folder)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert not (tmp_path / "a.build.json").exists()


def test_a_full_disk_half_way_leaves_what_a_second_start_needs(
    tmp_path: Path,
    tokenizer_folder: Path,
    jsonl: Path,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(inputs, "BATCH_BYTES", 2000)
    program = """
import resource, signal, sys
from ziya_data.indexed import build, inputs, note
inputs.BATCH_BYTES, note.NOTE_SECONDS = 2000, 0.0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
try:
    build.build([sys.argv[1]], sys.argv[2], build.Path(sys.argv[3]))
except OSError as error:
    print("one line:", error)
"""
    prefix = tmp_path / "out" / "a"
    arguments = [sys.executable, "-c", program, str(jsonl), str(prefix), str(tokenizer_folder)]
    done = subprocess.run(arguments, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert "one line: " in done.stdout, done.stderr
    assert "start the same build again to go on" in done.stderr
    assert not prefix.with_name("a.idx").exists()
    build([jsonl], str(prefix), tokenizer_folder)
    assert "going on after" in capsys.readouterr().err
    assert documents_of(str(prefix)) == expected
    assert not list(prefix.parent.glob("*.tmp"))


def test_prompts_end_with_the_last_of_the_words(tmp_path: Path, tokenizer_folder: Path) -> None:
    texts = ["问题:处处 回答:春眠", "Question: the Answer: fox Answer: dog", "no words of that kind"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build([path], str(tmp_path / "a"), tokenizer_folder, prompt_until=["回答:", "Answer:"])
    processor = sentencepiece.SentencePieceProcessor(str(tokenizer_folder / "tokenizer.model"))
    dataset = IndexedDataset(tmp_path / "a")
    assert dataset.prompts is not None
    for document, count, prompt in zip(
        dataset, dataset.prompts.tolist(), ["问题:处处 回答:", texts[1][:33], ""], strict=True
    ):
        assert processor.decode(document[:count].tolist()) == prompt
    build([path], str(tmp_path / "a"), tokenizer_folder)
    assert IndexedDataset(tmp_path / "a").prompts is None
    assert not (tmp_path / "a.prompts").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation": 1.0}, "validation=1"),
        ({"prompt_until": [""]}, "empty"),
        ({"bad_limit": -1}, "bad_limit=-1 must be 0 or more"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, tokenizer_folder: Path, jsonl: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build([jsonl], str(tmp_path / "a"), tokenizer_folder, **options)  # type: ignore[arg-type]


def test_peak_memory_of_a_build_does_not_grow(tmp_path: Path, tokenizer_folder: Path) -> None:
    """After 2 MB of input, which fill every buffer, 10 MB take no more (benchmark_dataset.py --memory: 400 MB)."""
    line = json.dumps({"text": "The quick brown fox jumps over the lazy dog. " * 20}) + "\n"
    for megabytes in (2, 10):
        (tmp_path / f"{megabytes}.jsonl").write_text(line * (megabytes * 10**6 // len(line)))
    program = f"""
import resource
from pathlib import Path
from ziya_data.indexed.build import build
for megabytes in (2, 10):
    build([{str(tmp_path)!r} + f"/{{megabytes}}.jsonl"], {str(tmp_path / "a")!r}, Path({str(tokenizer_folder)!r}))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    small, large = map(float, done.stdout.split())
    assert large - small < 4  # MiB
