"""Reading a checkpoint: only the files and the segments that are asked for.

Opening one reads the manifest and the headers of its files, and checks them. A segment is compared with its checksum
when something is first read from it, so a rank hashes what it needs, once, whatever else is there.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ziya.checkpoint.folder import resolve
from megatron_ziya.checkpoint.format import (
    MANIFEST,
    File,
    Origin,
    Segment,
    in_words,
    read_manifest,
    sha256,
    weights_sum,
)
from megatron_ziya.checkpoint.huggingface import fingerprint
from megatron_ziya.config import Architecture
from megatron_ziya.model.weights import shapes
from megatron_ziya.strict import from_dict


class Reader:
    """A checkpoint folder, open for reading logical tensors and boxes of them."""

    def __init__(self, path: Path | str, check: bool = True) -> None:
        """Raises FileNotFoundError, or ValueError when the folder is not a whole checkpoint of ours.

        `check` compares a segment with its checksum when it is first read from.
        """
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path)
        self.architecture: Architecture = from_dict(Architecture, self.manifest["architecture"])
        self.step: int = self.manifest["step"]
        self.run: str = self.manifest["run"]
        """Of the run that wrote it, the same for all its starts."""
        self.tokenizer: str = self.manifest.get("tokenizer") or fingerprint(self.path / "huggingface")
        """Fingerprint of the tokenizer that the model's ids belong to; "" when unknown."""
        self.weights_sum: str = self.manifest.get("weights_sum", "")
        """`format.weights_sum` of all weights, when they were saved; "" in checkpoints of before 2026-11-26."""
        self.shapes = shapes(self.architecture)
        origin = Origin(self.run, self.step)
        self.files = [File(self.path / f, s, origin, check) for f, s in self.manifest["files"].items()]
        self.segments: dict[tuple[str, str], list[tuple[Segment, File]]] = defaultdict(list)
        for file in self.files:
            for segment in file.segments:
                self.segments[segment.kind, segment.name].append((segment, file))

    def check(self) -> None:
        """Compare every byte with its checksum now. Raises ValueError, or FileNotFoundError, for what is damaged."""
        for file in self.files:
            file.check()
        for name, digest in self.manifest["others"].items():
            other = self.path / name
            if not other.is_file():
                raise FileNotFoundError(f"{other} is missing from the checkpoint")
            if sha256(other) != digest:
                raise ValueError(f"{other} does not have the SHA-256 of {MANIFEST}; the file is damaged")

    def sum_weights(self) -> str:
        """`format.weights_sum` of all weights as they lie here now, to be held against `weights_sum`."""
        total = 0
        for name, shape in self.shapes.items():
            total += weights_sum(Segment.whole("weight", name, shape), self.read(name), shape)
        return in_words(total)

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


def check_tokenizer(model: "Reader | Path | str", tokenizer: str, whose: str = "the data") -> None:
    """Raises ValueError when a model and `tokenizer`, the fingerprint of the data's, do not belong together.

    A model is a checkpoint, a run directory or an open reader. "" on either side is unknown, and passes.
    """
    reader = model if isinstance(model, Reader) else Reader(resolve(model), check=False)
    require_same_tokenizer(reader.tokenizer, reader.path, tokenizer, whose)


def require_same_tokenizer(ours: str, model: Path, theirs: str, whose: str) -> None:
    """Raises ValueError when both fingerprints are known and differ."""
    if ours and theirs and ours != theirs:
        carried = [model / "huggingface" / f"tokenizer.{kind}" for kind in ("model", "json")]
        where = next((f" ({file})" for file in carried if file.is_file()), "")
        raise ValueError(
            f"{whose} has another tokenizer (SHA-256 {theirs[:12]}…) than the model {model} ({ours[:12]}…): equal ids "
            f"would stand for other text; use the model's own tokenizer{where}, or a model of that tokenizer"
        )
