"""FP32 matrix products of `tools/compare_peers.py`'s yardstick, by MKL (torch's `@` on a CPU) and by oneDNN.

`model/linear.py` takes oneDNN's on every processor but Intel's; this says whether that is right here. One thread,
forward products of 256 tokens; the two take turns, and the median of the calls counts.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from machine import here

from megatron_ziya.model import linear

EXAMPLE = "example:\n  python tools/benchmark_products.py --calls 400"
TOKENS = 256
MATRICES = {
    "query, key, value": (768, 256),
    "output": (256, 256),
    "gate, up": (1376, 256),
    "down": (256, 688),
    "head": (8192, 256),
}
"""`[outputs, inputs]`."""


def medians(calls: int) -> dict[str, tuple[float, float]]:
    """Microseconds of a product by MKL and by oneDNN, for each matrix."""
    found = {}
    for name, (outputs, inputs) in MATRICES.items():
        x, weight = torch.randn(TOKENS, inputs), torch.randn(outputs, inputs)
        ways: list[Callable[[], torch.Tensor]] = [
            lambda x=x, weight=weight: x @ weight.t(),
            lambda x=x, weight=weight: linear.onednn(x, weight),
        ]
        taken: list[list[float]] = [[], []]
        for _ in range(calls):
            for way, times in zip(ways, taken, strict=True):
                begin = time.perf_counter()
                way()
                times.append(time.perf_counter() - begin)
        mkl, onednn = (1e6 * statistics.median(times) for times in taken)
        found[name] = mkl, onednn
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="FP32 products by MKL and by oneDNN.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--calls", type=int, default=400, help="of each product (default 400)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{here()}, torch {torch.__version__}; the engine takes {'oneDNN' if linear.prefers_onednn() else 'MKL'}\n")
    print("| matrix | MKL, us | oneDNN, us | oneDNN / MKL |\n|---|---|---|---|")
    for name, (mkl, onednn) in medians(options.calls).items():
        print(f"| {name} | {mkl:.0f} | {onednn:.0f} | {onednn / mkl:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
