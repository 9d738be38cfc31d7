"""What a process does before it computes: device, threads, memory allocator."""

import ctypes
import mmap
import os
import signal

import torch


def prepare(device: str, threads: int, deterministic: bool = False) -> torch.device:
    """The device of this process, ready for work; `threads` = 0 leaves the number of CPU threads as it is."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the only way to tell cuBLAS
        torch.use_deterministic_algorithms(True)
    if threads:
        torch.set_num_threads(threads)
    chosen = choose_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    return chosen


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` -> the device of this process; each local rank takes its own GPU."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("run.device=cuda, but torch sees no GPU; use run.device=cpu or auto")
    if name == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks, and the kernel give them in huge pages.

    Else each chunk of logits is mapped and zeroed by the kernel anew (vocabulary 35,000, hidden 128, BF16, two cores:
    1.14 -> 0.78 s a step), and where small pages happen to lie makes one process 8 % slower than the next.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # not glibc
        return
    for parameter, value in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**26)):
        libc.mallopt(parameter, value)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
    # the heap grows by address space alone: pages come when they are touched
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = 2**29
    blocks = [block for block in (libc.malloc(ctypes.c_size_t(size)) for _ in range(8)) if block]
    for block in blocks:
        libc.madvise(-(-block // 2**12) * 2**12, size - 2**12, mmap.MADV_HUGEPAGE)
    for block in blocks:
        libc.free(block)


class StopRequest:
    """Whether this process has been asked to stop: by Ctrl-C, or by SIGTERM or SIGUSR1 as schedulers send them.

    The first signal lets the step that runs be finished and saved; a second one ends the process at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopRequest":
        self.before = [signal.signal(number, self._ask) for number in self.SIGNALS]
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in zip(self.SIGNALS, self.before, strict=True):
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
