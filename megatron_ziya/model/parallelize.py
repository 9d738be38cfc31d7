"""How the model is cut over a mesh: the table, the stages, and which part of which logical weight a rank holds.

`build` gives a rank its slices of the model, with the weights allocated but not filled.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megatron_ziya.config import Architecture, Parallel
from megatron_ziya.model.head import Head
from megatron_ziya.model.linear import Linear, Parameter
from megatron_ziya.model.llama import Layer, Llama
from megatron_ziya.parallel.cross_entropy import SpreadHead, VocabParallelHead
from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.parallel.schedule import placement
from megatron_ziya.parallel.slices import halves
from megatron_ziya.parallel.tensor import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    vocabulary_share,
)
from ziya_kernels import Kernels

TENSOR_PARALLEL: dict[str, Callable[..., nn.Module]] = {
    "embedding": VocabParallelEmbedding,
    "attention.qkv": ColumnParallelLinear,
    "attention.output": RowParallelLinear,
    "mlp.gate_up": ColumnParallelLinear,
    "mlp.down": RowParallelLinear,
    "head": VocabParallelHead,
}


@dataclass(frozen=True)
class Piece:
    """Rows `rows` of a local weight are the box `start : start + size` along `dim` of the logical weight `name`."""

    name: str
    shape: tuple[int, ...]
    dim: int
    start: int
    size: int
    rows: tuple[int, int]

    def of_logical(self, logical: Tensor) -> Tensor:
        """This piece, cut from the whole logical weight."""
        return logical.narrow(self.dim, self.start, self.size)

    def of_local(self, local: Tensor) -> Tensor:
        """This piece, as a view of the local weight."""
        return local[self.rows[0] : self.rows[1]]


def build(a: Architecture, p: Parallel, mesh: Mesh, kernels: Kernels, dtype: torch.dtype) -> list[Llama]:
    """This rank's chunks of the model, unfilled: the slices that the schedule's placement gives to its stage."""
    slices = halves(p, a.layers)
    chunks: list[Llama] = []
    for number in placement(p.schedule, p.pipeline, p.virtual)[mesh.pipeline.index]:
        with torch.device("meta"):
            model = Llama(a, kernels, slices[number], number == 0, number == len(slices) - 1)
            if p.spread_head:
                model.head = None
                if not chunks:  # one share a stage, beside its first slice
                    head = Head(a.vocabulary_size, a.hidden_size, kernels)
                    model.share_of_head = SpreadHead(head, mesh, p.sequence)
            if mesh.tensor.size > 1:
                split_over_tensor_axis(model, mesh, p.sequence)
        for layer in list(model.layers.values())[: p.recompute_layers or None]:
            assert isinstance(layer, Layer)
            layer.recompute = p.recompute == "full"
            if layer.attention is not None:
                layer.attention.recompute_core = p.recompute == "selective"
        allocate(model, mesh.device, dtype)
        chunks.append(model)
    first, last = chunks[0], chunks[-1]
    if a.tied and first.embedding is not None and last.head is not None:
        last.head.weight = first.embedding.weight  # embedding and head may lie in two chunks of one stage
    return chunks


def allocate(model: Llama, device: torch.device, dtype: torch.dtype) -> None:
    """Give every weight of a model on the meta device memory. (`Module.to_empty` would untie tied weights.)"""
    made: dict[nn.Parameter, Parameter] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            if weight not in made:
                made[weight] = Parameter(torch.empty(weight.shape, dtype=dtype, device=device))
            module.weight = made[weight]


def split_over_tensor_axis(model: Llama, mesh: Mesh, sequence: bool) -> None:
    """Replace each module that the table names by its parallel counterpart."""
    for path, module in list(model.named_modules()):
        kind = next((k for name, k in TENSOR_PARALLEL.items() if path == name or path.endswith("." + name)), None)
        if kind is not None:
            model.set_submodule(path, kind(module, mesh.tensor, sequence))
    if model.architecture.tied and model.embedding is not None and model.head is not None:
        model.head.weight = model.embedding.weight


def pieces(model: Llama, mesh: Mesh) -> Iterator[tuple[nn.Parameter, list[Piece]]]:
    """Every local weight with the logical pieces it is made of (`weights.shapes` lists them all)."""
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or weight in seen:
            continue
        seen.add(weight)
        if isinstance(module, Linear):
            yield weight, _parts(path, module, mesh)
        elif path in ("embedding", "head", "share_of_head"):
            vocabulary = model.architecture.vocabulary_size
            first, _, existing = vocabulary_share(vocabulary, mesh.head if path == "share_of_head" else mesh.tensor)
            path = "embedding" if path == "embedding" or model.architecture.tied else "head"
            yield weight, [Piece(f"{path}.weight", (vocabulary, weight.shape[1]), 0, first, existing, (0, existing))]
        else:
            yield weight, [Piece(f"{path}.weight", tuple(weight.shape), 0, 0, len(weight), (0, len(weight)))]


def _parts(path: str, module: Linear, mesh: Mesh) -> list[Piece]:
    """The logical weights that are stacked in one matrix, each a share along `module.split` if it is split."""
    found, row = [], 0
    for part, outputs in module.parts.items():
        shape, dim = (outputs, module.inputs), max(module.split, 0)
        index, size = (mesh.tensor.index, mesh.tensor.size) if module.split >= 0 else (0, 1)
        share = shape[dim] // size
        rows = share if dim == 0 else outputs
        name = f"{path.rpartition('.')[0]}.{part}.weight"  # layers.3.attention.qkv, query -> layers.3.attention.query
        found.append(Piece(name, shape, dim, index * share, share, (row, row + rows)))
        row += rows
    return found


@torch.no_grad()
def fill(model: Llama, mesh: Mesh, logical: Callable[[str, tuple[int, ...]], Tensor]) -> None:
    """Copy the right piece of each logical weight into this rank's slice; padding rows become zero."""
    fill_pieces(model, mesh, lambda piece: piece.of_logical(logical(piece.name, piece.shape)))


@torch.no_grad()
def fill_pieces(model: Llama, mesh: Mesh, read: Callable[[Piece], Tensor]) -> None:
    """`fill` from pieces: `read` gives the box alone that a rank holds, so no whole weight need be read."""
    for weight, parts in pieces(model, mesh):
        if parts[-1].rows[1] < len(weight):
            weight.zero_()
        for piece in parts:
            if piece.size:
                piece.of_local(weight).copy_(read(piece))


def initial_weight(name: str, shape: tuple[int, ...], a: Architecture, seed: int) -> Tensor:
    """A logical weight at step 0. The draw depends on its name and the seed alone, so every layout starts equal.

    Normal with deviation 0.02; the two matrices that write into the residual stream are scaled by 1/sqrt(2 layers)
    (GPT-2, section 2.3); norms are one.
    """
    if len(shape) == 1:
        return torch.ones(shape)
    deviation = 0.02 / (2 * a.layers) ** 0.5 if name.endswith(("output.weight", "down.weight")) else 0.02
    generator = torch.Generator().manual_seed((seed << 32) + zlib.crc32(name.encode()))
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)
