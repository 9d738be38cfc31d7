"""Validation data chosen by a hash of the document: the same document, from any file, in any build, on any machine,
always falls on the same side, so training data never holds a copy of a validation document.

The hash is of the ids, so it holds across files of one tokenizer; `P` gets the training part, `P.validation` the other.
"""

import dataclasses
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ziya_data import _indexed

VALIDATION = ".validation"
Part = TypeVar("Part")


def in_validation(tokens: NDArray[np.integer], lengths: NDArray[np.integer], share: float) -> NDArray[np.bool_]:
    """[documents] whether each belongs to the validation part; `tokens` [sum of lengths]."""
    hashes = _indexed.document_hashes(tokens.astype(np.int64), lengths.astype(np.int64))
    return hashes < np.uint64(round(share * 2**63) * 2)


def split_off(chosen: NDArray[np.bool_] | None, whole: Part) -> list[Part]:
    """[whole], or the parts (not chosen, chosen) of a dataclass with `tokens`, `lengths` and `prompts`."""
    if chosen is None:
        return [whole]
    parts = []
    for kept in (~chosen, chosen):
        of_tokens = np.repeat(kept, whole.lengths)  # type: ignore[attr-defined]
        prompts = whole.prompts  # type: ignore[attr-defined]
        parts.append(
            dataclasses.replace(  # type: ignore[type-var]
                whole,
                tokens=whole.tokens[of_tokens],  # type: ignore[attr-defined]
                lengths=whole.lengths[kept],  # type: ignore[attr-defined]
                prompts=None if prompts is None else prompts[kept],
            )
        )
    return parts
