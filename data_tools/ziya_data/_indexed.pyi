"""Types of the C++ module `ziya_data._indexed` (data_tools/csrc/indexed.cpp)."""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

DOCUMENTS: int
SAMPLES: int

_Bytes = NDArray[np.uint8]
FileTuple = tuple[_Bytes, _Bytes, _Bytes, _Bytes, int, int]
"""(tokens, lengths, pointers, document index: all as raw bytes; dtype code, bytes a token)."""

def check(file: FileTuple) -> str:
    """What is wrong with the file's structure, or `""`."""

def crc32(data: Buffer, crc: int = 0, kind: int = 2) -> int:
    """zlib.crc32, faster. kind: 0 plain code, 1 with carry-less products, 2 with those on 512 bits, where there are."""

def place_sum(data: Buffer, bytes: int, first: int, width: int, stride: int, offset: int, salt: int) -> int:
    """Sum mod 2^64, over elements of `bytes` bytes, of their bits times `(p ^ p >> 32) | 1`.

    p is salt + place * 2^64 / golden ratio.

    Element e of the box, the first being `first`, has the place `e // width * stride + offset + e % width`.
    """

def document_hashes(tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """[documents]: a hash of the ids of each; `tokens` [sum of lengths] are all of them in a row."""

def permute(key: int, epoch: int, purpose: int, n: int) -> NDArray[np.int64]:
    """The whole permutation of [0, n) for (key, epoch, purpose)."""

def permute_one(key: int, epoch: int, purpose: int, n: int, i: int) -> int:
    """Its value at `i`, in constant time."""

class Corpus:
    documents: int
    tokens: int
    def __init__(self, files: list[FileTuple]) -> None: ...
    def sample_index(self, key: int, epoch: int, length: int) -> NDArray[np.int64]:
        """[samples that start in this epoch, 2]: rank in the epoch's document order, offset in that document."""

    def stream_pieces(self, key: int, epoch: int, rank: int, offset: int, count: int) -> NDArray[np.int64]:
        """[P, 3]: document, first token, token count of the pieces that make `count` tokens of the stream."""

    def pack(
        self, key: int, epoch: int, length: int
    ) -> tuple[NDArray[np.uint32] | NDArray[np.int64], NDArray[np.int64]]:
        """Pieces [P, 1 or 2] and rows [R + 1]: row r is made of pieces[rows[r]:rows[r + 1]].

        A piece is (document, part of it); the second column is left out where no document is cut.
        """

    def packed_pieces(self, numbered: NDArray[np.uint32] | NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """[P, 3]: document, first token, token count of pieces of `pack`."""

    def packed_tokens(self, length: int) -> int:
        """Of all rows of an epoch together, without padding."""

    def megatron_indexes(
        self, seed: int, epochs: int, samples_together: int, separate_last: bool, samples: int, length: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32] | NDArray[np.int64], NDArray[np.uint32]]:
        """Document index [epochs * documents], sample index [samples + 1, 2], shuffle index [samples]."""

    def listed_pieces(self, order: NDArray[np.int32], rank: int, offset: int, count: int) -> NDArray[np.int64]:
        """[P, 3]: the pieces that make `count` tokens from (rank, offset) on in the documents that `order` lists."""

    def row(
        self, pieces: NDArray[np.int64], length: int, pad: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]:
        """tokens [length + 1], starts [length], mask [length] of one row."""

    def stream_row(
        self, key: int, epoch: int, index: NDArray[np.int64], number: int, length: int, pad: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]:
        """Sample `number` of those that start in `epoch`, in its order; `index` is that epoch's sample_index."""

class Interleave:
    def __init__(self, weights: list[int]) -> None: ...
    def at(self, i: int) -> tuple[int, int]:
        """The source of sample i, and how many samples of that source come before it."""

    def counts(self, i: int) -> list[int]:
        """Samples of each source among the first i."""
