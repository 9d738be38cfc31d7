"""The proof of a conversion: what was written is read again, compared, and run beside transformers."""

import os
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ziya.checkpoint.load import Weights, model_of
from megatron_ziya.checkpoint.streaming import digest
from megatron_ziya.config import Architecture

PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Proof:
    tensors: int
    different: tuple[str, ...]
    """Logical tensors whose bytes are not those of the source, and sizes or constants that are not."""
    logits: float | None = None
    """Largest difference between our logits in FP32 and those of transformers in FP64."""
    bound: float | None = None
    """Twice what transformers itself loses between FP32 and FP64, and one rounding of the largest logit."""
    note: str = ""
    """Why the logits were not compared."""

    @property
    def passed(self) -> bool:
        return not self.different and (self.logits is None or self.bound is None or self.logits <= self.bound)

    def table(self) -> str:
        same = (
            f"{self.tensors} compared, {len(self.different) or 'none'} differ{'s' if len(self.different) < 2 else ''}"
        )
        rows = [("tensors (SHA-256)", same + "".join(f"\n{'':<20}{name}" for name in self.different[:5]))]
        if self.logits is None:
            rows.append(("logits", f"not compared: {self.note}"))
        else:
            rows.append(("logits", f"largest difference from transformers {self.logits:.2e}, bound {self.bound:.2e}"))
        rows.append(("proof", "passed" if self.passed else "FAILED"))
        return "\n".join(f"{name:<20}{text}" for name, text in rows)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def prove(expected: dict[str, str], architecture: Architecture, written: Weights, huggingface: Path | None) -> Proof:
    """Hold what was written against the source: its shape, the SHA-256 of each of its logical tensors, the logits.

    `huggingface` is the model folder that transformers opens: what was written, or what was read; None when neither is.
    """
    sizes, found = asdict(architecture), asdict(written.architecture)
    different = tuple(f"{name}={found[name]!r} was {sizes[name]!r}" for name in sizes if found[name] != sizes[name])
    if not different:  # another shape has other tensors
        different = tuple(name for name, value in expected.items() if digest(written.read(name)) != value)
    needed, free = 9 * written.architecture.parameters(), available_memory()  # FP64, and a layer of FP32 beside it
    if huggingface is None:
        return Proof(
            len(expected), different, note="transformers reads neither side; `ziya convert to-hf` compares them"
        )
    if find_spec("transformers") is None:
        return Proof(len(expected), different, note="transformers is not installed")
    if needed > free:
        note = f"the model in FP64 takes {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"
        return Proof(len(expected), different, note=note)
    a = written.architecture
    tokens = prompt(a.vocabulary_size, min(PROMPT_TOKENS, a.max_positions))
    with torch.no_grad():
        ours = model_of(written, torch.device("cpu"), torch.float32, "torch").logits(tokens).double()
    model, report = open_transformers(huggingface)
    strange = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    strange = [f"{name} (transformers does not match it)" for name in strange if not name.endswith("inv_freq")]
    if strange:
        return Proof(len(expected), (*different, *strange), note="transformers lacks tensors")
    with torch.no_grad():
        narrow = model(tokens).logits.double()
        wide = model.double()(tokens).logits
    one_rounding = torch.finfo(torch.float32).eps * wide.abs().max().item()
    bound = 2 * (narrow - wide).abs().max().item() + one_rounding
    return Proof(len(expected), different, (ours - wide).abs().max().item(), bound)


def prompt(vocabulary: int, length: int) -> Tensor:
    """Token ids `[1, length]` spread over the vocabulary."""
    return (torch.arange(length)[None] * 7919 + 1) % vocabulary


def open_transformers(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """transformers' model of a folder and its loading report, read from this disk alone."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    found: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
    return found


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
