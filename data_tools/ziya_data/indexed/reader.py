"""IndexedDataset: `P.bin`, `P.idx` -> read-only views of documents over a memory map."""

import hashlib
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

    check_reads: compare each 16 MiB of tokens with its checksum when it is first read, so that a flipped bit or a
    lost block of the disk stops the run; costs one pass over what is read.

    Raises FileNotFoundError, or ValueError in one line that names the file and what to do.
    """

    def __init__(self, prefix: str | os.PathLike[str], check_reads: bool = False) -> None:
        self.prefix = format.prefix_of(prefix)
        bin_path, idx_path, meta_path = format.files(self.prefix)
        for path, other in ((idx_path, bin_path), (bin_path, idx_path)):
            if not path.is_file():
                here = "" if path.is_absolute() else f" (it is looked for from {Path.cwd()} on)"
                why = (
                    f"although {other.name} is there; build it again" if other.is_file() else f"check the prefix{here}"
                )
                raise FileNotFoundError(f"{path} not found, {why}")
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
        self._one_to_one = np.array_equal(self._first_sequence, np.arange(sequences + 1))  # as our writer makes them
        self.meta = self._read_meta(meta_path)
        self.prompts = self._read_prompts()
        if check_reads and self.meta is None:
            raise ValueError(f"{meta_path} not found: without checksums no read can be checked; turn check_reads off")
        self._unchecked = set(range(len(self.meta.bin_crc32))) if check_reads and self.meta else set()

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

    def _read_prompts(self) -> NDArray[np.int32] | None:
        """[documents] tokens of each one's prompt, or None where no prompts are marked."""
        path = format.prompts_file(self.prefix)
        if self.meta is None or not self.meta.prompts_crc32:
            return None
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found, although the side-car tells of it; build the dataset again")
        data = _map(path)
        crc = f"{_indexed.crc32(data.data):08x}"
        if data.size != 4 * len(self) or crc != self.meta.prompts_crc32:
            raise ValueError(f"{path} is of another dataset or damaged (CRC-32 {crc}); build the dataset again")
        return data.view("<i4")

    def check_document(self, document: int) -> None:
        """With check_reads: compares the checksums under a document that have not been compared yet.

        Raises ValueError with the place that is damaged.
        """
        if not self._unchecked:
            return
        item, chunk_bytes = self.dtype.itemsize, format.CHECKSUM_BYTES
        first = self.begin(document) * item // chunk_bytes
        for chunk in range(first, -(-self.begin(document + 1) * item // chunk_bytes)):
            if chunk not in self._unchecked:
                continue
            assert self.meta is not None
            begin = chunk * chunk_bytes
            crc = f"{_indexed.crc32(self.tokens_bytes[begin : begin + chunk_bytes].data):08x}"
            if crc != self.meta.bin_crc32[chunk]:
                raise ValueError(
                    f"{self.prefix}.bin is damaged: bytes from {begin} (at most {chunk_bytes}) have CRC-32 {crc}, the "
                    f"side-car says {self.meta.bin_crc32[chunk]}; copy or build it again"
                )
            self._unchecked.discard(chunk)

    def structure_fingerprint(self) -> str:
        """A hash of where every document begins and ends, of the `.idx` itself: 0.4 s for 10^8 documents."""
        digest = hashlib.blake2b(f"{self.code} {self.sequences}".encode(), digest_size=16)
        digest.update(self._lengths.data)
        if not self._one_to_one:
            digest.update(self._documents.data)
        return digest.hexdigest()

    def content_fingerprint(self) -> str:
        """A hash of the data as far as it can be told without reading it all: structure, and checksums if known."""
        known = (self.meta.bin_crc32, self.meta.prompts_crc32) if self.meta else ()
        return f"{self.structure_fingerprint()} {known}"

    @property
    def tokens(self) -> int:
        """Of all documents together."""
        return int(self._tokens.size)

    def __len__(self) -> int:
        """Documents."""
        return int(self._first_sequence.size) - 1

    def begin(self, document: int) -> int:
        """Token of the `.bin` at which a document begins."""
        sequence = int(self._first_sequence[document])
        if sequence == self.sequences:
            return int(self._tokens.size)
        return int(self._starts[sequence]) // self.dtype.itemsize

    def __getitem__(self, document: int) -> NDArray[np.integer]:
        """[tokens of the document], read-only. Raises IndexError outside 0..len - 1."""
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {self.prefix}: it has documents 0 to {len(self) - 1}")
        self.check_document(document)
        return self._tokens[self.begin(document) : self.begin(document + 1)]

    def __iter__(self) -> Iterator[NDArray[np.integer]]:
        return (self[document] for document in range(len(self)))

    def lengths(self, first: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Tokens of each document from `first` to below `stop`, [documents] (a new array: 8 bytes a document)."""
        sequences = self._first_sequence[first : (len(self) if stop is None else stop) + 1]
        if self._one_to_one:
            return self._lengths.view("<i4")[sequences[0] : sequences[-1]].astype(np.int64)
        low = int(sequences[0])
        ends = np.append(self._starts[low : int(sequences[-1]) + 1] // self.dtype.itemsize, self._tokens.size)
        return np.diff(ends[sequences - low])

    def between(self, first: int, stop: int) -> NDArray[np.integer]:
        """The tokens of documents `first` to below `stop` in a row, read-only."""
        return self._tokens[self.begin(first) : self.begin(stop)]

    def document_at(self, token: int) -> int:
        """The first document that begins at this token of the `.bin` or behind it; len(self) if there is none."""
        sequence = int(np.searchsorted(self._starts, token * self.dtype.itemsize))
        return min(int(np.searchsorted(self._first_sequence, sequence)), len(self))

    def file_tuple(self, as_sequences: bool = False) -> "_indexed.FileTuple":
        """What `_indexed.Corpus` takes; `as_sequences` makes every sequence a document."""
        documents = self._documents
        if as_sequences and not self._one_to_one:
            documents = np.arange(self.sequences + 1, dtype="<i8").view(np.uint8)
        return (self.tokens_bytes, self._lengths, self._pointers, documents, self.code, self.dtype.itemsize)


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
