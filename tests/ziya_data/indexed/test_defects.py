"""Defects of megatron-core 0.19's dataset layer, a test each: what it does silently or crashes on, ours refuses.

Those of the index cache (truncated, stale) are in test_cache.py, of full disks in test_writer.py and test_build.py.
"""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ziya_data import _indexed
from ziya_data.indexed import format
from ziya_data.indexed.megatron import plan
from ziya_data.indexed.mix import Mix, Source
from ziya_data.indexed.reader import IndexedDataset
from ziya_data.indexed.samples import StreamSamples, corpus_of
from ziya_data.indexed.verify import problems
from ziya_data.indexed.writer import IndexedDatasetWriter


def test_views_outlive_the_map(write: Callable[..., str]) -> None:
    """There: a returned view of a deleted dataset is read from unmapped memory, SIGSEGV."""
    dataset = IndexedDataset(write([list(range(50_000))]))
    view = dataset[0]
    del dataset
    gc.collect()
    assert view.tolist() == list(range(50_000))


@pytest.mark.parametrize("wrong", [70_000, -1])
def test_ids_outside_the_dtype(tmp_path: Path, wrong: int) -> None:
    """There: 70000 becomes 4464 and -1 becomes 65535 in uint16."""
    with IndexedDatasetWriter(tmp_path / "a", 65_000) as out:
        with pytest.raises(ValueError, match=f"id {wrong} "):
            out.add([1, wrong], [2])
        out.add([1], [1])


def test_lengths_that_disagree_with_the_data(tmp_path: Path) -> None:
    """There: accepted; every later document is shifted."""
    with IndexedDatasetWriter(tmp_path / "a", 100) as out:
        with pytest.raises(ValueError, match="add up to 5 tokens, but 3 were given"):
            out.add([1, 2, 3], [2, 3])
        out.add([1], [1])


def test_a_truncated_bin(write: Callable[..., str]) -> None:
    """There: it opens, and without memory maps returns uninitialised memory."""
    prefix = write([[1, 2, 3]] * 10)
    os.truncate(f"{prefix}.bin", 40)
    with pytest.raises(ValueError, match=r"the \.bin holds 40"):
        IndexedDataset(prefix)


def test_a_flipped_bit(write: Callable[..., str]) -> None:
    """There: unseen. Here: verify finds it, and checked reads stop at it, alone and in a mix."""
    prefix = write([[d] * 10 for d in range(50)])
    data = bytearray(Path(f"{prefix}.bin").read_bytes())
    data[333] ^= 4
    Path(f"{prefix}.bin").write_bytes(data)
    assert any("CRC-32" in line for line in problems(prefix))
    with pytest.raises(ValueError, match=r"\.bin is damaged: bytes from 0"):
        IndexedDataset(prefix, check_reads=True)[7]
    mix = Mix([Source("a", (prefix,))], 16, 4, 1, 0, check_reads=True)
    with pytest.raises(ValueError, match=r"\.bin is damaged"):
        mix[0]


def test_checked_reads_of_good_data(write: Callable[..., str]) -> None:
    prefix = write([[d] * 10 for d in range(50)])
    plain, checked = (Mix([Source("a", (prefix,))], 16, 9, 1, 0, check_reads=check) for check in (False, True))
    assert [s.tokens.tolist() for s in plain] == [s.tokens.tolist() for s in checked]
    Path(f"{prefix}.meta.json").unlink()
    with pytest.raises(ValueError, match="turn check_reads off"):
        IndexedDataset(prefix, check_reads=True)


def test_more_sources_than_int16_counts() -> None:
    """There: dataset ids of a blend wrap at 32,768."""
    many = _indexed.Interleave([1] * 33_000)
    assert many.at(32_768) == (32_768, 0)


def test_sample_counts_are_exact() -> None:
    """There, in float32: 1,152,270,393 tokens at 2,048 have 562,632 samples with the partial one, not 562,633."""
    tokens, length = 1_152_270_393, 2048
    assert -(-(tokens - 1) // length) == 562_633
    assert plan(tokens, length, 562_632) == (1, 562_632, False, 562_632)
    assert plan(tokens, length, 562_633)[0] == 2  # the 562,633rd needs a second epoch


def test_a_sequence_of_one_token_and_no_epoch(write: Callable[..., str]) -> None:
    """There: asserted, but the assertions are compiled out: an endless loop or rubbish."""
    prefix = write([[1, 2], [3, 4, 5]])
    for order in ("ziya", "megatron"):
        rows = [sample.tokens.tolist() for sample in Mix([Source("a", (prefix,), order=order)], 1, 4, 1, 0)]
        assert all(len(row) == 2 for row in rows)
        assert len(Mix([Source("a", (prefix,), order=order)], 1, 0, 1, 0)) == 0
    with pytest.raises(ValueError, match="sequence_length=0"):
        Mix([Source("a", (prefix,))], 0, 4, 1, 0)


def _sparse(folder: Path, lengths: np.ndarray) -> str:
    ends = np.cumsum(lengths, dtype="<i8")
    with (folder / "big.bin").open("wb") as file:
        file.truncate(int(ends[-1]) * 2)
        file.seek(int(ends[-1]) * 2 - 20)
        file.write(np.arange(1, 11, dtype="<u2").tobytes())
    (folder / "big.idx").write_bytes(
        format.HEADER.pack(format.MAGIC, 1, 8, lengths.size, lengths.size + 1)
        + lengths.astype("<i4").tobytes()
        + (np.concatenate(([0], ends[:-1])) * 2).astype("<i8").tobytes()
        + np.arange(lengths.size + 1, dtype="<i8").tobytes()
    )
    return str(folder / "big")


def test_beyond_int32_tokens_in_samples(tmp_path: Path) -> None:
    """There: samples beyond 40 G tokens overflowed. A sparse file of 43 G tokens, its last ten real."""
    prefix = _sparse(tmp_path, np.append(np.full(20, 2**31 - 1), [7, 3]))
    dataset = IndexedDataset(prefix)
    assert dataset[21].tolist() == [8, 9, 10]
    corpus = corpus_of([dataset])
    length = 1 << 22
    samples = StreamSamples(corpus, length, 7)
    count = corpus.tokens // length
    starts = samples.build_index(0)
    lengths = dataset.lengths()
    order = _indexed.permute(7, 0, _indexed.DOCUMENTS, 22)
    begins = np.concatenate(([0], np.cumsum(lengths[order])))
    assert len(starts) == count + 1
    assert np.array_equal(begins[starts[:, 0]] + starts[:, 1], np.arange(count + 1) * length)
    for number in (0, count - 1, 10 * count):
        assert samples.pieces(number)[:, 2].sum() == length + 1
