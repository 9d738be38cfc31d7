"""A worker process that runs the Triton kernels on CPU tensors, in Triton's interpreter (started by conftest.py).

A process of its own, because TRITON_INTERPRET must be set before Triton is first imported. It reads pickled requests
from stdin and answers on stdout. Triton's interpreter holds bfloat16 as bare bits and is silently wrong with them;
`repair_bfloat16` makes what our kernels do right (casts and products) and refuses everything else.
`repair_numbers` gives a kernel a float as the FP32 value that a GPU would (the interpreter passes Python's own), and
Liger's norms a root that the interpreter knows.
"""

import os
import pickle
import sys
import traceback
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton
import triton.language as tl
from liger_kernel.ops import fused_add_rms_norm, rms_norm
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from ziya_kernels import select
from ziya_kernels.benchmark import peers


def float32_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 -> the bits of the nearest bfloat16 (uint16), ties to even, NaN kept."""
    bits = np.require(x, dtype=np.float32, requirements="C").view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(x), np.uint16(0x7FC0), (rounded >> np.uint32(16)).astype(np.uint16))


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def repair_bfloat16() -> None:
    plain_cast, plain_dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
    plain_binary, plain_unary = InterpreterBuilder.binary_op, InterpreterBuilder.unary_op

    def widen(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle(bfloat16_to_float32(handle.data), tl.float32)

    def cast(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == target.scalar:
            return source
        source = widen(source)
        if target.scalar == tl.bfloat16:
            return TensorHandle(float32_to_bfloat16(plain_cast(self, source, tl.float32).data), tl.bfloat16)
        return plain_cast(self, source, target)

    def fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        return cast(self, source, target)

    def dot(self: Any, a: Any, b: Any, d: Any, precision: Any, accuracy: Any) -> Any:
        # the interpreter computes in full FP32 whatever is asked; a GPU would round FP32 inputs to TF32
        assert "IEEE" in str(precision), f"tl.dot without input_precision='ieee': {precision}"
        return plain_dot(self, widen(a), widen(b), d, precision, accuracy)

    def binary(self: Any, left: Any, right: Any, operation: Any) -> Any:
        assert tl.bfloat16 not in (left.dtype.scalar, right.dtype.scalar), "arithmetic in bfloat16: widen first"
        return plain_binary(self, left, right, operation)

    def unary(self: Any, source: Any, operation: Any) -> Any:
        assert source.dtype.scalar != tl.bfloat16, "arithmetic in bfloat16: widen first"
        return plain_unary(self, source, operation)

    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.create_fp_to_fp = fp_to_fp
    InterpreterBuilder.create_dot = dot
    InterpreterBuilder.binary_op = binary
    InterpreterBuilder.unary_op = unary


@triton.jit
def rsqrt(x):
    return tl.math.rsqrt(x)


def repair_numbers() -> None:
    plain = interpreter._implicit_cvt

    def convert(argument: Any) -> Any:
        if isinstance(argument, float):
            return tl.tensor(TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)
        return plain(argument)

    interpreter._implicit_cvt = convert
    for module in (rms_norm, fused_add_rms_norm):  # libdevice's, which is code for a GPU
        module.rsqrt = rsqrt


@triton.jit
def cast_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(y_ptr + index, tl.load(x_ptr + index).to(y_ptr.dtype.element_ty))


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tile = index[:, None] * SIZE + index[None, :]
    tl.store(c_ptr + tile, tl.dot(tl.load(a_ptr + tile), tl.load(b_ptr + tile), input_precision="ieee"))


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=dtype)
    cast_kernel[(1,)](x, y, BLOCK=x.numel())
    return y


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    c = torch.empty(a.shape)
    dot_kernel[(1,)](a, b, c, SIZE=len(a))
    return c


def rotary_of_tanh(qkv: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    """tanh keeps its output for its backward pass; rotary_qkv writes over it."""
    return select("triton", torch.device("cpu")).rotary_qkv(qkv.tanh(), *others)


def model(dtype: torch.dtype, kernels: str) -> tuple[torch.Tensor, ...]:
    """A small model of the engine on `kernels`: the loss of each token, and the gradient of every weight."""
    from megatron_ziya.config import Architecture, Parallel
    from megatron_ziya.model import parallelize
    from megatron_ziya.model.llama import MicroBatch
    from megatron_ziya.parallel.mesh import Mesh

    a = Architecture(
        vocabulary_size=131, hidden_size=64, intermediate_size=104, layers=2, heads=2, kv_heads=1, max_positions=20
    )
    generator, mesh = torch.Generator().manual_seed(7), Mesh()
    (whole,) = parallelize.build(a, Parallel(), mesh, select(kernels, mesh.device), dtype)

    def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        # matrices of four times the usual size: at 0.02 the layers of so small a model hardly change what they read
        return parallelize.initial_weight(name, shape, a, 0) * (4 if len(shape) == 2 else 1)

    parallelize.fill(whole, mesh, weight)
    tokens, targets = torch.randint(131, (2, 1, 20), generator=generator)
    starts = torch.tensor([[0] * 7 + [7] * 13], dtype=torch.int32)
    loss, losses = whole(tokens.flatten(), MicroBatch(tokens, targets, targets % 5 > 0, starts))
    loss.backward()
    return losses, *(weight.grad for weight in whole.parameters())


def answer(operator: str, arguments: tuple, grads: tuple) -> tuple[tuple, tuple, tuple]:
    """-> (outputs, gradients of the arguments that require one, arguments after the call). "liger NAME" is theirs."""
    side = None
    if operator.startswith("liger "):
        side = peers.liger(operator.split()[1])
        assert side is not None
        function, arguments = side.function, side.prepare(*arguments)
    else:
        kernels = select("triton", torch.device("cpu"))
        own = {"cast": cast, "dot": dot, "model": model, "rotary_of_tanh": rotary_of_tanh}
        function = own.get(operator) or getattr(kernels, operator)
    outputs = function(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    gradients = torch.autograd.grad(outputs, leaves, grads) if grads else ()
    gradients = tuple(side.gradients(gradients)) if side and grads else gradients
    return tuple(x if x is None else x.detach() for x in outputs), gradients, arguments


def main() -> None:
    repair_bfloat16()
    repair_numbers()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            result: Any = answer(*request)
        except Exception as error:
            result = error if isinstance(error, ValueError) else RuntimeError(traceback.format_exc())
        pickle.dump(result, answers)
        answers.flush()


if __name__ == "__main__":
    main()
