"""The report page: one HTML file that needs nothing else, made of report.json."""

import difflib
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ziya_data.factory import pictures
from ziya_data.factory.clusters import label
from ziya_data.factory.parts import STAGES

NUMBERS = ("times", "level", "clusters", *STAGES)
"""Columns of numbers."""
PAGE = Path(__file__).with_name("report.html")


def page(report: dict[str, Any]) -> str:
    verdict = report["evaluate"]
    passed = '<span class="yes">passed</span>' if verdict["passed"] else '<span class="no">failed</span>'
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        lead=lead(report),
        funnel=pictures.funnel(report),
        sources=pictures.by_source(report),
        table=numbers(report),
        reasons=pictures.reasons(report),
        drops=drops(report),
        clusters=near_clusters(report),
        struck=struck(report),
        scores=pictures.scores(report) or "<p>No source was ranked: none has a scorer and enough documents.</p>",
        verdict=passed,
        gate=gate(report),
        samples=samples(report),
        seconds=pictures.seconds(report),
    )


def table(head: list[str], rows: list[list[Any]], kind: str = "") -> str:
    """Rows of already escaped cells; numbers stand on the right."""

    def cell(value: Any, tag: str = "td") -> str:
        if isinstance(value, int | float):
            return f'<{tag} class="n">{value:,}</{tag}>'
        return f'<{tag} class="text">{value}</{tag}>'

    top = "".join(f'<th class="n">{name}</th>' if name in NUMBERS else f"<th>{name}</th>" for name in head)
    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f'<table class="{kind}"><tr>{top}</tr>{body}</table>'


def lead(report: dict[str, Any]) -> str:
    raw, last = report["totals"][0], report["totals"][-1]
    held = sum(count["documents"] for count in report["heldout"].values())
    return (
        f"{raw['documents']:,} documents and {raw['bytes'] / 1e6:.1f} MB of text came in; {last['documents']:,} and "
        f"{last['bytes'] / 1e6:.1f} MB stayed ({last['share']:.1f} %), {held:,} of them held out for evaluation. "
        f"It took {report['wall_seconds']:.1f} s."
    )


def numbers(report: dict[str, Any]) -> str:
    head = ["source", "language", *(stage for stage in report["stages"])]
    rows = [[escape(row["source"]), row["language"], *row["documents"]] for row in report["funnel"]]
    rows.append(["all", "", *(total["documents"] for total in report["totals"])])
    scored = "" if report["score"] else " Nothing was scored: no scorer was set for what came in."
    return f"<p>Documents left after each part.{scored}</p>" + table(head, rows, "narrow")


def drops(report: dict[str, Any]) -> str:
    rows = [
        [
            f"<code>{escape(record['reason'])}</code><br>{escape(record.get('why', ''))}",
            escape(" ".join(record["text"].split())),
            escape(record["id"]),
        ]
        for record in report["drop_samples"]
    ]
    return table(["reason", "text", "id"], rows)


def near_clusters(report: dict[str, Any]) -> str:
    """How many there are of each size, and the largest with the text that stayed and one that went."""
    found = report["clusters"]
    if not found["clusters"]:
        return "<p>None: no page was like another.</p>"
    lead = f"<p>{found['copies']:,} pages went because they are like one of {found['clusters']:,} that stayed.</p>"
    rows = []
    for name, pages in found["largest"].items():
        texts = found["texts"].get(name, {})
        which = f"<code>{escape(name)}</code><br>{pages:,} pages"
        rows.append([which, *marked(texts.get("kept", ""), texts.get("copy", ""))])
    sizes = [[label(int(power)), count] for power, count in found["sizes"].items()]
    largest = table(["stayed", "its text", "one that went"], rows, "two")
    return lead + table(["pages in a cluster", "clusters"], sizes, "narrow") + "<p>The largest:</p>" + largest


def struck(report: dict[str, Any]) -> str:
    if not report["struck"]:
        return "<p>Nothing.</p>"
    return table(
        ["rule", "times"], [[f"<code>{escape(name)}</code>", n] for name, n in report["struck"].items()], "narrow"
    )


def gate(report: dict[str, Any]) -> str:
    verdict = report["evaluate"]
    rows = []
    for name, metric in verdict["metrics"].items():
        mark = '<span class="yes">passed</span>' if metric["passed"] else '<span class="no">failed</span>'
        ids = ", ".join(f"<code>{escape(item)}</code>" for item in metric["ids"][:3])
        rate = f"{1000 * metric['rate']:.3g} / {1000 * metric['limit']:g}"
        rows.append([name, metric["level"], escape(metric["what"]), rate, mark, ids])
    head = ["metric", "level", "a document counts when", "in 1,000: found / allowed", "", "such as"]
    return f"<p>{verdict['documents']:,} documents drawn at random from what was kept.</p>" + table(head, rows)


def samples(report: dict[str, Any], most: int = 12) -> str:
    """Before/after pairs, the changed stretches marked; a few of each source, not all of the first."""
    by_source: dict[str, list[dict[str, str]]] = {}
    for sample in report["samples"]:
        by_source.setdefault(sample["part"] + sample["id"].partition(":")[0], []).append(sample)
    rounds = max((len(group) for group in by_source.values()), default=0)
    chosen = [group[i] for i in range(rounds) for group in by_source.values() if i < len(group)][:most]
    rows = [
        [f"<code>{escape(item['id'])}</code><br>{item['part']}", *marked(item["before"], item["after"])]
        for item in chosen
    ]
    return table(["id", "before", "after"], rows, "two")


def marked(before: str, after: str) -> tuple[str, str]:
    left, right = [], []
    for action, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        old, new = escape(before[a:b]), escape(after[c:d])
        left.append(old if action == "equal" or not old else f"<del>{old}</del>")
        right.append(new if action == "equal" or not new else f"<ins>{new}</ins>")
    return "".join(left), "".join(right)
