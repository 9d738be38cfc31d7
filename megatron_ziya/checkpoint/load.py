"""A model in one process, from whatever holds it: a checkpoint, a run directory or a Hugging Face folder."""

from pathlib import Path

import torch

import ziya_kernels
from megatron_ziya.checkpoint.huggingface import HuggingFaceFolder
from megatron_ziya.checkpoint.reader import Reader, resolve
from megatron_ziya.config import Parallel
from megatron_ziya.model import parallelize
from megatron_ziya.model.llama import Llama
from megatron_ziya.parallel.mesh import Mesh

Weights = Reader | HuggingFaceFolder
"""Both have `path`, `architecture`, `tokenizer`, `shapes`, `kinds()` and `read(name, kind)`."""


def open_weights(path: Path | str, check: bool = True) -> Weights:
    """A checkpoint, the newest one of a run directory, or a Hugging Face folder.

    `check` compares a checkpoint's files with their SHA-256. Raises FileNotFoundError or ValueError.
    """
    path = Path(path)
    if (path / "config.json").is_file() and not (path / "manifest.json").is_file():
        return HuggingFaceFolder(path)
    return Reader(resolve(path), check)


def stored_dtype(weights: Weights, name: str, kind: str = "weight") -> torch.dtype:
    """The type of a logical tensor, read from the header of its file."""
    if isinstance(weights, HuggingFaceFolder):
        return weights.dtype(name)
    segment, file = weights.segments[kind, name][0]
    return file.dtype(segment)


def model_of(weights: Weights, device: torch.device, dtype: torch.dtype, kernels: str = "auto") -> Llama:
    """The whole model on one device, for use without gradients."""
    mesh = Mesh(device=device)
    model = parallelize.build(weights.architecture, Parallel(), mesh, ziya_kernels.select(kernels, device), dtype)[0]
    parallelize.fill(model, mesh, lambda name, _: weights.read(name))
    # the head works out gradients in its forward pass unless no weight wants one
    return model.requires_grad_(False)


def load_model(path: Path | str, device: torch.device, dtype: torch.dtype, kernels: str = "auto") -> Llama:
    """`open_weights`, then `model_of`."""
    return model_of(open_weights(path), device, dtype, kernels)
