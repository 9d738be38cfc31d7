"""What every Triton file shares: argument checks with a message, and the limits of one program."""

import torch
import triton
from torch import Tensor

TYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST_ROW = 65536  # elements of a row that one program holds in registers


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors (TRITON_INTERPRET=1; for tests)."""
    return bool(triton.knobs.runtime.interpret)


def check(operator: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors are on one GPU (any device in the interpreter) and of one 16/32-bit type.

    Arguments whose type is free to differ (indices, tables, weights) are left out by the caller.
    """
    (first_name, first), *others = tensors.items()
    if first.device.type != "cuda" and not interpreted():
        raise ValueError(f"{operator}: {first_name} is on {first.device}; Triton needs a GPU, use kernels=torch")
    if first.dtype not in TYPES:
        raise ValueError(
            f"{operator}: {first_name} is {first.dtype}; use float32, float16 or bfloat16, or kernels=torch"
        )
    for name, tensor in others:
        if tensor.device != first.device:
            raise ValueError(
                f"{operator}: {name} is on {tensor.device} but {first_name} on {first.device}; move one of them"
            )
        if tensor.dtype != first.dtype:
            raise ValueError(
                f"{operator}: {name} is {tensor.dtype} but {first_name} {first.dtype}; convert one of them"
            )


def as_rows(x: Tensor) -> Tensor:
    """[..., H] -> [rows, H] with neighbours side by side; a view where the strides allow it, else a copy."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def row_block(operator: str, width: int) -> int:
    """The tile that holds a whole row of `width` elements. Raises ValueError past the limit."""
    if width > WIDEST_ROW:
        raise ValueError(f"{operator}: a row of {width} elements is past the limit of {WIDEST_ROW}; use kernels=torch")
    return triton.next_power_of_2(width)


def row_warps(block: int) -> int:
    """Warps for a row of `block` elements: 32 elements a thread at most, so that nothing spills (budgets.json)."""
    return max(4, min(16, block // 1024))
