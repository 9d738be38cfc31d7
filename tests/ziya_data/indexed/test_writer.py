import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziya_data.indexed import format, writer
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.writer import IndexedDatasetWriter

documents = st.lists(st.lists(st.integers(0, 59_999), max_size=20), max_size=30)


@settings(max_examples=60, deadline=None)
@given(documents=documents, cut=st.integers(1, 30), step=st.integers(1, 9), kind=st.sampled_from(["uint16", "int64"]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], cut: int, step: int, kind: str
) -> None:
    prefix = tmp_path_factory.mktemp("w") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "STEP", step)  # the seams between steps must not show
        patch.setattr(format, "CHECKSUM_BYTES", 2 * step + 1)
        with IndexedDatasetWriter(prefix, 60_000) as out:
            for first in range(0, len(documents), cut):
                part = documents[first : first + cut]
                tokens = np.array([token for document in part for token in document], kind)
                out.add(tokens, [len(document) for document in part])
        dataset = IndexedDataset(prefix)
        data = Path(f"{prefix}.bin").read_bytes()
        chunks = [data[at : at + 2 * step + 1] for at in range(0, len(data), 2 * step + 1)]
    assert [document.tolist() for document in dataset] == documents
    assert dataset.meta is not None
    assert dataset.meta.bin_crc32 == tuple(f"{zlib.crc32(chunk):08x}" for chunk in chunks)


@pytest.mark.parametrize(
    ("tokens", "lengths", "words"),
    [
        (
            [1, 2, 70_000, 3],
            [2, 2],
            "id 70000 at token 0 of document 3 is outside the vocabulary; ids must be 0 to 59999",
        ),
        ([1, -1], [2], "id -1 at token 1 of document 2"),
        ([60_000], [0, 1], "id 60000 at token 0 of document 3"),
        ([1, 2, 3], [2], "the lengths add up to 2 tokens, but 3 were given"),
        ([1, 2], [3, -1], "document 3 has length -1"),
        ([1.5], [1], "must be one row of integers"),
        ([[1], [2]], [1, 1], "must be one row of integers"),
    ],
)
def test_bad_documents_are_refused_and_leave_no_trace(
    tmp_path: Path, tokens: list[int], lengths: list[int], words: str
) -> None:
    with IndexedDatasetWriter(tmp_path / "a", 60_000) as out:
        out.add([5, 6, 7], [1, 2])
        with pytest.raises(ValueError, match=words) as caught:
            out.add(np.array(tokens), lengths)
        assert "\n" not in str(caught.value)
        out.add([8], [1])
    assert [document.tolist() for document in IndexedDataset(tmp_path / "a")] == [[5], [6, 7], [8]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size=0"),
        ({"vocabulary_size": 70_000, "dtype": np.uint16}, "must be 1 to 65536"),
        ({"vocabulary_size": 100, "dtype": np.float32}, "cannot hold token ids"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        IndexedDatasetWriter(tmp_path / "a", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        IndexedDatasetWriter(tmp_path / "nowhere" / "a", 10)


def _write_and_stop(prefix: str) -> None:
    with IndexedDatasetWriter(prefix, 60_000) as out:
        out.add([9], [1])
        raise KeyboardInterrupt


def test_an_error_leaves_the_old_dataset(write: Callable[..., str], tmp_path: Path) -> None:
    prefix = write([[1, 2], [3]])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        _write_and_stop(prefix)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_stop_while_naming_the_files_never_leaves_a_mixture(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same sizes, other ids: old .idx and new .bin would open without a word."""
    prefix = write([[1, 2], [3]])

    def stop_at_the_side_car(self: Path, target: Path) -> Path:
        if target.name.endswith(".json"):
            raise KeyboardInterrupt
        return self.rename(target)

    monkeypatch.setattr(Path, "replace", stop_at_the_side_car)
    with pytest.raises(KeyboardInterrupt):
        write([[7, 8], [9]])
    with pytest.raises(FileNotFoundError, match=r"data\.idx not found"):
        IndexedDataset(prefix)


def test_an_older_reader_keeps_its_data_when_the_dataset_is_replaced(write: Callable[..., str]) -> None:
    old = IndexedDataset(write([[1, 2], [3]]))
    new = IndexedDataset(write([[7]] * 5))
    assert [document.tolist() for document in old] == [[1, 2], [3]]
    assert [document.tolist() for document in new] == [[7]] * 5


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    # A limit on the size of a file fails a write as a full disk does, half-way and again while closing.
    program = f"""
import resource, numpy as np
from ziya_data.indexed.writer import IndexedDatasetWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (10_001, 10_001))
try:
    with IndexedDatasetWriter({str(tmp_path / "a")!r}, 60_000) as out:
        for _ in range(100):
            out.add(np.arange(100), [100])
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=_path())
    assert "too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def _path() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path)}


def test_the_side_car_says_what_is_inside(write: Callable[..., str]) -> None:
    prefix = write([[1, 2], [3]], tokenizer="abc", vocabulary_size=100)
    meta = json.loads(Path(f"{prefix}.meta.json").read_text())
    crc = zlib.crc32(Path(f"{prefix}.idx").read_bytes())
    assert meta == {
        "documents": 2,
        "tokens": 3,
        "dtype": "uint16",
        "vocabulary_size": 100,
        "tokenizer": "abc",
        "bin_crc32": [f"{zlib.crc32(bytes([1, 0, 2, 0, 3, 0])):08x}"],
        "idx_crc32": [f"{crc:08x}"],
        "version": 1,
    }
