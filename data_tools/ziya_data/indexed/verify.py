"""Reads every byte of a dataset and tells what is wrong with it."""

from collections.abc import Iterator

import numpy as np

from ziya_data import _indexed

from . import format
from .progress import Progress
from .reader import IndexedDataset


def problems(prefix: str, vocabulary_size: int | None = None) -> Iterator[str]:
    """One line for each stretch of 16 MiB whose checksum or ids are wrong; nothing when all is well.

    vocabulary_size: ids must be below it; the side-car's when None. Without a side-car (Megatron's data) checksums
    cannot be compared, and ids must only not be negative. Raises what IndexedDataset raises for a wrong structure.
    """
    if vocabulary_size is not None and vocabulary_size < 1:
        raise ValueError(f"vocabulary={vocabulary_size} must be 1 or more")
    dataset = IndexedDataset(prefix)
    meta = dataset.meta
    bin_path, idx_path, meta_path = format.files(dataset.prefix)
    if meta:
        with idx_path.open("rb") as file:
            found = tuple(format.checksums(file))
        for chunk, (crc, expected) in enumerate(zip(found, meta.idx_crc32, strict=True)):
            if crc != expected:
                yield f"{idx_path}: {_place(chunk)} have CRC-32 {crc}, {meta_path.name} says {expected}"
    largest = int(np.iinfo(dataset.dtype).max)
    limit = vocabulary_size or (meta.vocabulary_size if meta else largest + 1)
    progress = Progress(f"index verify {bin_path.name}")
    data = dataset.tokens_bytes
    for chunk, begin in enumerate(range(0, data.size, format.CHECKSUM_BYTES)):
        part = data[begin : begin + format.CHECKSUM_BYTES]
        if meta:
            crc, expected = f"{_indexed.crc32(part.data):08x}", meta.bin_crc32[chunk]
            if crc != expected:
                yield f"{bin_path}: {_place(chunk)} have CRC-32 {crc}, {meta_path.name} says {expected}"
        ids = part.view(dataset.dtype)
        for wrong, is_wrong in ((int(ids.min()), ids.min() < 0), (int(ids.max()), int(ids.max()) >= limit)):
            if is_wrong:
                at = begin // dataset.dtype.itemsize + int(np.argmax(ids == wrong))
                yield f"{bin_path}: id {wrong} at token {at} of the file; ids must be 0 to {limit - 1}"
        progress.update(f"{begin + part.size:,} of {data.size:,} bytes")


def _place(chunk: int) -> str:
    begin = chunk * format.CHECKSUM_BYTES
    return f"bytes from {begin} (at most {format.CHECKSUM_BYTES})"
