"""The report's pictures, as SVG text to put into the page."""

import io
import math
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ziya_data.factory import score

LEFT, GREY = "#2a6f97", "#b8bfc6"
COLOURS = ("#2a6f97", "#e07a5f", "#81b29a", "#f2cc8f", "#6d597a", "#8d99ae", "#bc6c25", "#457b9d", "#a3b18a", "#d4a5a5")


WIDE = 7
"""Inches of a drawing that takes the width of the page."""


def svg(figure: Figure, name: str) -> str:
    """The drawing alone, without XML header and date; ids carry `name`, for one page holds several drawings."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)

    def as_share(size: re.Match[str]) -> str:  # of the page, so that a small drawing has letters of the same size
        return f'style="width:{min(100 * float(size[1]) / (72 * WIDE), 100):.0f}%;height:auto"'

    return re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', as_share, text, count=1)


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


def funnel(report: dict[str, Any]) -> str:
    """Per cent of the raw bytes left after each part, beside Ziya2's own."""
    stages = ["raw", "preprocess", "score\n+ rules", "de-duplicate"]
    shares = {row["stage"]: row["share"] for row in report["totals"]}
    ours = [shares[name] for name in ("raw", "preprocess", "rules", "deduplicate")]
    figure = Figure(figsize=(WIDE, 3.2))
    axes = figure.subplots()
    for shift, values, colour, label in (
        (-0.2, ours, LEFT, "this run"),
        (0.2, report["ziya2"], GREY, "Ziya2 (Fig. 2)"),
    ):
        bars = axes.bar([i + shift for i in range(4)], values, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_xticks(range(4), stages)
    axes.set_ylabel("% of the raw text left")
    axes.set_ylim(0, 112)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    bare(axes)
    return svg(figure, "funnel")


def by_source(report: dict[str, Any]) -> str:
    """Of each source and language: what was kept, and what each part took, in per cent of its raw bytes."""
    rows = [row for row in report["funnel"] if row["bytes"][0] > 0][::-1]
    labels = [f"{row['source']} {row['language']}  {size(row['bytes'][0])}" for row in rows]
    figure = Figure(figsize=(WIDE, 0.6 + 0.3 * len(rows)))
    axes = figure.subplots()
    left = [0.0] * len(rows)
    parts = ["kept", "de-duplicate", "rules", "score", "preprocess"]
    for part, colour in zip(parts, (LEFT, *COLOURS[1:]), strict=False):
        widths = []
        for row in rows:
            raw, *after = row["bytes"]
            took = [raw - after[0], after[0] - after[1], after[1] - after[2], after[2] - after[3], after[3]]
            widths.append(100 * took[4 - parts.index(part)] / raw)
        axes.barh(range(len(rows)), widths, 0.7, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the raw text")
    axes.legend(frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.4, 1.0), fontsize=8)
    bare(axes)
    return svg(figure, "sources")


def reasons(report: dict[str, Any], most: int = 20) -> str:
    """The commonest reasons by documents."""
    rows = list(report["reasons"].items())[:most][::-1]
    figure = Figure(figsize=(WIDE, 0.6 + 0.24 * max(len(rows), 1)))
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in rows], [count["documents"] for _, count in rows], 0.7, color=LEFT)
    labels = [f"{count['documents']:,}  ({size(count['bytes'])})" for _, count in rows]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("documents dropped")
    axes.margins(x=0.25)
    bare(axes)
    return svg(figure, "reasons")


def scores(report: dict[str, Any]) -> str:
    """Histogram of the perplexity, or a classifier's score, of each ranked source and language, with the cuts between
    high, medium and dropped."""
    rows = [row for row in report["score"] if row["high"] is not None]
    if not rows:
        return ""
    columns = 3
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.5 * columns + 0.5, 1.9 * lines + 0.3))
    # tight_layout would draw it all once more to find these distances.
    grid = figure.subplots(lines, columns, squeeze=False, gridspec_kw={"wspace": 0.3, "hspace": 0.5})
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        places = sorted(map(int, row["histogram"]))
        counts = [row["histogram"].get(str(place), 0) for place in range(places[0], places[-1] + 1)]
        edges = [place / 10 for place in range(places[0], places[-1] + 2)]
        if row["measure"] == "perplexity":
            edges = [math.exp(edge) for edge in edges]
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())  # ninety marks, and powers of ten as formulas, take longer
            axes.xaxis.set_major_formatter("{x:g}")  # to draw than all the rest
        else:
            edges = [edge - score.EVEN for edge in edges]
        axes.stairs(counts, edges, fill=True, color=LEFT)
        for name, colour in (("high", COLOURS[2]), ("medium", COLOURS[1])):
            if row[name] is not None:
                axes.axvline(row[name], color=colour, linewidth=1.5)
        axes.set_title(f"{row['source']} {row['language']}", fontsize=8)
        axes.tick_params(labelsize=7)
        bare(axes)
    return svg(figure, "scores")


def seconds(report: dict[str, Any]) -> str:
    """Seconds that each part took, in all processes."""
    rows = list(report["seconds"].items())[::-1]
    figure = Figure(figsize=(WIDE, 0.5 + 0.28 * len(rows)))
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in rows], [value for _, value in rows], 0.7, color=LEFT)
    axes.bar_label(bars, fmt="%.1f s", padding=3, fontsize=8)
    axes.margins(x=0.12)
    bare(axes)
    return svg(figure, "seconds")
