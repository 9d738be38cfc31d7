import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ziya_data.indexed import cache as module
from ziya_data.indexed.cache import Cache, read, write
from ziya_data.indexed.mix import Mix, Source
from ziya_data.indexed.reader import IndexedDataset

DOCUMENTS = [[d + 1] * (d % 7 + 2) for d in range(60)]
KINDS = [{}, {"packing": "documents"}, {"order": "megatron"}]


def rows(mix: Mix) -> list[list[int]]:
    return [sample.tokens.tolist() for sample in mix]


@pytest.mark.parametrize("kind", KINDS)
def test_with_and_without_a_cache_alike(write: Callable[..., str], tmp_path: Path, kind: dict[str, str]) -> None:
    source = Source("a", (write(DOCUMENTS),), **kind)  # type: ignore[arg-type]
    plain = rows(Mix([source], 8, 90, 1, 0))
    for _ in range(2):
        assert rows(Mix([source], 8, 90, 1, 0, cache=tmp_path / "cache")) == plain
    assert list((tmp_path / "cache").glob("*.index"))
    assert not list((tmp_path / "cache").glob("*.tmp"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_used_and_not_built_again(
    write: Callable[..., str], tmp_path: Path, kind: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source("a", (write(DOCUMENTS),), **kind)  # type: ignore[arg-type]
    list(Mix([source], 8, 90, 1, 0, cache=tmp_path / "cache").prepare())
    monkeypatch.setattr(module, "write", None)
    rows(Mix([source], 8, 90, 1, 0, cache=tmp_path / "cache"))


def test_data_built_again_has_another_index(write: Callable[..., str], tmp_path: Path) -> None:
    """Megatron's cache is named after the path and the arguments: it gives the old corpus' index here."""
    source = Source("a", (write(DOCUMENTS),))
    rows(Mix([source], 8, 90, 1, 0, cache=tmp_path / "cache"))
    write(DOCUMENTS[::-1])  # as many documents and tokens as before
    assert rows(Mix([source], 8, 90, 1, 0, cache=tmp_path / "cache")) == rows(Mix([source], 8, 90, 1, 0))


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "foreign", "newer"])
def test_a_bad_file_is_built_again(write: Callable[..., str], tmp_path: Path, damage: str) -> None:
    """Megatron fails on a truncated one until it is deleted by hand."""
    source = Source("a", (write(DOCUMENTS),), order="megatron")
    plain = rows(Mix([source], 8, 90, 1, 0, cache=tmp_path / "cache"))
    (path,) = (tmp_path / "cache").glob("*.index")
    good = path.read_bytes()
    bad = {
        "truncated": good[:-5],
        "empty": b"",
        "flipped": good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
        "foreign": b"\x93NUMPY" + good,
        "newer": good.replace(b'"version": 1', b'"version": 9'),
    }[damage]
    path.write_bytes(bad)
    assert rows(Mix([source], 8, 90, 1, 0, cache=tmp_path / "cache")) == plain
    assert path.read_bytes() == good


def _build(prefix: str, folder: Path, go: object) -> None:
    go.wait()  # type: ignore[attr-defined]
    source = Source("a", (prefix,), order="megatron")
    mix = Mix([source], 8, 5000, 1, 0, cache=folder)
    assert mix[4999].tokens.size == 9


def test_many_processes_build_at_once(write: Callable[..., str], tmp_path: Path) -> None:
    prefix = write(DOCUMENTS * 20)
    context = multiprocessing.get_context("fork")
    go = context.Barrier(4)
    workers = [context.Process(target=_build, args=(prefix, tmp_path / "cache", go)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    (path,) = (tmp_path / "cache").iterdir()
    assert read(path) is not None


def test_arrays_of_any_shape_come_back(tmp_path: Path) -> None:
    arrays = (np.arange(6, dtype=np.int64).reshape(3, 2), np.zeros(0, np.uint32), np.arange(5, dtype=np.int32))
    write(tmp_path / "x.index", arrays)
    found = read(tmp_path / "x.index")
    assert found is not None
    for array, back in zip(arrays, found, strict=True):
        assert (array.dtype, array.shape, array.tolist()) == (back.dtype, back.shape, back.tolist())
        assert not back.flags.writeable


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "x.index", (np.arange(5),))
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_is_of_the_structure(write: Callable[..., str], tmp_path: Path) -> None:
    a, b = write([[1, 2], [3]], name="a"), write([[4, 5], [6]], name="b")
    moved = [Cache(tmp_path, [IndexedDataset(prefix)]).path("x") for prefix in (a, b)]
    assert moved[0] == moved[1]  # an index holds no token
    assert Cache(tmp_path, [IndexedDataset(write([[1], [2, 3]]))]).path("x") != moved[0]
