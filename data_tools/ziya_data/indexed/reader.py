"""IndexedDataset: `P.bin`, `P.idx` -> read-only views of documents over a memory map."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ziya_data import _indexed

from . import format


class IndexedDataset:
    """The documents of one dataset, ours or Megatron's.

    `dataset[d]` is a read-only 1-D view [tokens of document d] of the file's dtype. A view keeps the map alive: it may
    outlive the dataset object. The structure (header, lengths, pointers, document index, size of the `.bin`, counts
    of the side-car) is checked here, once; the tokens themselves are not read (`ziya index verify` does).

    Raises FileNotFoundError, or ValueError in one line that names the file and what to do.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = format.prefix_of(prefix)
        bin_path, idx_path, meta_path = format.files(self.prefix)
        for path, other in ((idx_path, bin_path), (bin_path, idx_path)):
            if not path.is_file():
                half = f"although {other.name} is there; build it again" if other.is_file() else "check the prefix"
                raise FileNotFoundError(f"{path} not found, {half}")
        index = _map(idx_path)
        self.code, sequences = _parse_header(idx_path, index)
        self.dtype = np.dtype(format.DTYPES[self.code])
        self.tokens_bytes = _map(bin_path)
        at = format.HEADER.size
        self._lengths, self._pointers, self._documents = (
            index[at : at + 4 * sequences],
            index[at + 4 * sequences : at + 12 * sequences],
            index[at + 12 * sequences :],
        )
        wrong = _indexed.check(self.file_tuple())
        if wrong:
            raise ValueError(f"{idx_path} does not fit {bin_path.name}: {wrong}; build the dataset again")
        self._tokens = self.tokens_bytes.view(self.dtype.newbyteorder("<"))
        self._starts = self._pointers.view("<i8")
        self._first_sequence = self._documents.view("<i8")
        self.sequences = sequences
        self.meta = self._read_meta(meta_path)

    def _read_meta(self, path: Path) -> format.Meta | None:
        """The side-car, or None where there is none (Megatron's data)."""
        if not path.exists():
            return None
        meta = format.Meta.load(path)
        for name, told, held in (
            ("documents", meta.documents, len(self)),
            ("tokens", meta.tokens, self.tokens),
            ("dtype", meta.dtype, self.dtype.name),
        ):
            if told != held:
                raise ValueError(f"{path} is of another dataset: {name} {told} there, {held} here; delete it")
        return meta

    @property
    def tokens(self) -> int:
        """Of all documents together."""
        return int(self._tokens.size)

    def __len__(self) -> int:
        """Documents."""
        return int(self._first_sequence.size) - 1

    def _begin(self, document: int) -> int:
        sequence = int(self._first_sequence[document])
        if sequence == self.sequences:
            return int(self._tokens.size)
        return int(self._starts[sequence]) // self.dtype.itemsize

    def __getitem__(self, document: int) -> NDArray[np.integer]:
        """[tokens of the document], read-only. Raises IndexError outside 0..len - 1."""
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {self.prefix}: it has documents 0 to {len(self) - 1}")
        return self._tokens[self._begin(document) : self._begin(document + 1)]

    def __iter__(self) -> Iterator[NDArray[np.integer]]:
        return (self[document] for document in range(len(self)))

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, [documents] (a new array: 8 bytes a document)."""
        ends = np.append(self._starts // self.dtype.itemsize, self._tokens.size)
        return np.diff(ends[self._first_sequence])

    def file_tuple(self) -> "_indexed.FileTuple":
        """What `_indexed.Corpus` takes."""
        return (self.tokens_bytes, self._lengths, self._pointers, self._documents, self.code, self.dtype.itemsize)


def _map(path: Path) -> NDArray[np.uint8]:
    """The file as bytes. The array owns the map, which is never closed by hand: its last view unmaps it."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _parse_header(path: Path, index: NDArray[np.uint8]) -> tuple[int, int]:
    """(dtype code, sequences) after checking that the file has just the size that its counts say."""
    again = "build the dataset again"
    if index.size < format.HEADER.size:
        raise ValueError(
            f"{path} is truncated: {index.size} bytes, its header alone takes {format.HEADER.size}; {again}"
        )
    magic, version, code, sequences, entries = format.HEADER.unpack(index[: format.HEADER.size].tobytes())
    if magic != format.MAGIC:
        raise ValueError(f"{path} is not an index: it starts with {magic!r}, not {format.MAGIC!r}; check the prefix")
    if version != format.VERSION:
        raise ValueError(f"{path} has version {version}, this program reads version {format.VERSION}; update it")
    if code in format.FLOAT_CODES:
        raise ValueError(f"{path} holds {format.FLOAT_CODES[code]} numbers, not token ids; check the prefix")
    if code not in format.DTYPES:
        raise ValueError(f"{path} has dtype code {code}, known are {sorted(format.DTYPES)}; {again}")
    if entries == 0:
        raise ValueError(f"{path} has an empty document index, it needs one entry at least; {again}")
    expected = format.HEADER.size + 12 * sequences + 8 * entries
    if index.size < expected:
        raise ValueError(f"{path} is truncated: {index.size} bytes of {expected}; copy it or {again}")
    if index.size == expected + sequences and sequences:
        raise ValueError(f"{path} is a multimodal index (a mode for each sequence); only text is read here")
    if index.size > expected:
        raise ValueError(f"{path} has {index.size - expected} bytes too many; copy it or {again}")
    return code, sequences
