"""Held-out loss, per token and per character.

Perplexity per token cannot be compared between tokenizers: a wider vocabulary has fewer and harder tokens. Bits per
character can: the same text costs so many bits, however it is cut (Ziya2's tokenizer takes half the tokens for
Chinese). Characters are Unicode code points of whole documents.

Documents are read as in training: tokens, then eos; the first token of a document is never predicted, no document
sees another. A long one is cut into windows, each of which begins with the last token of the one before, so that all
its other tokens are predicted once.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from megatron_ziya.model.llama import Llama, MicroBatch

TOKENS_AT_ONCE = 2048
"""Of a forward pass; 2,048 x 39,424 FP32 logits are made in chunks by the head, so this bounds the activations."""


class Encoder(Protocol):
    """What is asked of a tokenizer."""

    eos_id: int

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Result:
    """Of one text."""

    documents: int
    characters: int
    tokens: int
    predicted: int
    """Tokens whose loss counts."""
    loss: float
    """Nats per predicted token."""
    perplexity: float
    """Per predicted token."""
    bits_per_character: float
    perplexity_per_character: float


def read_texts(file: Path, max_characters: int = 0) -> Iterator[tuple[str, bool]]:
    """`(text, whole)` of a jsonl file's documents, in order; the one that reaches `max_characters` is cut there.

    0 = no limit. Raises FileNotFoundError, or ValueError for a line that is not JSON with a `text`.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give a jsonl file with a `text` on each line")
    left = max_characters or math.inf
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{file}, line {number}: not a JSON object with a `text`") from None
            if not text:
                continue
            if len(text) >= left:
                yield text[: int(left)], len(text) == left
                return
            left -= len(text)
            yield text, True


def rows(documents: Iterable[Sequence[int]], length: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Documents (with their eos) -> `(tokens and targets [2, length], starts [length], mask [length])`, in order.

    `mask[t]` tells whether the prediction of `targets[t]` counts, `starts[t]` where the document of t begins.
    """
    windows = (
        document[begin : begin + length + 1] for document in documents for begin in range(0, len(document) - 1, length)
    )
    row: list[Sequence[int]] = []
    used = 0
    for window in windows:
        inputs = len(window) - 1
        if used + inputs > length:
            yield _row(row, length)
            row, used = [], 0
        row.append(window)
        used += inputs
    if row:
        yield _row(row, length)


def _row(windows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    inputs, targets = np.zeros(length, np.int64), np.zeros(length, np.int64)
    starts, mask = np.zeros(length, np.int32), np.zeros(length, bool)
    begin = 0
    for window in windows:
        end = begin + len(window) - 1
        inputs[begin:end], targets[begin:end] = window[:-1], window[1:]
        starts[begin:end], mask[begin:end] = begin, True
        begin = end
    starts[begin:] = begin  # what is left is a document of its own, which does not count
    return np.stack([inputs, targets]), starts, mask


@torch.no_grad()
def evaluate(
    model: Llama, tokenizer: Encoder, texts: Iterable[tuple[str, bool]], sequence_length: int, device: torch.device
) -> Result:
    """The loss of `model` over `texts`. Raises ValueError when there is nothing to predict."""
    documents = characters = tokens = predicted = 0
    nats = 0.0

    def encoded() -> Iterator[list[int]]:
        nonlocal documents, characters, tokens
        for text, whole in texts:
            ids = tokenizer.encode(text) + ([tokenizer.eos_id] if whole else [])
            documents, characters, tokens = documents + 1, characters + len(text), tokens + len(ids)
            yield ids

    for batch in batches(rows(encoded(), sequence_length), max(TOKENS_AT_ONCE // sequence_length, 1), device):
        losses = model(batch.tokens.flatten(), batch)[1]
        nats += losses.sum(dtype=torch.float64).item()
        predicted += int(batch.loss_mask.sum())
    if not predicted:
        raise ValueError("the held-out text has no token to predict; give documents of two tokens or more")
    per_character = nats / characters
    return Result(
        documents,
        characters,
        tokens,
        predicted,
        nats / predicted,
        math.exp(nats / predicted),
        per_character / math.log(2),
        math.exp(per_character),
    )


def batches(
    packed: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], size: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Rows, `size` at a time, as the model takes them."""
    waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for row in packed:
        waiting.append(row)
        if len(waiting) == size:
            yield _batch(waiting, device)
            waiting = []
    if waiting:
        yield _batch(waiting, device)


def _batch(packed: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], device: torch.device) -> MicroBatch:
    pairs, starts, mask = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*packed, strict=True))
    tokens: Tensor = pairs[:, 0].contiguous()
    return MicroBatch(tokens, pairs[:, 1].contiguous(), mask, starts)


def table(results: dict[str, Result]) -> str:
    """One line a language, columns as wide as what is in them."""
    cells = [("language", "characters", "tokens", "predicted", "loss", "per token", "bits/char", "per char")]
    for language, r in results.items():
        counts = f"{r.characters:,}", f"{r.tokens:,}", f"{r.predicted:,}"
        per_token = f"{r.loss:.4f}", f"{r.perplexity:,.2f}"
        cells.append(
            (language, *counts, *per_token, f"{r.bits_per_character:.4f}", f"{r.perplexity_per_character:,.3f}")
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    )


def to_json(results: dict[str, Result]) -> dict[str, dict[str, float]]:
    """The languages of `evaluation.json`."""
    return {language: asdict(result) for language, result in results.items()}
