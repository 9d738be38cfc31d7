"""What the benchmark scripts say of the machine, in general words: nothing here names a host."""

import datetime
import os
import platform
from pathlib import Path


def processor() -> str:
    """Model of the processor and its wide instructions, or its kind where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.machine()
    told = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    models = [value.strip() for key, _, value in told if key.strip() == "model name"]
    flags = next((value.split() for key, _, value in told if key.strip() == "flags"), [])
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return ", ".join([*(models or [platform.machine()])[:1], *wide])


def here() -> str:
    """Date, cores that may be used, processor."""
    return f"{datetime.date.today()}, {len(os.sched_getaffinity(0))} cores ({processor()})"
