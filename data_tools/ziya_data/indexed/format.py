"""The bytes of an indexed dataset: Megatron's, so that data built by either side is read by the other.

`P.bin`: the token ids of all sequences one after the other, little-endian, nothing else.

`P.idx`, little-endian, N sequences, D documents:

    byte          size      what
    0             9         magic, b"MMIDIDX\\x00\\x00"
    9             8         version, u64: 1
    17            1         dtype code, u8 (see DTYPES)
    18            8         N, the number of sequences, u64
    26            8         D + 1, the number of entries of the document index, u64
    34            4 N       length of each sequence in tokens, i32
    34 + 4 N      8 N       byte at which each sequence starts in the .bin, i64
    34 + 12 N     8 (D+1)   document index, i64: document d is sequences [index[d], index[d + 1])

Our writer makes every document one sequence, so N = D and the document index is 0..N.

`P.meta.json` (ours; Megatron ignores it): see Meta.

`P.prompts` (ours; only where prompts are marked): the tokens of each document's prompt, i32 [D].
"""

import dataclasses
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ziya_data import _indexed

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.integer]] = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
CODES = {dtype: code for code, dtype in DTYPES.items()}
FLOAT_CODES = {6: "float64", 7: "float32"}  # Megatron has them too; they cannot hold token ids
CHECKSUM_BYTES = 1 << 24  # of .bin or .idx under one checksum
META_VERSION = 1


@dataclass(frozen=True)
class Meta:
    """The side-car of a dataset: what the `.idx` does not say, and the proof that no bit has changed."""

    documents: int
    tokens: int
    dtype: str
    vocabulary_size: int
    """Every id is below this."""
    tokenizer: str
    """Tokenizer.fingerprint() of the tokenizer that made the ids; `""` when unknown."""
    bin_crc32: tuple[str, ...]
    """zlib's CRC-32 of each CHECKSUM_BYTES of the .bin, 8 hex digits."""
    idx_crc32: tuple[str, ...]
    version: int = META_VERSION
    prompts_crc32: str = ""
    """Of the whole `.prompts`; `""` where there is none."""

    def to_json(self) -> str:
        given = dataclasses.asdict(self)
        if not self.prompts_crc32:
            del given["prompts_crc32"]  # older programs know no such key
        return json.dumps(given, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> "Meta":
        """Raises ValueError for a file that is not a side-car or is of a newer version."""
        try:
            given: Any = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); delete it or build the dataset again") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(given, dict) or not isinstance(given.get("version"), int):
            raise ValueError(f"{path} is not the side-car of a dataset; delete it or build the dataset again")
        if given["version"] > META_VERSION:
            raise ValueError(f"{path} has version {given['version']}, newer than {META_VERSION}; update megatron-ziya")
        if set(given) | {"prompts_crc32"} != names:
            wrong = ", ".join(sorted((set(given) | {"prompts_crc32"}) ^ names))
            raise ValueError(f"{path} has missing or unknown keys ({wrong}); build the dataset again")
        given["bin_crc32"], given["idx_crc32"] = tuple(given["bin_crc32"]), tuple(given["idx_crc32"])
        return cls(**given)


def prefix_of(path: str | os.PathLike[str]) -> str:
    """The prefix of a dataset from the prefix itself or the name of its .bin or .idx."""
    return os.fspath(path).removesuffix(".bin").removesuffix(".idx")


def output_prefix(path: str | os.PathLike[str]) -> str:
    """The prefix of a dataset that is to be written. Raises ValueError for a folder, in which no name is given."""
    name = os.fspath(path)
    if not name or name.endswith(os.sep) or Path(name).is_dir():
        prefix = Path(name) / (Path(name).name or "data")
        raise ValueError(f"output {name or repr(name)} is a folder; give a prefix such as {prefix}")
    return prefix_of(name)


def files(prefix: str) -> tuple[Path, Path, Path]:
    """(.bin, .idx, .meta.json) of a prefix."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx"), Path(f"{prefix}.meta.json")


def prompts_file(prefix: str) -> Path:
    """The `.prompts` of a prefix."""
    return Path(f"{prefix}.prompts")


def dtype_for(vocabulary_size: int) -> type[np.integer]:
    """Megatron's choice: uint16 below 65,500 ids, int32 from there on."""
    return np.uint16 if vocabulary_size < 65_500 else np.int32


def checksums(file: BinaryIO) -> Iterator[str]:
    """zlib's CRC-32 of each CHECKSUM_BYTES of what is left of `file`, 8 hex digits."""
    while block := file.read(CHECKSUM_BYTES):
        yield f"{_indexed.crc32(block):08x}"
