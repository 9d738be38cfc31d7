from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ziya_data.indexed import format
from ziya_data.indexed.verify import problems

DOCUMENTS = [[1, 2, 3], [], [4], [5, 6, 7, 8]]


def test_a_whole_dataset_has_no_problems(write: Callable[..., str]) -> None:
    assert list(problems(write(DOCUMENTS))) == []
    assert list(problems(write([]))) == []


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_every_flipped_bit_is_found(write: Callable[..., str], suffix: str) -> None:
    prefix = write(DOCUMENTS)
    path = Path(prefix + suffix)
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = list(problems(prefix))
        except ValueError:
            continue  # the structure is checked at opening already
        assert found, f"bit {bit}"
    path.write_bytes(good)
    assert list(problems(prefix)) == []


def test_the_damaged_stretch_is_named(write: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "CHECKSUM_BYTES", 1000)
    prefix = write([list(range(2000))])
    path = Path(f"{prefix}.bin")
    data = bytearray(path.read_bytes())
    data[2500] ^= 1
    path.write_bytes(data)
    (line,) = problems(prefix)
    assert "data.bin: bytes from 2000" in line


def test_ids_are_held_against_the_vocabulary(write: Callable[..., str]) -> None:
    prefix = write([[1, 2, 99], [3]])
    assert list(problems(prefix, vocabulary_size=100)) == []
    (line,) = problems(prefix, vocabulary_size=99)
    assert "id 99 at token 2 of the file; ids must be 0 to 98" in line


def test_negative_ids_are_found_without_a_side_car(write: Callable[..., str]) -> None:
    prefix = write(DOCUMENTS, dtype=np.int32)
    Path(f"{prefix}.meta.json").unlink()
    assert list(problems(prefix)) == []
    path = Path(f"{prefix}.bin")
    path.write_bytes(np.array([1, 2, -3, 4, 5, 6, 7, 8], "<i4").tobytes())
    (line,) = problems(prefix)
    assert "id -3 at token 2" in line
