"""`ziya report`: one page with the pictures of a run, or of the whole road. The page needs no network."""

import argparse
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

EXAMPLE = "example:\n  ziya report runs/demo/stage1\n  ziya report --road runs/demo"
PAGE = Path(__file__).with_name("report.html")
STAGES = ("base", "stage1", "stage2", "stage3")
Section = tuple[str, str]
"""Heading and HTML."""


def report(arguments: Sequence[str]) -> int:
    """`ziya report RUN_DIR` or `ziya report --road DIR`; writes `report.html` there."""
    parser = argparse.ArgumentParser(
        prog="ziya report",
        description="Write report.html: of one training run, or of a folder laid out as the demo's.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--road", action="store_true", help="the folder holds a whole road, not one run")
    options = parser.parse_args(list(arguments))
    path = (write_road if options.road else write_run)(options.directory)
    print(f"written: {path}")
    return 0


def write_run(directory: Path) -> Path:
    """The page of one run. Raises FileNotFoundError when the folder holds no metrics."""
    rows = read_metrics(directory)
    last = rows[-1]
    lead = (
        f"Stage {escape(last['stage'])}: {last['step']} steps, {last['tokens']:,} tokens, "
        f"loss {rows[0]['loss']:.3f} → {last['loss']:.3f}."
    )
    sections = [
        ("Loss", line_chart({"loss": [(r["step"], r["loss"]) for r in rows]}, "step", "loss a token")),
        ("Gradient norm", line_chart({"norm": [(r["step"], r["grad_norm"]) for r in rows]}, "step", "global norm")),
        ("Learning rate", line_chart({"rate": [(r["step"], r["learning_rate"]) for r in rows]}, "step", "rate")),
        ("Speed", line_chart({"all ranks": [(r["step"], r["tokens_per_second"]) for r in rows]}, "step", "tokens/s")),
        ("Recipe", f"<pre>{escape((directory / 'recipe.toml').read_text(encoding='utf-8'))}</pre>"),
    ]
    return write_page(directory / "report.html", f"Run {directory.name}", lead, sections)


def write_road(directory: Path) -> Path:
    """The page of a whole road, and `summary.txt` beside it. Raises FileNotFoundError when a part is missing."""
    from ziya_data.factory import pictures

    evaluations = {path.stem: read_json(path) for path in sorted((directory / "evaluation").glob("[0-9]-*.json"))}
    if not evaluations:
        raise FileNotFoundError(f"{directory}/evaluation holds no results; run `ziya evaluate perplexity` first")
    factory = read_json(directory / "factory/report.json")
    tokens = read_json(directory / "tokenizer/compare/comparison.json")
    samples = read_json(directory / "evaluation/sample.json")
    table = held_out_table(evaluations)
    sections: list[Section] = [
        ("Held-out text, before and after each stage", perplexity_section(evaluations, table)),
        ("Loss", loss_section(directory)),
        ("What each part of the factory left", pictures.funnel(factory)),
        ("What the factory dropped, and why", pictures.reasons(factory)),
        ("Tokens a character, before and after the vocabulary grew", tokenizer_section(tokens)),
        ("The exported model writes", samples_section(samples)),
    ]
    write_text(directory / "summary.txt", plain_table(*table) + "\n")
    names = list(evaluations)
    before, after = (evaluations[name]["languages"] for name in ("1-grown", "2-stage1"))
    lead = "; ".join(
        f"{language}: {before[language]['bits_per_character']:.3f} → {after[language]['bits_per_character']:.3f} "
        f"→ {evaluations[names[-1]]['languages'][language]['bits_per_character']:.3f}"
        for language in before
    )
    lead = f"Bits a character of held-out text before stage 1 → after it → at the end. {lead}."
    return write_page(directory / "report.html", "Raw pages in, a better model out", lead, sections)


# --- Sections -------------------------------------------------------------------------------------------------------


def held_out_table(evaluations: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row a point of the road, perplexity a token and bits a character of each language."""
    languages = list(next(iter(evaluations.values()))["languages"])
    head = ["held-out text", *(f"{language} {what}" for language in languages for what in ("perplexity", "bits/char"))]
    rows = []
    for name, result in evaluations.items():
        cells = [name]
        for language in languages:
            measure = result["languages"][language]
            cells += [f"{measure['perplexity']:,.1f}", f"{measure['bits_per_character']:.3f}"]
        rows.append(cells)
    return head, rows


def perplexity_section(evaluations: dict[str, Any], table: tuple[list[str], list[list[str]]]) -> str:
    languages = list(next(iter(evaluations.values()))["languages"])
    lines: dict[str, list[tuple[float, float]]] = {
        language: [(i, e["languages"][language]["bits_per_character"]) for i, e in enumerate(evaluations.values())]
        for language in languages
    }
    chart = line_chart(lines, "", "bits a character (lower is better)", [n.partition("-")[2] for n in evaluations])
    note = (
        "Perplexity a token changes its meaning when the vocabulary grows (0-base and 1-grown have different tokens); "
        "bits a character compare across it."
    )
    return f"{chart}{html_table(*table)}<p class='note'>{note}</p>"


def loss_section(directory: Path) -> str:
    lines: dict[str, list[tuple[float, float]]] = {}
    offset = 0.0
    for stage in STAGES:
        rows = read_metrics(directory / stage)
        lines[stage] = [(offset + row["tokens"] / 1e6, row["loss"]) for row in rows]
        offset += rows[-1]["tokens"] / 1e6
    return line_chart(lines, "million tokens, one stage after the other", "training loss a token")


def tokenizer_section(comparison: dict[str, Any]) -> str:
    head = ["language", *(f"{name}, tokens a character" for name in comparison["tokenizers"]), "fewer tokens"]
    rows = [
        [language, *(f"{m['tokens_per_character']:.3f}" for m in of["measures"]), f"{of['tokens_saved']:.1%}"]
        for language, of in comparison["languages"].items()
    ]
    bars = {
        name: [of["measures"][i]["tokens_per_character"] for of in comparison["languages"].values()]
        for i, name in enumerate(comparison["tokenizers"])
    }
    chart = bar_chart(bars, list(comparison["languages"]), "tokens a character")
    return f"{chart}{html_table(head, rows)}<p class='note'>{escape(comparison['paper'])}</p>"


def samples_section(samples: dict[str, Any]) -> str:
    pages = [(sample["prompt"], sample["text"].removeprefix(sample["prompt"])) for sample in samples["samples"]]
    return "".join(f"<pre><b>{escape(prompt)}</b>{escape(text)}</pre>" for prompt, text in pages)


# --- Charts and tables ----------------------------------------------------------------------------------------------


def line_chart(lines: dict[str, list[tuple[float, float]]], x: str, y: str, ticks: Sequence[str] | None = None) -> str:
    """An inline SVG. `ticks` names the positions 0, 1, … of the x axis."""
    pyplot = plotting()
    figure, axes = pyplot.subplots(figsize=(9, 3.6))
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.6, marker="o" if ticks else None)
        if ticks:
            for px, py in points:
                axes.annotate(f"{py:.2f}", (px, py), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks)
        axes.margins(y=0.15)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(lines) > 1:
        axes.legend(frameon=False)
    return as_svg(figure)


def bar_chart(bars: dict[str, list[float]], groups: Sequence[str], y: str) -> str:
    """An inline SVG: a group of bars per name in `groups`."""
    pyplot = plotting()
    figure, axes = pyplot.subplots(figsize=(6, 3))
    width = 0.8 / len(bars)
    for i, (name, values) in enumerate(bars.items()):
        drawn = axes.bar([g + (i + 0.5) * width - 0.4 for g in range(len(groups))], values, width, label=name)
        axes.bar_label(drawn, fmt="%.3f", fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(y)
    axes.legend(frameon=False)
    return as_svg(figure)


def plotting() -> Any:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["axes.spines.top"] = pyplot.rcParams["axes.spines.right"] = False
    return pyplot


def as_svg(figure: Any) -> str:
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if i else ''}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text for a terminal."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


# --- Files ----------------------------------------------------------------------------------------------------------


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    path = directory / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is not a run directory: it has no metrics.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the step of the road that writes it has not run")
    return json.loads(path.read_text(encoding="utf-8"))


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n{html}" for heading, html in sections)
    page = Template(PAGE.read_text(encoding="utf-8"))
    return write_text(path, page.substitute(title=escape(title), lead=lead, body=body))


def write_text(path: Path, text: str) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path
