"""The sizes of LLaMA2 (arXiv:2307.09288, table of the released models), and each kernel's inputs and work there."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziya_kernels.reference import rotary_table

KERNELS = (
    "rotary", "rotary_qkv", "attention", "attention documents", "attention_varlen", "softmax", "rms_norm",
    "rms_norm_residual", "swiglu", "cross_entropy", "head_loss", "adamw",
)  # fmt: skip
DOCUMENTS = 8  # in the row of "attention documents" and "attention_varlen", all of one length
ROW_OF_ERROR = 512  # tokens; FP64 of a whole row would not fit in every GPU
PARAMETERS_OF_ERROR = 1 << 20


@dataclass(frozen=True)
class Shape:
    """One row of `sequence` tokens through one layer (B = 1)."""

    name: str
    hidden: int  # H
    width: int  # F
    heads: int  # N
    kv_heads: int  # K
    vocabulary: int  # V
    sequence: int  # S
    parameters: int  # of AdamW: one matrix of the MLP

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 128, 352, 4, 2, 500, 64, 128 * 352),
        Shape("llama2-7b", 4096, 11008, 32, 32, 32000, 4096, 4096 * 11008),
        Shape("llama2-13b", 5120, 13824, 40, 40, 32000, 4096, 5120 * 13824),
        Shape("llama2-70b", 8192, 28672, 64, 8, 32000, 4096, 8192 * 28672),
    )
}


@dataclass(frozen=True)
class Work:
    """The least that a kernel must move and compute: every input read once, every output written once."""

    bytes: float
    flops: float = 0.0


def for_error(shape: Shape) -> Shape:
    """The same widths with few tokens and parameters, to be checked in FP64."""
    return dataclasses.replace(
        shape,
        sequence=min(shape.sequence, ROW_OF_ERROR),
        parameters=min(shape.parameters, PARAMETERS_OF_ERROR),
    )


def starts_of(sequence: int) -> Tensor:
    """[1, S] int32: `DOCUMENTS` documents of one length (the last takes what is left)."""
    length = -(-sequence // DOCUMENTS)
    return (torch.arange(sequence, dtype=torch.int32) // length * length)[None]


def inputs(kernel: str, s: Shape, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    """The operator's arguments (`reference.py`), the same numbers on every call; those with a gradient ask for it."""
    generator = torch.Generator(device).manual_seed(1)

    def draw(*size: int, grad: bool = True, kind: torch.dtype = dtype, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(size, generator=generator, device=device).mul_(scale)
        return drawn.to(kind).requires_grad_(grad)

    length, size = s.sequence, s.head_size
    q_shape, k_shape = (1, length, s.heads, size), (1, length, s.kv_heads, size)
    match kernel:
        case "rotary":
            frequencies = 10000.0 ** (-torch.arange(size // 2, device=device) / (size // 2))
            return draw(*q_shape), draw(*k_shape), *rotary_table(torch.arange(length, device=device)[None], frequencies)
        case "rotary_qkv":
            frequencies = 10000.0 ** (-torch.arange(size // 2, device=device) / (size // 2))
            qkv = draw(length, (s.heads + 2 * s.kv_heads) * size)
            return qkv, s.heads // s.kv_heads, *rotary_table(torch.arange(length, device=device)[None], frequencies)
        case "attention":
            return draw(*q_shape), draw(*k_shape), draw(*k_shape), None
        case "attention documents":
            return draw(*q_shape), draw(*k_shape), draw(*k_shape), starts_of(length).to(device)
        case "attention_varlen":
            bounds = F.pad(starts_of(length)[0].unique(), (0, 1), value=length).to(device)
            return draw(*q_shape[1:]), draw(*k_shape[1:]), draw(*k_shape[1:]), bounds
        case "softmax":
            return draw(s.heads, length, length), size**-0.5, True
        case "rms_norm":
            return draw(length, s.hidden), draw(s.hidden), 1e-5
        case "rms_norm_residual":
            return draw(length, s.hidden), draw(length, s.hidden), draw(s.hidden), 1e-5
        case "swiglu":
            return (draw(length, 2 * s.width),)
        case "cross_entropy":
            targets = torch.randint(s.vocabulary, (length,), generator=generator, device=device)
            return draw(length, s.vocabulary), targets
        case "head_loss":
            targets = torch.randint(s.vocabulary, (length,), generator=generator, device=device)
            return draw(length, s.hidden), draw(s.vocabulary, s.hidden, scale=s.hidden**-0.5), targets
        case "adamw":
            flat = [draw(s.parameters, grad=False, kind=torch.float32) for _ in range(4)]
            flat[2].square_()  # the second moment
            return *flat, 1e-3, 0.9, 0.95, 1e-8, 0.1, 7, 0.5
    raise ValueError(f"kernel={kernel!r} is not known; use some of {', '.join(KERNELS)}")


def work(kernel: str, s: Shape, size: int) -> dict[str, Work]:
    """pass -> Work, for elements of `size` bytes. head_loss does all in one pass, which is called both."""
    if kernel == "head_loss":  # reads hidden states and weight, writes the gradient of each; three products
        moved = 2 * (s.sequence + s.vocabulary) * s.hidden * size
        return {"both": Work(moved, 6.0 * s.sequence * s.vocabulary * s.hidden)}
    qk, kv = s.sequence * (s.heads + s.kv_heads) * s.head_size, s.sequence * s.kv_heads * s.head_size
    query = s.sequence * s.hidden
    # the two products of a causal row: half of 2 x 2 S^2 H; backward makes one of them again and four new ones
    documents = DOCUMENTS if kernel in ("attention documents", "attention_varlen") else 1
    products = 2.0 * s.sequence**2 * s.hidden / documents
    tokens, squares = s.sequence * size, s.heads * s.sequence**2 * size
    table = s.sequence * s.head_size * 4
    found = {
        "rotary": (Work(2 * qk * size + table), Work(2 * qk * size + table)),
        # the backward pass also puts the gradient of v to its place
        "rotary_qkv": (Work(2 * qk * size + table), Work(2 * (qk + kv) * size + table)),
        "attention": (
            Work((2 * query + 2 * kv) * size, products),
            Work((4 * query + 4 * kv) * size, 2.5 * products),
        ),
        # half of the scores are read, the zeros of the others are written
        "softmax": (Work(1.5 * squares), Work(2.0 * squares)),
        "rms_norm": (Work(2 * s.hidden * tokens), Work(3 * s.hidden * tokens)),
        # forward reads both and writes the sum and its norm; backward reads two gradients and the sum, and writes one
        "rms_norm_residual": (Work(4 * s.hidden * tokens), Work(4 * s.hidden * tokens)),
        "swiglu": (Work(3 * s.width * tokens), Work(5 * s.width * tokens)),
        "cross_entropy": (Work(s.vocabulary * tokens), Work(2 * s.vocabulary * tokens)),
        "adamw": (Work(28.0 * s.parameters),),  # FP32: four read, three written
    }["attention" if kernel.startswith("attention") else kernel]
    return dict(zip(("forward", "backward"), found, strict=False))
