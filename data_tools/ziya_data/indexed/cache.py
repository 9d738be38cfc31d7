"""Indexes on disk: built once, mapped by every process of a node, so that they share one copy in memory.

A file `NAME.index` is a line of JSON (name, shapes, dtypes, CRC-32) and the arrays behind it. Its name holds a
fingerprint of the lengths of the source's documents and everything else the index depends on, so data that is built
again never meets an old index. A process writes under a name of its own and renames: many ranks or machines may build
the same index at once, the last one stands, and all wrote the same bytes. A truncated, damaged or foreign file is built
again.

Needed for Megatron's order (4 bytes a document and epoch, in every process) and for packing; our own order builds an
epoch of a million documents in 25 ms, and is kept here as well when there is a cache, for the memory.
"""

import hashlib
import json
import math
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziya_data import _indexed

from .reader import IndexedDataset

CACHE_VERSION = 1
ALIGNMENT = 64
Arrays = tuple[NDArray[Any], ...]


class Cache:
    """The indexes of one source in a folder.

    Raises OSError if the folder cannot be made or written.
    """

    def __init__(self, folder: Path, datasets: Sequence[IndexedDataset], as_sequences: bool = False) -> None:
        self._folder = folder
        self._fingerprint = fingerprint(datasets, as_sequences)

    def path(self, name: str) -> Path:
        return self._folder / f"{self._fingerprint}-{name}.index"

    def arrays(self, name: str, build: Callable[[], Arrays]) -> Arrays:
        """The arrays of this name, read-only: from the file, else built and written first."""
        path = self.path(name)
        found = read(path)
        if found is None:
            write(path, build())
            found = read(path)
            assert found is not None, path
        return found


def fingerprint(datasets: Sequence[IndexedDataset], as_sequences: bool = False) -> str:
    """Of what an index depends on in the data: where each document begins and ends. 16 hex digits."""
    digest = hashlib.blake2b(f"index {CACHE_VERSION} {as_sequences}".encode(), digest_size=8)
    for dataset in datasets:
        digest.update(dataset.structure_fingerprint().encode())
    return digest.hexdigest()


def write(path: Path, arrays: Arrays) -> None:
    """Atomically; whoever writes at the same time writes the same."""
    arrays = tuple(np.ascontiguousarray(array) for array in arrays)
    crc = 0
    for array in arrays:
        crc = _indexed.crc32(array.reshape(-1).view(np.uint8).data, crc)
    header = {
        "version": CACHE_VERSION,
        "arrays": [[array.dtype.str, list(array.shape)] for array in arrays],
        "crc32": f"{crc:08x}",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(header).encode()
    line += b" " * (-(len(line) + 1) % ALIGNMENT) + b"\n"
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(line)
            for array in arrays:
                file.write(array.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> Arrays | None:
    """The arrays as maps of the file, or None if it is not there, damaged, truncated or of another version."""
    try:
        data: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        end = data[: 1 << 16].tobytes().index(b"\n") + 1
        header = json.loads(data[:end].tobytes())
        if header["version"] != CACHE_VERSION:
            return None
        shapes = [(np.dtype(dtype), tuple(shape)) for dtype, shape in header["arrays"]]
        sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in shapes]
        if data.size != end + sum(sizes) or f"{_indexed.crc32(data[end:].data):08x}" != header["crc32"]:
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    arrays = []
    for (dtype, shape), size in zip(shapes, sizes, strict=True):
        arrays.append(data[end : end + size].view(dtype).reshape(shape))
        end += size
    return tuple(arrays)
