"""Time, peak memory and error of the sides of one kernel, taking turns, so that a busy machine slows all alike."""

import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ziya_kernels.benchmark.cases import Shape, for_error, inputs, work
from ziya_kernels.benchmark.peers import Side
from ziya_kernels.benchmark.roof import Roof, seconds

SHORTEST = 2e-3  # seconds of a sample on a CPU; calls that take less are repeated within it


@dataclass(frozen=True)
class Row:
    """One side's figures for one kernel and pass; `failure` instead of figures where it could not run."""

    shape: str
    kernel: str
    direction: str  # forward, backward or both
    dtype: str
    side: str
    ms: float = 0.0  # median of the rounds
    eager: float = 0.0  # eager's time as a multiple of it
    gb_s: float = 0.0
    tflop_s: float = 0.0
    bound: str = ""  # memory or compute
    share: float = 0.0  # of the roof
    peak_mib: float = 0.0  # above what was held before the call
    error: float = 0.0  # the largest, as a share of the largest value, against FP64
    failure: str = ""


class Prepared:
    """One side, ready to run: its arguments, and the graph that its backward pass goes back through."""

    def __init__(self, side: Side, arguments: tuple[Any, ...], seeds: Sequence[Tensor] | None) -> None:
        self.side = side
        self.arguments = side.prepare(*_cloned(arguments))
        self.leaves = [x for x in self.arguments if isinstance(x, Tensor) and x.requires_grad]
        self.outputs: tuple[Tensor, ...] = ()
        self.seeds = seeds

    def forward(self) -> None:
        outputs = self.side.function(*self.arguments)
        self.outputs = () if outputs is None else outputs if isinstance(outputs, tuple) else (outputs,)

    def backward(self) -> tuple[Tensor, ...]:
        if self.seeds is None:
            self.seeds = seeds_of(self.outputs)
        return torch.autograd.grad(self.outputs, self.leaves, self.seeds, retain_graph=True)

    def both(self) -> tuple[Tensor, ...]:
        self.forward()
        return self.backward()

    def results(self) -> dict[str, list[Tensor]]:
        """Of one forward and one backward pass, in the layout of our operator."""
        self.forward()
        if not self.outputs:  # works in place
            return {"forward": [x for x in self.arguments[:3] if isinstance(x, Tensor)]}
        found = [x.detach().clone() for x in self.outputs]
        return {"forward": found, "backward": self.side.gradients(self.backward())}


def _cloned(arguments: tuple[Any, ...], widen: bool = False) -> tuple[Any, ...]:
    def copy(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        value = x.detach().double() if widen and x.is_floating_point() else x.detach().clone()
        return value.requires_grad_(x.requires_grad)

    return tuple(copy(x) for x in arguments)


def seeds_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the outputs, the same on every call."""
    generator = torch.Generator(outputs[0].device).manual_seed(2)
    return [torch.randn(x.shape, generator=generator, device=x.device).to(x.dtype) for x in outputs]


def errors(
    side: Side, arguments: tuple[Any, ...], truth: dict[str, list[Tensor]], seeds: list[Tensor]
) -> dict[str, float]:
    """pass -> the largest error of any result, as a share of the pass's largest value in FP64, or of 1 if all are 0."""
    found = Prepared(side, arguments, seeds or None).results()
    shares = {}
    for direction, exact in truth.items():
        largest = max(float(want.abs().max()) for want in exact) or 1.0
        wrong = max(float((have - want).abs().max()) for have, want in zip(found[direction], exact, strict=True))
        shares[direction] = wrong / largest
    return shares


def truth_of(eager: Side, arguments: tuple[Any, ...]) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Eager's formula in FP64, and the gradients of its outputs (of the type that a side gives)."""
    with torch.no_grad():
        outputs = eager.function(*eager.prepare(*_cloned(arguments)))
    outputs = () if outputs is None else outputs if isinstance(outputs, tuple) else (outputs,)
    seeds = seeds_of(outputs) if outputs else []
    exact = Prepared(eager, _cloned(arguments, widen=True), [seed.double() for seed in seeds] or None)
    return exact.results(), seeds


def compare(
    kernel: str, shape: Shape, dtype: torch.dtype, sides: Sequence[Side], roof: Roof, rounds: int, device: torch.device
) -> list[Row]:
    """The rows of one kernel. A side that cannot run here gets a row that says why; the others go on."""
    known: dict[str, Any] = {
        "shape": shape.name,
        "kernel": kernel,
        "dtype": str(torch.float32 if kernel == "adamw" else dtype)[6:],
    }
    small = inputs(kernel, for_error(shape), dtype, device)
    truth, seeds = truth_of(next(side for side in sides if side.name == "eager"), small)
    arguments = inputs(kernel, shape, dtype, device)
    failed: list[Row] = []
    ready: dict[str, Prepared] = {}
    wrong: dict[str, dict[str, float]] = {}
    for side in sides:
        try:
            wrong[side.name] = errors(side, small, truth, seeds)
            prepared = Prepared(side, arguments, None)
            prepared.forward()
            if prepared.outputs:
                prepared.backward()
            ready[side.name] = prepared
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            failed.append(Row(**known, direction="both", side=side.name, failure=reason))
    del small, truth, seeds, arguments
    size = 4 if dtype == torch.float32 else 2
    rows = []
    for direction, amount in work(kernel, shape, size).items():
        calls = {name: getattr(prepared, direction) for name, prepared in ready.items()}
        taken = times(calls, rounds, device)
        for name, call in calls.items():
            found, floor = taken[name], roof.floor(amount)
            rows.append(
                Row(
                    **known,
                    direction=direction,
                    side=name,
                    ms=1e3 * found,
                    eager=taken["eager"] / found if "eager" in taken else 0.0,
                    gb_s=1e-9 * amount.bytes / found,
                    tflop_s=1e-12 * amount.flops / found,
                    bound=roof.bound(amount),
                    share=floor / found,
                    peak_mib=peak(call, device) / 2**20,
                    error=wrong[name].get(direction, max(wrong[name].values())),
                )
            )
    return rows + failed


def times(calls: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds a call, the median of the rounds; in each round every side has a turn, another one first each time."""
    flush = None
    if device.type == "cuda":  # what the last call left in the L2 cache must not serve the next
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
        flush = torch.empty(max(2 * cache, 1 << 28), dtype=torch.uint8, device=device)
    repeats = {}
    for name, call in calls.items():
        call()
        one = seconds(call, device)
        repeats[name] = 1 if flush is not None else max(1, min(1000, round(SHORTEST / max(one, 1e-6))))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for _ in range(rounds):
        for name in order:
            if flush is not None:
                flush.zero_()
            taken[name].append(seconds(_repeated(calls[name], repeats[name]), device) / repeats[name])
        order.append(order.pop(0))
    return {name: statistics.median(found) for name, found in taken.items()}


def _repeated(call: Callable[[], Any], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            call()

    return run


def peak(call: Callable[[], Any], device: torch.device) -> float:
    """Bytes that a call holds at its fullest moment, above what was held before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return float(torch.cuda.max_memory_allocated(device) - before)
    with (
        _quiet(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded,
    ):
        kept = call()
    del kept
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = fullest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        fullest = max(fullest, held)
    return float(fullest)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that the profiler writes to stderr when it starts and stops."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
