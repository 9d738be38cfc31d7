"""A wider vocabulary for a Hugging Face model: rows for new pieces out of the rows of the old pieces that spelled them.

Ziya2 widens LLaMA2's 32,000 pieces by 7,400 Chinese characters (paper, section 4.1); how it sets the new rows is NOT
STATED. The mean keeps what the model knew of a character: it has so far read it as its three bytes.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megatron_ziya.checkpoint.convert import RECORD, check_target, settle, token_ids_of, write_json, write_small_files
from megatron_ziya.checkpoint.distributed import fresh_folder
from megatron_ziya.checkpoint.huggingface import HuggingFaceFolder, config_of, names
from megatron_ziya.checkpoint.streaming import Form, digest, write_model
from megatron_ziya.model.weights import shapes

Method = Literal["mean", "zero", "random"]
GROWN = ("embedding.weight", "head.weight")
SEED = 1234


class Grown(NamedTuple):
    """Sizes before and after."""

    old_pieces: int
    old_rows: int
    rows: int


def grow_vocabulary(source: Path, tokenizer: Path, out: Path, method: Method = "mean") -> Grown:
    """Write `source`, a Hugging Face folder, with the vocabulary of the wider `tokenizer` into `out`.

    Old ids keep their rows, padding rows behind them are dropped, every other tensor is copied byte for byte.
    `source` needs its own tokenizer, or `tokenizer` its expansion.json. Raises ValueError or FileNotFoundError.
    """
    folder = HuggingFaceFolder(source)
    check_target(out, source)
    sources, pieces = _sources(source, tokenizer)
    old_pieces, old_rows = pieces - len(sources), folder.architecture.vocabulary_size
    if not sources:
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
    architecture = dataclasses.replace(folder.architecture, vocabulary_size=pieces)
    theirs = names(architecture)
    logical = {name: ours for ours, name in theirs.items()}
    wanted = shapes(architecture)
    forms = {name: Form(wanted[ours], folder.dtype(ours)) for ours, name in theirs.items()}

    def read(name: str) -> Tensor:
        tensor = folder.get(name)
        if logical[name] in GROWN:
            return grow(tensor[:old_pieces], sources, method, SEED + zlib.crc32(logical[name].encode()))
        return tensor

    temporary = fresh_folder(out)
    write_model(temporary, forms, read)
    token_ids = token_ids_of(tokenizer)
    write_small_files(temporary, source, tokenizer, token_ids)
    write_json(
        temporary / "config.json", config_of(architecture, folder.dtype("embedding.weight"), folder.config, token_ids)
    )
    write_json(temporary / RECORD, {"grown_from": str(source), "method": method, "old_pieces": old_pieces})
    _check(folder, HuggingFaceFolder(temporary), old_pieces)
    settle(temporary, out, RECORD, None)
    return Grown(old_pieces, old_rows, pieces)


def grow(old: Tensor, sources: Sequence[Sequence[int]], method: Method, seed: int) -> Tensor:
    """`old [V, H]` -> `[V + new, H]`: new row i is the mean of the old rows `sources[i]`, zero, or random.

    `random` draws from a normal distribution of the mean and deviation of the old rows.
    """
    wide = old.to(torch.promote_types(old.dtype, torch.float32))
    if method == "mean":
        new = torch.stack([wide[list(ids)].mean(0) for ids in sources])
    elif method == "zero":
        new = wide.new_zeros(len(sources), wide.shape[1])
    else:
        generator = torch.Generator().manual_seed(seed)
        new = torch.randn(len(sources), wide.shape[1], generator=generator, dtype=wide.dtype)
        new = new * wide.std(0) + wide.mean(0)
    return torch.cat([old, new.to(old.dtype)])


def _sources(source: Path, tokenizer: Path) -> tuple[list[list[int]], int]:
    """`(old ids that spelled each new piece, pieces of the new tokenizer)`."""
    from ziya_data.tokenizer import Tokenizer, row_sources

    pieces = Tokenizer.load(tokenizer).vocab_size
    if (source / "tokenizer.model").is_file():
        return row_sources((source, tokenizer)), pieces
    if not (tokenizer / "expansion.json").is_file():
        raise FileNotFoundError(
            f"neither {source / 'tokenizer.model'} nor {tokenizer / 'expansion.json'} is there: nothing tells which "
            "old pieces spelled the new ones; put the model's own tokenizer.model into its folder"
        )
    return row_sources(tokenizer), pieces


def _check(old: HuggingFaceFolder, new: HuggingFaceFolder, old_pieces: int) -> None:
    """What was to stay has stayed, to the bit, read again from the disk."""
    for name in old.shapes:
        before, after = old.read(name), new.read(name)
        if name in GROWN:
            before, after = before[:old_pieces], after[:old_pieces]
        assert digest(before) == digest(after), f"{name} changed"
