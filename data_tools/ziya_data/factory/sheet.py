"""The human sheet of Ziya2's Fig. 8: kept items on a local page, marked by keyboard; and what the marks say."""

import heapq
import json
from collections import Counter
from pathlib import Path
from typing import Any

from ziya_data.document import Document
from ziya_data.factory import recipe as recipes
from ziya_data.factory import storage
from ziya_data.factory.evaluate import chosen
from ziya_data.factory.look import finished, kept

PAGE = Path(__file__).with_name("sheet.html")
FLAGS = ("coherence", "readability", "toxic")
SHOWN = 5000
"""Characters of an item that are shown: what is wrong with a long page shows in its beginning."""


def drawn(out: Path, count: int) -> list[Document]:
    """`count` kept prose documents at random, the same ones for the same run."""
    seed = recipes.load(out / "recipe.toml").run.seed
    prose = (document for document in kept(out) if document.kind == "text")
    return heapq.nsmallest(count, prose, key=lambda document: (chosen(document.id, seed, "sheet"), document.id))


def write(out: Path, count: int = 1000) -> tuple[Path, int]:
    """Writes OUT/sheet.html and returns its path and how many items it has (fewer than `count` when fewer were kept).

    Raises ValueError when nothing was kept, FileNotFoundError when `out` holds no finished run.
    """
    if count < 1:
        raise ValueError(f"--items {count} must be at least 1")
    report = storage.read_json(finished(out) / "report.json")
    items = drawn(out, count)
    if not items:
        raise ValueError(f"{out} kept no prose: there is nothing to mark")
    data = {
        "run": report["key"],
        "allowed": allowed(report, len(items)),
        "items": [
            {
                "id": item.id,
                "language": item.language,
                "text": item.text[:SHOWN],
                "more": max(len(item.text) - SHOWN, 0),
            }
            for item in items
        ],
    }
    # "<" is escaped so that no text can end the script element that holds it.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    with storage.replacing(out / "sheet.html") as temporary:
        temporary.write_text(PAGE.read_text(encoding="utf-8").replace("$data", text), encoding="utf-8")
    return out / "sheet.html", len(items)


def allowed(report: dict[str, Any], items: int) -> int:
    """Unqualified items that still pass: 1 in 1,000 (evaluate.level_1)."""
    return int(report["recipe"]["evaluate"]["level_1"] * items + 1e-9)


def judge(out: Path, verdict: Path) -> dict[str, Any]:
    """What the marks in `verdict` (a file that the page saved) say; also written to OUT/verdict.json.

    Raises FileNotFoundError without that file, ValueError when it is none of the page's, or of another run than `out`
    holds now.
    """
    report = storage.read_json(finished(out) / "report.json")
    if not verdict.is_file():
        raise FileNotFoundError(f"no marks at {verdict}; press S on the sheet's page and name the file that it saves")
    try:
        given = json.loads(verdict.read_text(encoding="utf-8"))
        run, count, marks = given["run"], int(given["items"]), dict(given["marks"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{verdict} is not what the sheet saves; press S on its page") from error
    if run != report["key"]:
        raise ValueError(f"{verdict} was marked on another run than {out} holds now; write and mark a new sheet")
    ids = [item.id for item in drawn(out, count)]
    if strange := set(marks) - set(ids):
        raise ValueError(f"{verdict} marks {min(strange)!r}, which this sheet does not hold")
    flags = Counter(flag for mark in marks.values() for flag in FLAGS if mark.get(flag))
    bad = [name for name in ids if any(marks.get(name, {}).get(flag) for flag in FLAGS)]
    most = allowed(report, len(ids))
    found = {
        "passed": len(marks) == len(ids) and len(bad) <= most,
        "items": len(ids),
        "marked": len(marks),
        "unqualified": len(bad),
        "allowed": most,
        "flags": {flag: flags[flag] for flag in FLAGS},
        "places": {
            name: {**{flag: marks[name].get(flag) for flag in FLAGS}, "span": marks[name].get("span", "")}
            for name in bad
        },
    }
    storage.write_json(out / "verdict.json", found)
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """What `judge` has found, for the terminal."""
    said = [f"{found['marked']:,} of {found['items']:,} items are marked, {found['unqualified']} unqualified"]
    said += [f"{flag:12} {n}" for flag, n in found["flags"].items()]
    for name, place in list(found["places"].items())[:10]:
        which = ", ".join(flag for flag in FLAGS if place[flag])
        said.append(f"== {name}  {which}" + (f": {place['span'][:200]}" if place["span"] else ""))
    if found["unqualified"] > found["allowed"]:
        said.append(
            f"FAILED: {found['unqualified']} unqualified, at most {found['allowed']} of {found['items']:,} may be; "
            "see ziya factory tighten"
        )
    elif found["passed"]:
        said.append(f"passed: at most {found['allowed']} of {found['items']:,} may be unqualified")
    else:
        said.append(f"not decided: {found['items'] - found['marked']:,} items are not marked yet")
    return said
