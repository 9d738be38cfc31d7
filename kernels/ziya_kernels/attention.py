"""Causal flash attention with grouped heads and document boundaries; no [S, S] matrix in memory.

    P = softmax(Q K^T / sqrt(D)) over the keys j with starts[i] <= j <= i      O = P V
    dV = P^T dO    dS = P (dO V^T - rowsum(O dO)) / sqrt(D)    dQ = dS K    dK = dS^T Q

Dao 2023 (arXiv:2307.08691). Forward: a program owns a block of queries of one head and walks over the keys that any of
them sees. Backward: one kernel owns keys (dK, dV, summed over the query heads of a group), one owns queries (dQ);
nothing is added atomically, so gradients are the same on every run. Blocks of keys outside the document are never
read, and only blocks on the diagonal or on the edge of a document pay for a mask. Softmax is FP32, in powers of two
(log2 e is in the scale); `lse` is the base-2 logarithm of its sum.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ziya_kernels import reference
from ziya_kernels.attention_backward import (
    attention_backward_keys_kernel,
    attention_backward_queries_kernel,
    attention_delta_kernel,
)
from ziya_kernels.attention_forward import attention_forward_kernel
from ziya_kernels.launch import check, interpreted


@dataclass(frozen=True)
class Tile:
    """One kernel's configuration: queries and keys a block, warps a program, stages of the load pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


# The largest tiles that spill no register on sm_80 and sm_90, by kernel and head size; budgets.py --search has others.
TILES = {
    "forward": {32: Tile(64, 64, 4, 3), 64: Tile(128, 64, 8, 3), 128: Tile(128, 32, 8, 3)},
    "backward keys": {32: Tile(32, 128, 8, 2), 64: Tile(32, 128, 8, 2), 128: Tile(32, 64, 8, 3)},
    "backward queries": {32: Tile(128, 64, 8, 2), 64: Tile(128, 64, 8, 2), 128: Tile(64, 64, 8, 2)},
}
# float32 needs twice the shared memory; and in the interpreter a short sequence then has several blocks
SMALL = {"forward": Tile(32, 16, 8, 1), "backward keys": Tile(16, 32, 8, 1), "backward queries": Tile(32, 16, 8, 1)}
# where those spill
TILES_OF: dict[str, dict[tuple[str, int], Tile]] = {
    "sm_100": {("backward keys", 128): Tile(32, 32, 4, 2)},
    "gfx942": {
        ("backward keys", 32): Tile(32, 128, 8, 1),
        ("backward keys", 64): Tile(32, 128, 8, 1),
        ("backward keys", 128): Tile(32, 64, 4, 1),
        ("backward queries", 128): Tile(64, 32, 8, 2),
    },
}
SMALL_OF: dict[str, dict[tuple[str, int], Tile]] = {
    "sm_100": {("backward keys", 32): Tile(16, 32, 4, 1), ("backward queries", 128): Tile(16, 16, 8, 1)}
}
SIZES = tuple(TILES["forward"])
"""Head sizes."""


def tile(kernel: str, size: int, wide: bool, target: str) -> Tile:
    """The tile of `kernel` (a key of `TILES`) for heads of `size`, FP32 if `wide`; `target` as in budgets.py."""
    own = (SMALL_OF if wide else TILES_OF).get(target, {})
    return own.get((kernel, size), SMALL[kernel] if wide else TILES[kernel][size])


def _tile(kernel: str, q: Tensor) -> Tile:
    if interpreted():
        return SMALL[kernel]
    if torch.version.hip:
        target = torch.cuda.get_device_properties(q.device).gcnArchName.split(":")[0]
    else:  # one architecture a major version: sm_86 has the tiles of sm_80, sm_103 those of sm_100
        target = f"sm_{torch.cuda.get_device_capability(q.device)[0]}0"
    return tile(kernel, q.shape[-1], q.dtype == torch.float32, target)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
        rows, length, heads, size = q.shape
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(rows, heads, length, dtype=torch.float32, device=q.device)
        chosen = _tile("forward", q)
        attention_forward_kernel[(triton.cdiv(length, chosen.queries), rows * heads)](
            q,
            k,
            v,
            out,
            lse,
            lse if starts is None else starts,
            length,
            math.log2(math.e) / math.sqrt(size),
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            N=heads,
            GROUP=heads // k.shape[2],
            D=size,
            DOCUMENTS=starts is not None,
            **_launch(chosen),
        )
        ctx.save_for_backward(q, k, v, out, lse, starts)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse, starts = ctx.saved_tensors
        grad = grad.contiguous()
        rows, length, heads, size = q.shape
        delta = torch.empty_like(lse)
        attention_delta_kernel[(triton.cdiv(length, 64), rows * heads)](
            out, grad, delta, length, N=heads, D=size, QUERIES=64, num_warps=4
        )
        grad_k, grad_v = (torch.empty(k.shape, dtype=k.dtype, device=k.device) for _ in range(2))
        grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if starts is None:
            starts = ends = lse  # never read
        else:
            ends = torch.searchsorted(starts, starts, right=True, out_int32=True)
        numbers = (length, math.log2(math.e) / math.sqrt(size), *q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
        shape = {"GROUP": heads // k.shape[2], "D": size, "DOCUMENTS": starts is not lse}
        chosen = _tile("backward keys", q)
        attention_backward_keys_kernel[(triton.cdiv(length, chosen.keys), rows * k.shape[2])](
            q, k, v, grad, lse, delta, starts, ends, grad_k, grad_v, *numbers, **shape, **_launch(chosen), K=k.shape[2]
        )
        chosen = _tile("backward queries", q)
        attention_backward_queries_kernel[(triton.cdiv(length, chosen.queries), rows * heads)](
            q, k, v, grad, lse, delta, starts, grad_q, *numbers, **shape, **_launch(chosen), N=heads
        )
        return grad_q, grad_k, grad_v, None


def _launch(tile: Tile) -> dict[str, int]:
    return {"QUERIES": tile.queries, "KEYS": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}


def attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
    """q [B, S, N, D], k and v [B, S, K, D], starts [B, S] int32 or None -> [B, S, N, D] contiguous.

    N is a multiple of K, D is 32, 64 or 128. starts[b, t] is the index of the first token of t's document, as the index
    room writes it; it is trusted here, since checking it would wait for the GPU at every layer. Raises ValueError
    for another D, for shapes that do not fit each other, and for mixed types or devices.
    """
    check("attention", q=q, k=k, v=v)
    rows, length, heads, size = q.shape
    if size not in SIZES:
        raise ValueError(f"attention: head size {size} is not supported; use 32, 64 or 128, or kernels=torch")
    if k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3] != size or heads % k.shape[2]:
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; they must be [B, S, N, D], "
            "[B, S, K, D], [B, S, K, D] with N a multiple of K"
        )
    if starts is not None:
        if starts.shape != (rows, length) or starts.device != q.device:
            raise ValueError(
                f"attention: starts is {tuple(starts.shape)} on {starts.device}; it must be [B, S] on {q.device}"
            )
        starts = starts.to(torch.int32).contiguous()
        if interpreted():
            reference.document_bounds(starts)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return _Attention.apply(q, k, v, starts)


def attention_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor) -> Tensor:
    """q [T, N, D], k and v [T, K, D], bounds [documents + 1] -> [T, N, D]; see `reference.attention_varlen`.

    The same kernels over one row of T tokens: they find the documents by the first token of each, and skip what lies
    outside of them. Raises ValueError as both do.
    """
    return reference.attention_varlen(q, k, v, bounds, attention)
