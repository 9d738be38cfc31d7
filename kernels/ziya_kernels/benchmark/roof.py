"""What a device could do at best, in bytes and FLOPs a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ziya_kernels.benchmark.cases import Work


@dataclass(frozen=True)
class Roof:
    """One device and type: the time of any work is at least bytes / bandwidth, and at least FLOPs / peak."""

    name: str
    bandwidth: float  # bytes/s
    peak: float  # FLOP/s
    source: str
    copy: float = 0.0  # bytes/s that a plain copy reaches here; 0: not measured

    def floor(self, work: Work) -> float:
        """Seconds below which no kernel can do `work`."""
        return max(work.bytes / self.bandwidth, work.flops / self.peak)

    def bound(self, work: Work) -> str:
        return "memory" if work.bytes / self.bandwidth >= work.flops / self.peak else "compute"


# Dense BF16 on tensor cores. H100's sheet states twice that, "with sparsity".
DATA_SHEETS = (
    Roof("A100", 2039e9, 312e12, "NVIDIA A100 data sheet, SXM 80 GB: 2,039 GB/s, 312 TFLOP/s"),
    Roof("H100", 3350e9, 989.4e12, "NVIDIA H100 data sheet, SXM: 3.35 TB/s, 989.4 TFLOP/s"),
)
# compute capability -> FLOPs a clock and SM: dense 16-bit products on tensor cores, FP32 outside them.
# From NVIDIA's architecture white papers: 312 TFLOP/s = 108 SMs x 1.41 GHz x 2048 (A100), 989.4 = 132 x 1.83 x 4096
# (H100), 71 = 82 x 1.695 x 512 (RTX 3090), 165.2 = 128 x 2.52 x 512 (RTX 4090).
FLOPS_A_CLOCK = {(8, 0): (2048, 128), (8, 6): (512, 256), (8, 9): (512, 256), (9, 0): (4096, 256)}


def processor() -> str:
    """Its model, as Linux tells it; elsewhere "CPU"."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def of_device(device: torch.device, dtype: torch.dtype) -> Roof:
    """The roof of this machine: a GPU's from its own properties, a CPU's measured with a copy and a product.

    What a GPU does not tell (or what is not in the table above) is measured there too.
    """
    copy = measured_copy(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"{processor()}, {threads} thread{'s' * (threads > 1)}"
        return Roof(name, copy, measured_product(device, dtype), "measured", copy)
    found = torch.cuda.get_device_properties(device)
    bandwidth = 2e3 * getattr(found, "memory_clock_rate", 0) * getattr(found, "memory_bus_width", 0) / 8  # from kHz
    products, plain = FLOPS_A_CLOCK.get((found.major, found.minor), (0, 0))
    a_clock = plain if dtype == torch.float32 else products
    peak = 1e3 * getattr(found, "clock_rate", 0) * found.multi_processor_count * a_clock
    said = f"bandwidth {'from its memory clock and bus' if bandwidth else 'measured'}, "
    said += f"FLOP/s {'from its SMs and clock' if peak else 'measured'}"
    return Roof(found.name, bandwidth or copy, peak or measured_product(device, dtype), said, copy)


def _rate(call: Callable[[], object], amount: float, device: torch.device) -> float:
    """Amount a second, the best of a few tries: a roof is what can be reached, not what is usual."""
    call()
    return amount / min(seconds(call, device) for _ in range(5))


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call: a GPU's own clock; on a CPU the CPU time of all threads, which neighbours do not lengthen."""
    if device.type == "cpu":
        begin = time.process_time()
        call()
        return time.process_time() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return 1e-3 * float(first.elapsed_time(last))


def measured_copy(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy or of a change in place, whichever is faster; no cache holds them.

    A CPU's copy reads its target too before it writes it, which a change in place has no need of.
    """
    count = 1 << (28 if device.type == "cuda" else 26)  # FP32 numbers: 256 MiB are more than any cache
    source, target = (torch.ones(count, device=device) for _ in range(2))
    calls = (lambda: target.copy_(source)), (lambda: target.neg_())
    return max(_rate(call, 8.0 * count, device) for call in calls)


def measured_product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a square product."""
    size = 8192 if device.type == "cuda" else 768
    a = torch.ones(size, size, device=device, dtype=dtype)
    return _rate(lambda: a @ a, 2.0 * size**3, device)
