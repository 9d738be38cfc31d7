"""A wider vocabulary for a model: rows for new pieces out of the rows of the old pieces that spelled them.

Ziya2 widens LLaMA2's 32,000 pieces by 7,400 Chinese characters; a new row is "a weighted average" of the rows of the
two to four old pieces (paper, section 5.1). The weights, and what becomes of the head, are NOT STATED: both are a knob
here, and `tools/compare_rows.py` measures them.
"""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from megatron_ziya.checkpoint.convert import RECORD, check_target, settle, token_ids_of, write_json, write_small_files
from megatron_ziya.checkpoint.distributed import fresh_folder, write_weights
from megatron_ziya.checkpoint.format import MANIFEST
from megatron_ziya.checkpoint.huggingface import HuggingFaceFolder, config_of, names, read_json
from megatron_ziya.checkpoint.load import Weights, open_weights, stored_dtype
from megatron_ziya.checkpoint.reader import Reader
from megatron_ziya.checkpoint.streaming import Form, digest, write_model
from megatron_ziya.config import Architecture
from megatron_ziya.model.weights import shapes

Method = Literal["mean", "rising", "falling", "frequency", "random", "zero"]
HeadMethod = Literal["mean", "rising", "falling", "frequency", "random", "zero", "embedding"]
METHODS: dict[Method, str] = {
    "mean": "mean of the rows of the old pieces that spelled it",
    "rising": "weighted mean, weights 1, 2, 3, … from the first piece on: the last bytes tell characters apart",
    "falling": "weighted mean, weights …, 3, 2, 1: the head so far began the character with its first piece",
    "frequency": "weighted mean, a piece that helped to spell many new ones counts less",
    "random": "normal, with the mean and the deviation of the old rows in each dimension",
    # RMSNorm divides what is zero by the root of eps alone, in every layer again
    "zero": "zero, to compare with: in the embedding, a sequence that begins with it has no finite gradient",
}
GROWN = ("embedding.weight", "head.weight")
SEED = 1234
COMMON = 1e-3
"""a of the weights a / (a + share), "smooth inverse frequency" of Arora, Liang and Ma (ICLR 2017), with their value."""


class Grown(NamedTuple):
    """Sizes before and after."""

    old_pieces: int
    old_rows: int
    rows: int


def grow_vocabulary(
    source: Path, tokenizer: Path, out: Path, method: Method = "mean", head: HeadMethod | None = None
) -> Grown:
    """Write the model `source` with the vocabulary of the wider `tokenizer` into `out`.

    `source` is a Hugging Face folder, and `out` becomes one; or a checkpoint or run directory (its newest), and `out`
    becomes a checkpoint of weights alone. `method` makes the new rows of the embedding and, unless `head` says
    otherwise, of the head. Old ids keep their rows, padding rows behind them are dropped, every other tensor is copied
    byte for byte. `source` needs its own tokenizer, or `tokenizer` its expansion.json.
    Raises ValueError or FileNotFoundError.
    """
    weights = open_weights(source)
    check_target(out, weights.path)
    carried = weights.path if isinstance(weights, HuggingFaceFolder) else weights.path / "huggingface"
    sources, pieces = _sources(carried, tokenizer)
    old_pieces, old_rows = pieces - len(sources), weights.architecture.vocabulary_size
    _refuse(source, tokenizer, old_pieces, old_rows, pieces)
    if head is not None and weights.architecture.tied:
        raise ValueError(f"{source} has one table for embedding and head (tied); leave out --head-method {head}")
    architecture = dataclasses.replace(weights.architecture, vocabulary_size=pieces)

    def read(name: str) -> Tensor:
        old = weights.read(name)
        if name not in GROWN:
            return old
        old, way = old[:old_pieces], method if name == "embedding.weight" else head or method
        if way == "embedding":
            rows = new_rows(weights.read("embedding.weight")[:old_pieces], sources, method, _seed("embedding.weight"))
        else:
            rows = new_rows(old, sources, way, _seed(name))
        return torch.cat([old, rows.to(old.dtype)])

    record: dict[str, Any] = {"grown_from": str(weights.path), "method": method, "head_method": head or method}
    record["old_pieces"] = old_pieces
    dtypes = {name: stored_dtype(weights, name) for name in weights.shapes}
    temporary = out.with_name(out.name + ".tmp")
    if isinstance(weights, HuggingFaceFolder):
        fresh_folder(out)
        theirs, wanted = names(architecture), shapes(architecture)
        logical = {name: ours for ours, name in theirs.items()}
        forms = {name: Form(wanted[ours], dtypes[ours]) for ours, name in theirs.items()}
        write_model(temporary, forms, lambda name: read(logical[name]))
        _small_files(temporary, carried, tokenizer, architecture, dtypes["embedding.weight"])
        write_json(temporary / RECORD, record)
        _check(weights, HuggingFaceFolder(temporary), old_pieces)
        settle(temporary, out, RECORD, None)
    else:
        with TemporaryDirectory() as private:
            small = Path(private) / "huggingface"
            _small_files(small, carried, tokenizer, architecture, dtypes["embedding.weight"])
            tensors = ((name, read(name)) for name in shapes(architecture))
            write_weights(temporary, architecture, tensors, small, record)
        _check(weights, Reader(temporary), old_pieces)
        settle(temporary, out, MANIFEST, None)
    return Grown(old_pieces, old_rows, pieces)


def new_rows(old: Tensor, sources: Sequence[Sequence[int]], method: Method, seed: int) -> Tensor:
    """`[new, H]`, FP32 or finer: row i by `method` (`METHODS` says how) from the rows `sources[i]` of `old [V, H]`."""
    wide = old.to(torch.promote_types(old.dtype, torch.float32))
    if method == "zero":
        return wide.new_zeros(len(sources), wide.shape[1])
    if method == "random":
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(len(sources), wide.shape[1], generator=generator, dtype=wide.dtype)
        return drawn * wide.std(0) + wide.mean(0)
    weights = piece_weights(sources, method)
    return torch.stack([wide.new_tensor(w) @ wide[list(ids)] for w, ids in zip(weights, sources, strict=True)])


def piece_weights(sources: Sequence[Sequence[int]], method: Method) -> list[list[float]]:
    """How much each old piece counts in a new row, beside `sources`; the weights of a row make 1."""
    uses = Counter(token for ids in sources for token in ids)
    found: list[list[float]] = []
    for ids in sources:
        if method == "rising":
            weights = [float(place) for place in range(1, len(ids) + 1)]
        elif method == "falling":
            weights = [float(place) for place in range(len(ids), 0, -1)]
        elif method == "frequency":
            weights = [COMMON / (COMMON + uses[token] / uses.total()) for token in ids]
        else:
            weights = [1.0] * len(ids)
        found.append([weight / sum(weights) for weight in weights])
    return found


def _seed(name: str) -> int:
    return SEED + zlib.crc32(name.encode())


def _sources(carried: Path, tokenizer: Path) -> tuple[list[list[int]], int]:
    """`(old ids that spelled each new piece, pieces of the new tokenizer)`; carried: where the model's own may lie."""
    from ziya_data.tokenizer import Tokenizer, row_sources
    from ziya_data.tokenizer.tokenizer import is_byte_level

    pieces = Tokenizer.load(tokenizer).vocab_size
    if (carried / "tokenizer.model").is_file() or (is_byte_level(carried) and is_byte_level(tokenizer)):
        return row_sources((carried, tokenizer)), pieces
    if not (tokenizer / "expansion.json").is_file():
        raise FileNotFoundError(
            f"neither {carried / 'tokenizer.model'} nor {tokenizer / 'expansion.json'} is there: nothing tells which "
            "old pieces spelled the new ones; put the model's own tokenizer.model into its folder"
        )
    return row_sources(tokenizer), pieces


def _refuse(source: Path, tokenizer: Path, old_pieces: int, old_rows: int, pieces: int) -> None:
    if old_pieces == pieces:
        raise ValueError(f"{tokenizer} has no more pieces than the model's own tokenizer; nothing grows")
    if old_rows < old_pieces:
        raise ValueError(
            f"{source} has {old_rows:,} rows of embedding, its tokenizer {old_pieces:,} pieces; give the model that "
            f"{tokenizer} was widened from"
        )
    if old_rows >= pieces:
        raise ValueError(
            f"{source} has {old_rows:,} rows of embedding, room for all {pieces:,} pieces of {tokenizer}; nothing grows"
        )


def _small_files(folder: Path, carried: Path, tokenizer: Path, architecture: Architecture, dtype: torch.dtype) -> None:
    """The new tokenizer, config.json with the new size, and what else travels with the model."""
    token_ids = token_ids_of(tokenizer)
    write_small_files(folder, carried, tokenizer, token_ids)
    old = read_json(carried / "config.json") if (carried / "config.json").is_file() else None
    write_json(folder / "config.json", config_of(architecture, dtype, old, token_ids))


def _check(old: Weights, new: Weights, old_pieces: int) -> None:
    """What was to stay has stayed, to the bit, read again from the disk."""
    for name in old.shapes:
        before, after = old.read(name), new.read(name)
        if name in GROWN:
            before, after = before[:old_pieces], after[:old_pieces]
        assert digest(before) == digest(after), f"{name} changed"
