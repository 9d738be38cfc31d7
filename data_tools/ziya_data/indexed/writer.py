"""IndexedDatasetWriter: token ids -> `P.bin`, `P.idx`, `P.meta.json`."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ziya_data import _indexed

from . import format

FLUSH_BYTES = 1 << 26
STEP = 1 << 20  # tokens or lengths handled at once: the pieces stay in the cache


class IndexedDatasetWriter:
    """Writes documents one after the other; on leaving the `with` block the dataset stands under its name, whole.

    While it writes, only `P.*.tmp` exist; an error in the block deletes them and leaves an older dataset as it was.
    Memory does not grow with the dataset.

        with IndexedDatasetWriter("corpus", vocabulary_size=32_000) as writer:
            writer.add(tokens, lengths)

    prefix: `P`; its folder must exist. vocabulary_size: ids must be below it, and it sets the dtype unless `dtype` is
    given. tokenizer: fingerprint of the tokenizer, kept in the side-car. resume: what `checkpoint` of a killed writer
    of the same arguments returned; its `.tmp` files are cut there and go on.
    """

    def __init__(
        self,
        prefix: str | os.PathLike[str],
        vocabulary_size: int,
        tokenizer: str = "",
        dtype: type[np.integer] | None = None,
        resume: dict[str, Any] | None = None,
    ) -> None:
        self.prefix = format.prefix_of(prefix)
        self.dtype = np.dtype(format.dtype_for(vocabulary_size) if dtype is None else dtype)
        if self.dtype.type not in format.CODES:
            known = ", ".join(kind.__name__ for kind in format.CODES)
            raise ValueError(f"dtype={self.dtype} cannot hold token ids; use one of {known}")
        largest = int(np.iinfo(self.dtype).max)
        if not 1 <= vocabulary_size <= largest + 1:
            raise ValueError(f"vocabulary_size={vocabulary_size} must be 1 to {largest + 1} for dtype {self.dtype}")
        folder = Path(self.prefix).parent
        if not folder.is_dir():
            raise FileNotFoundError(f"folder {folder} not found; make it before writing {self.prefix}.bin")
        self.vocabulary_size = vocabulary_size
        self.tokenizer = tokenizer
        self.documents = 0
        self.tokens = 0
        self._crcs: list[int] = []
        self._crc_bytes = 0  # of the .bin so far
        self._prompts: BinaryIO | None = None  # opened by the first document that has one
        self._keep = False
        self._bin_tmp, self._idx_tmp, self._meta_tmp, self._prompts_tmp = temporary_files(self.prefix)
        if resume is not None:
            self._go_on(resume)
            return
        self._bin: BinaryIO = self._bin_tmp.open("wb")
        self._idx: BinaryIO = self._idx_tmp.open("wb+")
        self._idx.write(bytes(format.HEADER.size))  # the counts come last; the lengths are spooled behind
        self._flush = Flush(self._bin)

    def checkpoint(self) -> dict[str, Any]:
        """Makes everything so far durable; what it returns (JSON) lets another process go on from here."""
        for file in self._files():
            file.flush()
            os.fdatasync(file.fileno())
        marked = self._prompts is not None
        return {"documents": self.documents, "tokens": self.tokens, "crcs": self._crcs, "marked": marked}

    def _files(self) -> list[BinaryIO]:
        return [self._bin, self._idx, *([self._prompts] if self._prompts else [])]

    def _go_on(self, state: dict[str, Any]) -> None:
        self.documents, self.tokens = state["documents"], state["tokens"]
        self._crcs = list(state["crcs"])
        self._crc_bytes = self.tokens * self.dtype.itemsize
        self._bin, self._idx = self._bin_tmp.open("rb+"), self._idx_tmp.open("rb+")
        if state["marked"]:
            self._prompts = self._prompts_tmp.open("rb+")
        sizes = (self._crc_bytes, format.HEADER.size + 4 * self.documents, 4 * self.documents)
        for file, size in zip(self._files(), sizes, strict=False):
            if os.fstat(file.fileno()).st_size < size:
                raise ValueError(f"{file.name} is shorter than the {size} bytes that were written; delete it")
            file.truncate(size)
            file.seek(size)
        self._flush = Flush(self._bin)

    def keep(self) -> None:
        """From here on an error leaves the `.tmp` files, for a later `resume`."""
        self._keep = True

    def add(
        self,
        tokens: ArrayLike,
        lengths: Sequence[int] | NDArray[np.integer],
        prompts: Sequence[int] | NDArray[np.integer] | None = None,
    ) -> None:
        """Appends documents: `tokens` [sum of lengths], all of them in a row; `lengths` [documents].

        prompts: [documents] how many of a document's first tokens are its prompt; None: no document has one.
        Raises ValueError, having written nothing of this call, if the lengths disagree with the tokens or an id is
        outside [0, vocabulary_size).
        """
        flat, sizes = _integers(tokens, "tokens"), _integers(lengths, "lengths")
        if sizes.size and (int(sizes.min()) < 0 or int(sizes.max()) > np.iinfo(np.int32).max):
            wrong = int(np.argmax((sizes < 0) | (sizes > np.iinfo(np.int32).max)))
            raise ValueError(f"document {self.documents + wrong} has length {sizes[wrong]}; it must be 0 to 2^31 - 1")
        total = int(sizes.sum(dtype=np.int64))
        if total != flat.size:
            raise ValueError(f"the lengths add up to {total} tokens, but {flat.size} were given; they must agree")
        hidden = None if prompts is None else _integers(prompts, "prompts")
        if hidden is not None and (hidden.shape != sizes.shape or np.any((hidden < 0) | (hidden > sizes))):
            raise ValueError("prompts must be one number a document, from 0 to its length")
        for begin in range(0, flat.size, STEP):
            self._refuse_bad_ids(flat, sizes, begin)
        for begin in range(0, flat.size, STEP):
            self._write_tokens(flat[begin : begin + STEP])
        self._idx.write(np.ascontiguousarray(sizes, "<i4").data)
        self._write_prompts(hidden, sizes.size)
        self.documents += sizes.size
        self.tokens += flat.size

    def _write_prompts(self, prompts: NDArray[np.integer] | None, documents: int) -> None:
        if self._prompts is None:
            if prompts is None or not prompts.any():
                return
            self._prompts = self._prompts_tmp.open("wb+")
            self._prompts.truncate(4 * self.documents)  # zeros for the documents before
            self._prompts.seek(0, os.SEEK_END)
        told = np.zeros(documents, "<i4") if prompts is None else np.ascontiguousarray(prompts, "<i4")
        self._prompts.write(told.data)

    def _refuse_bad_ids(self, flat: NDArray[np.integer], sizes: NDArray[np.integer], begin: int) -> None:
        part = flat[begin : begin + STEP]
        # Seen as unsigned, a negative id is huge: one pass over the data finds both kinds.
        unsigned = part.view(np.dtype(f"u{part.dtype.itemsize}"))
        if int(unsigned.max()) < self.vocabulary_size:
            return
        at = int(np.argmax(unsigned >= self.vocabulary_size))
        ends = np.cumsum(sizes, dtype=np.int64)
        document = int(np.searchsorted(ends, begin + at, side="right"))
        position = begin + at - int(ends[document] - sizes[document])
        raise ValueError(
            f"id {part[at]} at token {position} of document {self.documents + document} is outside the vocabulary; "
            f"ids must be 0 to {self.vocabulary_size - 1}"
        )

    def _write_tokens(self, part: NDArray[np.integer]) -> None:
        data = np.ascontiguousarray(part, self.dtype.newbyteorder("<")).view(np.uint8)
        self._bin.write(data.data)
        self._flush.wrote(data.size)
        while data.size:
            room = format.CHECKSUM_BYTES - self._crc_bytes % format.CHECKSUM_BYTES
            if room == format.CHECKSUM_BYTES:
                self._crcs.append(0)
            self._crcs[-1] = _indexed.crc32(data[:room].data, self._crcs[-1])
            self._crc_bytes += min(room, data.size)
            data = data[room:]

    def _finish(self) -> None:
        """Completes the files, makes them durable, and gives them their names, the `.idx` last."""
        self._write_index()
        self._idx.seek(0)
        if self._prompts:
            self._prompts.seek(0)
        meta = format.Meta(
            documents=self.documents,
            tokens=self.tokens,
            dtype=self.dtype.name,
            vocabulary_size=self.vocabulary_size,
            tokenizer=self.tokenizer,
            bin_crc32=tuple(f"{crc:08x}" for crc in self._crcs),
            idx_crc32=tuple(format.checksums(self._idx)),
            prompts_crc32=_crc32(self._prompts) if self._prompts else "",
        )
        with self._meta_tmp.open("wb") as meta_file:
            meta_file.write(meta.to_json().encode())
            for file in (*self._files(), meta_file):
                file.flush()
                os.fsync(file.fileno())
        for file in self._files():
            file.close()
        final_bin, final_idx, final_meta = format.files(self.prefix)
        # A dataset without its .idx does not open: a crash between these lines leaves none, never a mixture of two.
        final_idx.unlink(missing_ok=True)
        self._bin_tmp.replace(final_bin)
        if self._prompts:
            self._prompts_tmp.replace(format.prompts_file(self.prefix))
        else:
            format.prompts_file(self.prefix).unlink(missing_ok=True)
        self._meta_tmp.replace(final_meta)
        self._idx_tmp.replace(final_idx)
        folder = os.open(final_idx.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write_index(self) -> None:
        """Header, then pointers and document index from the spooled lengths."""
        header_bytes, item_bytes = format.HEADER.size, self.dtype.itemsize
        pointers_at = header_bytes + 4 * self.documents
        begin = 0
        for first in range(0, self.documents, STEP):
            count = min(STEP, self.documents - first)
            self._idx.seek(header_bytes + 4 * first)
            lengths = np.frombuffer(self._idx.read(4 * count), "<i4")
            ends = np.cumsum(lengths, dtype="<i8") * item_bytes + begin
            pointers = np.concatenate(([begin], ends[:-1])).astype("<i8")
            begin = int(ends[-1])
            self._idx.seek(pointers_at + 8 * first)
            self._idx.write(pointers.data)
        self._idx.seek(pointers_at + 8 * self.documents)
        for first in range(0, self.documents + 1, STEP):
            self._idx.write(np.arange(first, min(first + STEP, self.documents + 1), dtype="<i8").data)
        self._idx.seek(0)
        code = format.CODES[self.dtype.type]
        self._idx.write(format.HEADER.pack(format.MAGIC, format.VERSION, code, self.documents, self.documents + 1))

    def _abandon(self) -> None:
        for file in self._files():
            try:
                file.close()
            except OSError:
                # The disk is full and the buffer cannot be flushed: the error that ended the block is the one to tell.
                continue
        if not self._keep:
            for path in temporary_files(self.prefix):
                path.unlink(missing_ok=True)

    def __enter__(self) -> "IndexedDatasetWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            self._finish()
        except BaseException:
            self._abandon()
            raise


class Flush:
    """Starts to send a file to the disk while it is still being written, so that little is left for the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._begin = self._end = file.tell()

    def wrote(self, size: int) -> None:
        self._end += size
        if self._end - self._begin >= FLUSH_BYTES:
            # Of dirty pages "not needed" starts the writing back and waits for nothing.
            os.posix_fadvise(self._file.fileno(), self._begin, self._end - self._begin, os.POSIX_FADV_DONTNEED)
            self._begin = self._end


def temporary_files(prefix: str) -> tuple[Path, Path, Path, Path]:
    """(.bin, .idx, .meta.json, .prompts) while they are being written."""
    bin_path, idx_path, meta_path = (path.with_name(path.name + ".tmp") for path in format.files(prefix))
    prompts_path = format.prompts_file(prefix)
    return bin_path, idx_path, meta_path, prompts_path.with_name(prompts_path.name + ".tmp")


def _crc32(file: BinaryIO) -> str:
    """zlib's CRC-32 of what is left of `file`."""
    crc = 0
    while block := file.read(format.CHECKSUM_BYTES):
        crc = _indexed.crc32(block, crc)
    return f"{crc:08x}"


def _integers(values: ArrayLike, name: str) -> NDArray[np.integer]:
    array = np.ascontiguousarray(values)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}; it must be one row of integers")
    return array
