"""Plain PyTorch twins of the kernels: the oracle of every Triton file, and what a CPU really runs.

Every function computes in FP32 whatever the type of its input, and rounds once, at the end; FP64 input stays FP64,
so that a whole model can be checked in FP64. Backward passes are written out where autograd would keep or make
tensors that a formula does not need. Letters as in the package's docstring.
"""

import math
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from ziya_kernels import attention_short


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: FP64 stays, everything else is FP32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _block(device: torch.device) -> int:
    """Elements that are worked on at once. On a CPU 2 MiB a thread stay in the last cache."""
    return torch.get_num_threads() << 19 if device.type == "cpu" else 1 << 26


def _blocks(rows: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows that are worked on one after another, so that FP32 temporaries stay small."""
    step = max(1, _block(device) // width)
    for start in range(0, rows, step):
        yield slice(start, start + step)


# --- RMSNorm: y = x * rsqrt(mean(x^2) + eps) * weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _wide(x.dtype)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        return (x.to(wide) * rstd).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        wide, size = rstd.dtype, x.shape[-1]
        grad, weight_wide = grad.to(wide), weight.to(wide)
        product = grad * x  # type promotion makes it wide; both sums below are matrix-vector products of it
        projection = (product @ weight_wide).unsqueeze(-1)
        grad_weight = rstd.reshape(-1) @ product.reshape(-1, size)
        scale = projection.mul_(rstd.pow(3)).div_(-size)
        grad_x = torch.mul(grad, rstd, out=product).mul_(weight_wide).addcmul_(x.to(wide), scale)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H], weight [H] -> [..., H] in x's type; statistics in FP32, one rounding at the end.

    Zhang & Sennrich 2019 (arXiv:1910.07467). Only x and one number a token are kept for the backward pass.
    """
    return _RMSNorm.apply(x, weight, eps)


def rms_norm_residual(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [..., H], weight [H] -> (the norm of x + residual, x + residual); the sum is rounded first."""
    total = x + residual
    return rms_norm(total, weight, eps), total


# --- rotary: (a, b) -> (a cos - b sin, b cos + a sin), a and b the two halves of a head


def rotary_table(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """positions [B, S] int, inv_freq [D/2] -> cos, sin [B, S, D/2] of inv_freq's type (FP32; never narrower).

    Once a forward pass, for all layers. Raises ValueError for a 16-bit inv_freq: BF16 cannot tell position 257
    from 256.
    """
    if inv_freq.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"inv_freq is {inv_freq.dtype}; rotary angles need torch.float32 or torch.float64")
    angles = positions.to(inv_freq.dtype).unsqueeze(-1) * inv_freq
    return angles.cos(), angles.sin()


def _rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """out, x [B, S, N, D]; cos, sin [B, S, 1, D/2]; all of one type."""
    first, second = x.chunk(2, -1)
    first_out, second_out = out.chunk(2, -1)
    torch.mul(first, cos, out=first_out).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=second_out).addcmul_(first, sin)
    return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, S, N, D]; cos, sin [B, S, 1, D/2] of the type to compute in."""
    if x.dtype != cos.dtype and x.numel() <= _block(x.device):
        wide = x.to(cos.dtype)
        return _rotate_into(torch.empty_like(wide), wide, cos, sin).to(x.dtype)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.dtype == cos.dtype:
        return _rotate_into(out, x, cos, sin)
    for part in _blocks(x.shape[1], x[:, 0].numel(), x.device):
        wide = x[:, part].to(cos.dtype)
        out[:, part] = _rotate_into(torch.empty_like(wide), wide, cos[:, part], sin[:, part])
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        wide = _wide(q.dtype)
        cos, sin = cos.to(wide).unsqueeze(-2), sin.to(wide).unsqueeze(-2)
        ctx.save_for_backward(cos, sin)
        return _rotate(q, cos, sin), _rotate(k, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad_q, cos, -sin), _rotate(grad_k, cos, -sin), None, None


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, S, N, D], k [B, S, K, D], cos and sin [B, S, D/2] (see `rotary_table`) -> rotated q and k.

    Su et al. 2021 (arXiv:2104.09864), the half-split form of Hugging Face; rotated in FP32, rounded once.
    """
    return _Rotary.apply(q, k, cos, sin)


def parts_of(qkv: Tensor, groups: int, cos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [B S, (N + 2 K) D], N = groups K, cos [B, S, D/2] -> views q [B, S, N, D], k and v [B, S, K, D].

    Raises ValueError for a width that holds no such heads, or another number of tokens than the table's.
    """
    rows, length, half = cos.shape
    each = 2 * half * (groups + 2)
    if qkv.dim() != 2 or qkv.shape[0] != rows * length or qkv.shape[1] % each:
        raise ValueError(
            f"rotary_qkv: qkv is {tuple(qkv.shape)}, the table {tuple(cos.shape)}, groups={groups}; qkv must be "
            f"[{rows * length}, a multiple of {each}]: [B S, (N + 2 K) D], N = groups K"
        )
    keys = qkv.shape[1] // each
    q, k, v = qkv.view(rows, length, -1, 2 * half).split([groups * keys, keys, keys], 2)
    return q, k, v


def rotary_qkv(
    qkv: Tensor,
    groups: int,
    cos: Tensor,
    sin: Tensor,
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = rotary,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output of the fused matrix, qkv [B S, (N + 2 K) D] -> q [B, S, N, D] and k [B, S, K, D] rotated, v.

    N = groups K. What was in qkv must be needed by nobody else: an implementation may write over it (this one does
    not). `rotate` takes the place of `rotary`. Raises ValueError as `parts_of` does.
    """
    q, k, v = parts_of(qkv, groups, cos)
    # a view of v would keep all of qkv for the backward pass, a tenth of a layer's activations
    return *rotate(q, k, cos, sin), v.contiguous()


# --- attention: softmax(q k^T / sqrt(D)) v, query i sees key j iff starts[i] <= j <= i

# Tokens under which PyTorch's 16-bit attention on a CPU is slower than its FP32 one. One thread, forward and backward,
# FP32 as a share of BF16, 8 heads of 32: 0.34 at 128 tokens, 0.70 at 256, 0.96 at 512, 1.06 at 1,024.
SHORT = 512
# From here up to `SHORT` matrix products are faster than either (`attention_short.py`).
PRODUCTS = 128


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, S, N, D], k and v [B, S, K, D] -> [B, S, N, D]."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)


def document_bounds(starts: Tensor) -> list[list[int]]:
    """starts [B, S] -> for each row the first token of each of its documents, then S.

    Raises ValueError where starts does not describe documents that follow one another.
    """
    length = starts.shape[1]
    index = torch.arange(length, device=starts.device, dtype=starts.dtype)
    opens = starts == index
    if not torch.equal(torch.where(opens, index, 0).cummax(1).values, starts) or not bool(opens[:, 0].all()):
        raise ValueError(
            "starts does not describe documents: starts[b, t] must be the index of the first token of t's document"
        )
    return [[*row.nonzero().flatten().tolist(), length] for row in opens]


def _documents(q: Tensor, k: Tensor, v: Tensor, bounds: list[int]) -> Tensor:
    """One row: q [1, S, N, D], k and v [1, S, K, D], the first token of each document and then S -> [1, S, N, D]."""
    # neighbours of one length go in one call: padding, often, is a run of documents of one token
    runs = [(length, len(list(run))) for length, run in groupby(end - start for start, end in pairwise(bounds))]
    parts = [x.squeeze(0).split([length * count for length, count in runs]) for x in (q, k, v)]
    out = []
    for (length, count), *heads in zip(runs, *parts, strict=True):
        documents = [x.unflatten(0, (count, length)) for x in heads]
        out.append(_causal(*documents).flatten(0, 1))
    return torch.cat(out).unsqueeze(0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None = None,
    products: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Causal attention, q [B, S, N, D], k and v [B, S, K, D], starts [B, S] or None -> [B, S, N, D].

    N is a multiple of K; scale 1/sqrt(D). starts[b, t] is the index of the first token of t's document; None means
    that each row is one document. No [S, S] mask is ever built: each document is a causal attention of its own,
    faster than a masked row of 512 tokens from documents of 8 tokens on. `products` takes the place of
    `attention_short.attention`.
    """
    bounds = [] if starts is None else document_bounds(starts)
    whole = all(len(row) == 2 for row in bounds)
    dtype, on_cpu = q.dtype, q.device.type == "cpu"
    if on_cpu and whole and PRODUCTS <= q.shape[1] < SHORT:
        return (products or attention_short.attention)(q, k, v)
    if on_cpu and (q.shape[1] < SHORT or not whole):
        q, k, v = (x.to(_wide(dtype)) for x in (q, k, v))
    if whole:
        return _causal(q, k, v).to(dtype)
    if len(bounds) == 1:  # cutting off the only row and putting it together again would be two copies
        return _documents(q, k, v, bounds[0]).to(dtype)
    rows = zip(q.split(1), k.split(1), v.split(1), bounds, strict=True)
    return torch.cat([_documents(*row) for row in rows]).to(dtype)


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = attention,
) -> Tensor:
    """Documents one after another without rows: q [T, N, D], k and v [T, K, D] -> [T, N, D]; causal in each document.

    bounds [documents + 1] int32 or int64 (flash-attn's cu_seqlens): document i is the tokens from bounds[i] up to
    bounds[i + 1]; it may be empty. `attend` takes the place of `attention`. Raises ValueError for other shapes, and for
    bounds that do not go up from 0 to T; on a GPU that is trusted, since looking would wait for it at every layer.
    """
    tokens = q.shape[0]
    if q.dim() != 3 or bounds.dim() != 1 or len(bounds) < 2 or bounds.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"attention_varlen: q is {tuple(q.shape)}, bounds {tuple(bounds.shape)} {bounds.dtype}; "
            "they must be [T, N, D] and [documents + 1] int32 or int64"
        )
    if bounds.device != q.device:
        raise ValueError(f"attention_varlen: bounds are on {bounds.device} but q on {q.device}; move one of them")
    if bounds.device.type == "cpu":
        known = bounds.tolist()
        if known[0] != 0 or known[-1] != tokens or known != sorted(known):
            raise ValueError(f"attention_varlen: bounds={known} must go up from 0 to the number of tokens, {tokens}")
    index = torch.arange(tokens, device=q.device, dtype=bounds.dtype)
    starts = bounds[torch.searchsorted(bounds, index, right=True) - 1]
    return attend(q[None], k[None], v[None], starts[None])[0]


# --- SwiGLU: silu(gate) * up


def _silu(gate: Tensor, room: Tensor) -> Tensor:
    """silu(gate), in `room` where that is of gate's type: a fifth of the forward pass in FP32."""
    return torch.ops.aten.silu.out(gate, out=room) if gate.dtype == room.dtype else F.silu(gate)


def _swiglu_into(out: Tensor, gate_up: Tensor) -> None:
    gate, up = gate_up.to(_wide(gate_up.dtype)).chunk(2, -1)
    silu = _silu(gate, out)
    if silu.dtype == out.dtype:
        torch.mul(silu, up, out=out)
    else:  # `out=` of another type is slower by half
        out.copy_(silu.mul_(up))


def _swiglu_backward_into(out: Tensor, gate_up: Tensor, grad: Tensor) -> None:
    gate, up = gate_up.to(_wide(gate_up.dtype)).chunk(2, -1)
    grad_gate, grad_up = out.chunk(2, -1)
    grad = grad.to(gate.dtype)
    silu = _silu(gate, grad_up)
    if silu.dtype == out.dtype:
        torch.mul(silu, grad, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
    else:
        grad_up.copy_(silu.mul_(grad))
        grad_gate.copy_(torch.ops.aten.silu_backward(grad.mul_(up), gate))


def _by_blocks(work: Callable[..., None], out: Tensor, *inputs: Tensor) -> Tensor:
    """work(out, *inputs) on blocks of rows; at once where they fit, since slicing costs more than a small work."""
    if max(out.numel(), inputs[0].numel()) <= _block(out.device):
        work(out, *inputs)
        return out
    rows = [x.reshape(-1, x.shape[-1]) for x in (out, *inputs)]
    for part in _blocks(len(rows[0]), rows[1].shape[1], out.device):
        work(*(x[part] for x in rows))
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        out = gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))
        return _by_blocks(_swiglu_into, out, gate_up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        return _by_blocks(_swiglu_backward_into, gate_up.new_empty(gate_up.shape), gate_up, grad)


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2F], gate first -> silu(gate) * up [..., F]. Shazeer 2020 (arXiv:2002.05202).

    Only the input is kept; silu is computed again in the backward pass, whose gradient is one buffer.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up has a last size of {gate_up.shape[-1]}; it holds gate and up, so must be even")
    return _SwiGLU.apply(gate_up)


# --- softmax(scale * scores), keys after the query masked


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, scale: float, causal: bool) -> Tensor:
        queries, keys = scores.shape[-2:]
        grids = scores.reshape(-1, queries, keys)
        out = torch.empty(grids.shape, dtype=scores.dtype, device=scores.device)
        hidden = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu_(keys - queries + 1)
        for heads in _blocks(len(grids), queries * keys, scores.device):
            scaled = grids[heads].to(_wide(scores.dtype)) * scale
            if causal:
                scaled.masked_fill_(hidden, -math.inf)
            out[heads] = scaled.softmax(-1)
        probabilities = out.view(scores.shape)
        ctx.save_for_backward(probabilities)
        ctx.scale = scale
        return probabilities

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (probabilities,) = ctx.saved_tensors
        keys, wide = probabilities.shape[-1], _wide(probabilities.dtype)
        rows, grad_rows = probabilities.reshape(-1, keys), grad.reshape(-1, keys)
        out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        for part in _blocks(rows.shape[0], rows.shape[1], rows.device):
            row = rows[part].to(wide)
            product = row * grad_rows[part]
            product.addcmul_(row, product.sum(-1, keepdim=True), value=-1)
            torch.mul(product, ctx.scale, out=out[part])
        return out.view(probabilities.shape), None, None


def softmax(scores: Tensor, scale: float, causal: bool) -> Tensor:
    """scores [..., Sq, Sk] -> softmax(scale * scores) over keys, in scores' type, FP32 inside.

    causal: query i sees key j iff j <= i + Sk - Sq (the last query sees every key). Raises ValueError where a query
    would see no key (Sq > Sk).
    """
    if causal and scores.shape[-2] > scores.shape[-1]:
        raise ValueError(f"{scores.shape[-2]} queries over {scores.shape[-1]} keys: the first would see no key")
    return _Softmax.apply(scores, scale, causal)


# --- AdamW


def adamw(
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """One AdamW step in place on flat tensors [n]; Loshchilov & Hutter 2019 (arXiv:1711.05101).

    step counts from 1; the gradient is multiplied by grad_scale (clipping and loss scale in one) and not changed.
    Equal to the bit to `torch.optim.AdamW(fused=True)`, whose function it calls, and to rounding to the others.
    """
    assert step >= 1, step
    steps_before = torch.tensor(float(step - 1), device=master.device)
    scaled = torch.empty(0)
    for part in _blocks(master.numel(), 1, master.device):
        gradient = grad[part]
        if grad_scale != 1.0:
            scaled = torch.mul(gradient, grad_scale, out=scaled if scaled.shape == gradient.shape else None)
            gradient = scaled
        torch_adamw(
            [master[part]],
            [gradient],
            [exp_avg[part]],
            [exp_avg_sq[part]],
            max_exp_avg_sqs=[],
            state_steps=[steps_before.clone()],  # counted up by the call
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            maximize=False,
        )
