"""`ziya benchmark kernels`: what each operator costs on this machine, beside what others make of it."""

import argparse
import ctypes
import dataclasses
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from ziya_kernels import CHOICES, select
from ziya_kernels.benchmark import peers, roof, table
from ziya_kernels.benchmark.cases import KERNELS, SHAPES
from ziya_kernels.benchmark.measure import Row, compare

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROW_ON_A_CPU = 512  # tokens, unless --sequence says another; a whole row of 4,096 takes minutes
EXAMPLE = """example:
  ziya benchmark kernels --shapes llama2-7b,llama2-70b --csv kernels.csv --markdown kernels.md --png kernels.png
  ziya benchmark kernels --shapes tiny --kernels swiglu,rms_norm --dtype bf16 --threads 2"""


def kernels(arguments: Sequence[str]) -> int:
    """`ziya benchmark kernels [--shapes A,B] [--kernels A,B] ...`; 1 if one of our own kernels could not run."""
    options = _parser().parse_args(list(arguments))
    device = torch.device("cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu")
    if options.device == "cuda" and device.type == "cpu":
        raise ValueError("--device=cuda, but torch sees no GPU; use --device cpu or leave it out")
    on_gpu = device.type == "cuda"
    shapes = _chosen("--shapes", options.shapes, SHAPES)
    names = _chosen("--kernels", options.kernels or ",".join(KERNELS), KERNELS)
    types = _chosen("--dtype", options.dtype or ("bf16" if on_gpu else "fp32"), TYPES)
    for name in ("rounds", "threads", "sequence"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name}={value} must be 1 or more")
    if not on_gpu:
        torch.set_num_threads(options.threads)
        _keep_freed_memory()
    rounds = options.rounds or (20 if on_gpu else 7)
    ours = select(options.ours, device)
    rows: list[Row] = []
    roofs = {name: roof.of_device(device, TYPES[name]) for name in types}
    for shape_name in shapes:
        shape = SHAPES[shape_name]
        length = options.sequence or (shape.sequence if on_gpu else min(shape.sequence, ROW_ON_A_CPU))
        shape = dataclasses.replace(shape, sequence=length)
        for type_name in types:
            for kernel in names:
                if kernel == "adamw" and type_name != types[0]:
                    continue  # always FP32
                print(f"{shape_name} {type_name} {kernel} ...", file=sys.stderr, flush=True)
                there = peers.sides(kernel, ours, options.compile)
                rows += compare(kernel, shape, TYPES[type_name], there, roofs[type_name], rounds, device)
    text = report(rows, roofs, shapes, names, ours.name, rounds, options.sequence, device)
    print(text)
    title = f"{datetime.date.today()}, {next(iter(roofs.values())).name}, {', '.join(types)}"
    if options.csv:
        table.write_csv(options.csv, rows)
    if options.markdown:
        page = [f"# Kernels: {title}", f"`ziya benchmark kernels {shlex.join(arguments)}`", text]
        if options.png:
            place = os.path.relpath(options.png, options.markdown.parent)
            page.append(f"![How many times as fast as eager, and the share of the roof, of each kernel]({place})")
        table.write_text(options.markdown, "\n\n".join(page) + "\n")
    if options.png:
        table.draw(options.png, rows, title)
    return int(any(row.failure and row.side == "ours" for row in rows))


def report(
    rows: Sequence[Row],
    roofs: dict[str, roof.Roof],
    shapes: Sequence[str],
    names: Sequence[str],
    ours: str,
    rounds: int,
    sequence: int | None,
    device: torch.device,
) -> str:
    """What was measured and how, the table, and what follows from it (a GPU) or what is only predicted (a CPU)."""
    parts = [_heading(roofs, ours, rounds, sequence, device), table.measured(rows)]
    if device.type == "cuda":
        first = next(iter(roofs.values()))
        parts.append("\n".join(f"- {line}" for line in table.goals(rows, first.copy / first.bandwidth)))
    else:
        sheets = "; ".join(sheet.source for sheet in roof.DATA_SHEETS)
        parts.append(
            "This machine has no GPU: nothing below was measured. Predicted floor in BF16 at the whole row length,\n"
            f"the larger of bytes / bandwidth and FLOPs / peak ({sheets}):"
        )
        parts.append(table.predicted(shapes, names))
    return "\n\n".join(parts)


def _heading(roofs: dict[str, roof.Roof], ours: str, rounds: int, sequence: int | None, device: torch.device) -> str:
    clock = "GPU time (CUDA events, L2 flushed before each)"
    length = f"rows of {sequence or SHAPES['llama2-7b'].sequence} tokens"
    if device.type == "cpu":
        clock = f"CPU time of all threads (load average {os.getloadavg()[0]:.1f} of {os.cpu_count()} CPUs at the end)"
        length = f"rows cut to {sequence or ROW_ON_A_CPU} tokens at most"
    lines = [
        f"{datetime.date.today()}, torch {torch.__version__}, {platform.machine()}; ours = kernels={ours}.",
        f"{clock}, median of {rounds} rounds in which the sides take turns; one row a batch, {length}.",
        "Backward: the gradients alone. Error: the largest, against FP64, as a share of the largest value, over 512",
        "tokens at most. Peak: above what was held before the call.",
    ]
    if device.type == "cpu":
        lines.append("What fits in a cache can pass 100 % of a roof that was measured in memory.")
    for name, one in roofs.items():
        figures = f"{1e-9 * one.bandwidth:.1f} GB/s, {table.flops(1e-12 * one.peak)} ({one.source})"
        lines.append(f"Roof, {name}: {one.name}, {figures}.")
        if device.type == "cuda":
            lines.append(f"A copy reaches {1e-9 * one.copy:.1f} GB/s here.")
    if device.type == "cuda":
        here = peers.installed()
        lines.append("Others: " + ", ".join(f"{name} {'found' if found else 'absent'}" for name, found in here.items()))
    return "\n".join(lines)


def _keep_freed_memory() -> None:
    """As a training run does: else each large result is mapped and zeroed anew, a third of all time here."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent outside glibc
    if mallopt is not None:
        for parameter, value in ((-3, 2**30), (-1, 2**31 - 1)):
            mallopt(parameter, value)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def _chosen(option: str, given: str, known: Collection[str]) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: {name!r} is not known; use some of {','.join(known)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ziya benchmark kernels",
        description="Time, share of the roof, memory and error of each kernel beside PyTorch, Liger, flash-attn, apex.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", default="llama2-7b", help=f"of {','.join(SHAPES)}; default llama2-7b")
    parser.add_argument("--kernels", help=f"of {','.join(KERNELS)}; default all")
    parser.add_argument("--dtype", help="of fp32,bf16,fp16; default bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--ours", default="auto", choices=CHOICES, help="which of our own; default auto")
    parser.add_argument("--compile", action="store_true", help="also eager through torch.compile; takes minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU if there is one")
    parser.add_argument(
        "--sequence", type=int, help=f"tokens of a row; default the shape's, at most {ROW_ON_A_CPU} on a CPU"
    )
    parser.add_argument("--rounds", type=int, help="default 20 on a GPU, 7 on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; default 1")
    parser.add_argument("--csv", type=Path, help="write every figure here")
    parser.add_argument("--markdown", type=Path, help="write what is printed here")
    parser.add_argument("--png", type=Path, help="draw here")
    return parser
