"""Reading a checkpoint: only the files and the segments that are asked for.

Opening one reads the headers of its files, no more. The bytes of a file are compared with the manifest's SHA-256 when
something is first read from it, so a rank that needs two files of a thousand hashes two.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_ziya.checkpoint.huggingface import dtype_of_code, fingerprint
from megatron_ziya.config import Architecture
from megatron_ziya.model.weights import shapes
from megatron_ziya.strict import from_dict

FORMAT = 1


class Segment(NamedTuple):
    """A run of elements of a box of a logical weight."""

    kind: str
    name: str
    dim: int
    start: int
    size: int
    first: int
    last: int

    def key(self) -> str:
        return f"{self.kind}|{self.name}|{self.dim}:{self.start}:{self.size}|{self.first}:{self.last}"

    @classmethod
    def of_key(cls, key: str) -> "Segment":
        kind, name, box, span = key.split("|")
        return cls(kind, name, *map(int, box.split(":")), *map(int, span.split(":")))


class File:
    """One safetensors file of a checkpoint; its bytes are checked when the first of them are read."""

    def __init__(self, path: Path, digest: str | None) -> None:
        """`digest` None = never checked. Raises FileNotFoundError, or ValueError for a header that is damaged."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing from the checkpoint")
        self.path, self._unchecked = path, digest
        try:
            self._handle = safe_open(path, framework="pt")
            self.segments = [Segment.of_key(key) for key in sorted(self._handle.keys())]
        except (SafetensorError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is no whole safetensors file ({error}); the checkpoint is damaged") from None

    def check(self) -> None:
        """Compare the bytes with the SHA-256, once. Raises ValueError where they differ."""
        if self._unchecked is not None and sha256(self.path) != self._unchecked:
            raise ValueError(f"{self.path} does not have the SHA-256 of its manifest; the file is damaged")
        self._unchecked = None

    def dtype(self, segment: Segment) -> torch.dtype:
        """Its type, from the header."""
        return dtype_of_code(self._handle.get_slice(segment.key()).get_dtype())

    def read(self, segment: Segment, first: int, last: int) -> Tensor:
        """Elements `first` to `last` of the segment's box, all of which lie in the segment, flat."""
        self.check()
        values: Tensor = self._handle.get_slice(segment.key())[first - segment.first : last - segment.first]
        return values


class Reader:
    """A checkpoint folder, open for reading logical tensors and boxes of them."""

    def __init__(self, path: Path | str, check: bool = True) -> None:
        """Raises FileNotFoundError, or ValueError when the folder is not a whole checkpoint of ours.

        `check` compares a file with the SHA-256 of the manifest when it is first read from.
        """
        self.path = Path(path)
        manifest = self.path / "manifest.json"
        if not manifest.is_file():
            raise FileNotFoundError(f"{self.path} is not a checkpoint: it has no manifest.json")
        try:
            self.manifest: dict[str, Any] = json.loads(manifest.read_text())
        except ValueError as error:
            raise ValueError(f"{manifest} is not JSON ({error}); the checkpoint is damaged") from None
        version = self.manifest.get("format")
        if version != FORMAT:
            raise ValueError(f"{manifest}: format {version}, this program reads {FORMAT}; use a matching version")
        self.architecture: Architecture = from_dict(Architecture, self.manifest["architecture"])
        self.step: int = self.manifest["step"]
        self.tokenizer: str = self.manifest.get("tokenizer") or fingerprint(self.path / "huggingface")
        """Fingerprint of the tokenizer that the model's ids belong to; "" when unknown."""
        self.shapes = shapes(self.architecture)
        self.files = [File(self.path / f, s if check else None) for f, s in self.manifest["files"].items()]
        self.segments: dict[tuple[str, str], list[tuple[Segment, File]]] = defaultdict(list)
        for file in self.files:
            for segment in file.segments:
                self.segments[segment.kind, segment.name].append((segment, file))

    def check(self) -> None:
        """Compare every file with the manifest now. Raises ValueError for one that is damaged."""
        for file in self.files:
            file.check()

    def kinds(self) -> set[str]:
        """Which of `weight`, `master`, `exp_avg`, `exp_avg_sq` are there."""
        return {kind for kind, _ in self.segments}

    def read(self, name: str, kind: str = "weight") -> Tensor:
        """A whole logical tensor. Raises ValueError when part of it is missing."""
        rows = self.shapes[name][0] if name in self.shapes else 0
        return self.read_box(name, kind, 0, 0, rows)

    def read_box(self, name: str, kind: str, dim: int, start: int, size: int) -> Tensor:
        """The box `start : start + size` along `dim` of a logical tensor, from the segments that overlap it.

        Raises ValueError when part of it is missing.
        """
        rows, columns = self._box(name, dim, start, size)
        found = self._read(name, kind, rows, columns)
        return found if len(self.shapes[name]) > 1 else found.flatten()

    def read_run(self, wanted: Segment) -> Tensor:
        """Elements `first : last` of a box, flat, reading no rows but those they lie in. Raises as `read_box` does."""
        rows, columns = self._box(wanted.name, wanted.dim, wanted.start, wanted.size)
        width = len(columns)
        top = wanted.first // width
        rows = rows[top : -(-wanted.last // width)]
        found = self._read(wanted.name, wanted.kind, rows, columns)
        return found.flatten()[wanted.first - top * width : wanted.last - top * width]

    def _box(self, name: str, dim: int, start: int, size: int) -> tuple[range, range]:
        """`(rows, columns)` of a box; a vector is one column."""
        if name not in self.shapes:
            raise ValueError(f"{self.path} has no weight {name}")
        shape = self.shapes[name]
        sides = [range(start, start + size) if d == dim else range(n) for d, n in enumerate((*shape, 1)[:2])]
        return sides[0], sides[1]

    def _read(self, name: str, kind: str, rows: range, columns: range) -> Tensor:
        parts = self.segments.get((kind, name), [])
        if not parts:
            raise ValueError(f"{self.path} has no {kind} {name}")
        wanted, found = len(rows) * len(columns), 0
        whole: Tensor | None = None
        for segment, file in parts:
            r, c = self._box(name, segment.dim, segment.start, segment.size)
            overlap, width = _common(rows, r), len(c)
            first = max(segment.first, (overlap.start - r.start) * width)
            last = min(segment.last, (overlap.stop - r.start) * width)
            if first >= last or not _common(columns, c):
                continue
            values = file.read(segment, first, last)
            if values.numel() == wanted and c == columns:
                return values.view(len(rows), len(columns))
            if whole is None:
                whole = values.new_empty(len(rows), len(columns))
            for down, across, run in _rectangles(first, last, width):
                kept = _common(columns, range(c.start + across.start, c.start + across.stop))
                if kept:
                    block = values[run.start - first : run.stop - first].view(len(down), len(across))
                    top, left = r.start + down.start - rows.start, kept.start - columns.start
                    target = whole[top : top + len(down), left : left + len(kept)]
                    target.copy_(block.narrow(1, kept.start - c.start - across.start, len(kept)))
                    found += target.numel()
        if found != wanted:
            raise ValueError(f"{self.path}: {found} of {wanted} elements of {kind} {name} are there")
        if whole is None:  # nothing was wanted
            whole = torch.empty(len(rows), len(columns), dtype=parts[0][1].dtype(parts[0][0]))
        return whole


def _common(one: range, two: range) -> range:
    return range(max(one.start, two.start), max(min(one.stop, two.stop), max(one.start, two.start)))


def _rectangles(first: int, last: int, width: int) -> Iterator[tuple[range, range, range]]:
    """Elements `first : last` of a row-major box as at most three rectangles: `(rows, columns, elements)`."""
    while first < last:
        row, column = divmod(first, width)
        if column or last - first < width:
            end = min(last, (row + 1) * width)
            yield range(row, row + 1), range(column, column + end - first), range(first, end)
        else:
            end = last - last % width
            yield range(row, end // width), range(width), range(first, end)
        first = end


def steps(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    whole = [p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name) and (p / "manifest.json").is_file()]
    return sorted(whole, key=lambda p: int(p.name.removeprefix("step_")))


def resolve(path: Path | str) -> Path:
    """A checkpoint folder, or the newest one of a run directory.

    Raises FileNotFoundError when there is none, ValueError for a Hugging Face folder.
    """
    path = Path(path)
    if (path / "manifest.json").is_file():
        return path
    found = steps(path / "checkpoints") or steps(path)
    if found:
        return found[-1]
    if (path / "config.json").is_file():
        raise ValueError(f"{path} is a Hugging Face folder; run `ziya convert from-hf {path} OUT` and load OUT")
    raise FileNotFoundError(f"{path} is neither a checkpoint nor a run directory with checkpoints/step_N in it")


def check_tokenizer(model: "Reader | Path | str", tokenizer: str, whose: str = "the data") -> None:
    """Raises ValueError when a model and `tokenizer`, the fingerprint of the data's, do not belong together.

    A model is a checkpoint, a run directory or an open reader. "" on either side is unknown, and passes.
    """
    reader = model if isinstance(model, Reader) else Reader(resolve(model), check=False)
    require_same_tokenizer(reader.tokenizer, reader.path, tokenizer, whose)


def require_same_tokenizer(ours: str, model: Path, theirs: str, whose: str) -> None:
    """Raises ValueError when both fingerprints are known and differ."""
    if ours and theirs and ours != theirs:
        carried = model / "huggingface" / "tokenizer.model"
        where = f" ({carried})" if carried.is_file() else ""
        raise ValueError(
            f"{whose} has another tokenizer (SHA-256 {theirs[:12]}…) than the model {model} ({ours[:12]}…): equal ids "
            f"would stand for other text; use the model's own tokenizer{where}, or a model of that tokenizer"
        )


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
