"""The rows of a benchmark as an aligned Markdown table, CSV and a picture; each file appears whole or not at all."""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from ziya_kernels.benchmark.cases import KERNELS, SHAPES, work
from ziya_kernels.benchmark.measure import Row
from ziya_kernels.benchmark.roof import DATA_SHEETS

HEAD = ("shape", "kernel", "pass", "type", "side", "ms", "x eager", "rate", "bound", "of roof", "peak MiB", "error")


def _number(value: float) -> str:
    """Three digits, as a person writes them."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def flops(tera: float) -> str:
    """A rate in words: what a CPU thread does is said in GFLOP/s."""
    return f"{_number(tera)} TFLOP/s" if tera >= 1 else f"{_number(1e3 * tera)} GFLOP/s"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that also reads well in a terminal."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [[*head], ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def cells(row: Row) -> tuple[str, ...]:
    first = (row.shape, row.kernel, row.direction, row.dtype, row.side)
    if row.failure:
        return (*first, "-", "", "", "", "", "", "failed")
    rate = flops(row.tflop_s) if row.bound == "compute" else f"{_number(row.gb_s)} GB/s"
    figures = (_number(row.ms), f"{row.eager:.2f}" if row.eager else "", rate, row.bound, f"{100 * row.share:.0f} %")
    return (*first, *figures, f"{row.peak_mib:.1f}", f"{row.error:.1e}")


def measured(rows: Sequence[Row]) -> str:
    """The table, and a line for each side that could not run."""
    lines = [aligned(HEAD, [cells(row) for row in rows])]
    lines += [f"{row.side} failed on {row.kernel} ({row.shape}): {row.failure}" for row in rows if row.failure]
    return "\n".join(lines)


def predicted(shapes: Sequence[str], kernels: Sequence[str]) -> str:
    """Least time in BF16 on each card of the data sheets, at the shapes' own row length. A prediction, not a figure."""
    head = ("shape", "kernel", "pass", "MB", "GFLOP", *(f"{roof.name}, ms" for roof in DATA_SHEETS))
    rows = []
    for shape in shapes:
        for kernel in kernels:
            for direction, amount in work(kernel, SHAPES[shape], 2).items():
                floors = [_number(1e3 * roof.floor(amount)) for roof in DATA_SHEETS]
                figures = (_number(1e-6 * amount.bytes), _number(1e-9 * amount.flops))
                rows.append((shape, kernel, direction, *figures, *floors))
    return aligned(head, rows)


def goals(rows: Sequence[Row], reached: float) -> list[str]:
    """On a GPU: each goal of the kernels with what was measured. `reached` is a copy's share of the memory's roof."""
    said = []
    ours = [row for row in rows if row.side == "ours" and not row.failure]
    memory = [row for row in ours if row.bound == "memory"]
    good = [row for row in memory if row.share >= 0.9 * reached]
    said.append(f"memory-bound kernels at 90 % of a copy's bandwidth or more: {len(good)} of {len(memory)}")
    for other, names in (
        ("flash-attn", ("attention", "attention documents", "attention_varlen")),
        ("liger", ("rotary", "rms_norm", "swiglu", "cross_entropy")),
    ):
        theirs = {_key(row): row.ms for row in rows if row.side == other and not row.failure and row.kernel in names}
        if not theirs:
            said.append(f"beside {other}: not installed, or nothing ran")
            continue
        both = [(row.ms, theirs[_key(row)]) for row in ours if _key(row) in theirs]
        mine, yours = sum(a for a, _ in both), sum(b for _, b in both)
        verdict = "met" if mine <= yours else "missed"
        said.append(f"{', '.join(names)}: ours {_number(mine)} ms, {other} {_number(yours)} ms in all: {verdict}")
    return said


def _key(row: Row) -> tuple[str, str, str, str]:
    return row.shape, row.kernel, row.direction, row.dtype


# --- Files


def _write(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    write(part)
    part.replace(path)


def write_text(path: Path, text: str) -> None:
    _write(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every field of every row, with all its digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Row)]
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    write_text(path, out.getvalue())


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """For each shape and type: time beside eager, and share of the roof, a group of bars for each kernel and pass."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if not row.failure]
    shapes = list(dict.fromkeys(row.shape for row in rows))
    series = list(dict.fromkeys((row.side, row.dtype) for row in rows))
    several = len({row.dtype for row in rows if row.kernel != "adamw"}) > 1
    order = [f"{kernel} {way}" for kernel in KERNELS for way in ("forward", "backward", "both")]
    figure = Figure(figsize=(13, 0.8 + 5.2 * len(shapes)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shapes), 2, squeeze=False)
    for (left, right), shape in zip(axes, shapes, strict=True):
        own = [row for row in rows if row.shape == shape]
        labels = [name for name in order if any(f"{row.kernel} {row.direction}" == name for row in own)]
        height = 0.8 / len(series)
        for number, (side, dtype) in enumerate(series):
            mine = [row for row in own if (row.side, row.dtype) == (side, dtype)]
            label = f"{side}, {dtype}" if several else side
            places = [labels.index(f"{row.kernel} {row.direction}") + number * height for row in mine]
            left.barh(places, [row.eager for row in mine], height, label=label)
            right.barh(places, [100 * row.share for row in mine], height, label=label)
        for axis in (left, right):
            axis.set_yticks([place + 0.4 - height / 2 for place in range(len(labels))], labels)
            axis.invert_yaxis()
            axis.grid(axis="x", alpha=0.3)
        left.axvline(1.0, color="black", linewidth=0.8)
        left.set_title(f"{shape}: times as fast as eager")
        right.set_title(f"{shape}: % of the roof")
        right.legend()
    figure.suptitle(title)
    _write(path, lambda part: figure.savefig(part, format="png", dpi=110))
