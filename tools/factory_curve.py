"""Near-duplicates: how many of them are found by edit rate, and what an index of many pages takes."""

import random
import time
from pathlib import Path

import factory_labelled as labelled
import numpy as np

from ziya_data._factory import signatures
from ziya_data.factory import recipe
from ziya_data.factory.index import Index
from ziya_data.factory.resolve import CHUNK

WANTED = {0.01: 0.999, 0.02: 0.999, 0.05: 0.99, 0.10: 0.95, 0.15: 0.85}
"""Edit rate -> recall that near-duplicates are to have."""
CURVE = [*WANTED, 0.20, 0.30]

Curve = dict[tuple[str, str], tuple[int, list[float]]]
"""(method, language) -> pages, recall at each edit rate."""


def recall_curve(pages: dict[str, list[str]], edits: list[float], seed: int = 1) -> Curve:
    """Of real pages and their edited copies: the share of copies for which their own page is found."""
    settings = recipe.Deduplicate()
    found: Curve = {}
    for method in recipe.METHODS:
        for code, texts in pages.items():
            index = Index(recipe.Deduplicate(method=method)).near
            rows = signatures(texts, method)
            long = np.flatnonzero(rows[:, -1] >= settings.shortest)
            likeness = index.find_or_add(rows[long], settings.distance, settings.jaccard)[0]
            added = [texts[i] for i in long[likeness < 0]]
            recall, words = [], labelled.words_of(added, code)
            for share in edits:
                draw = random.Random(seed)
                copies = signatures([labelled.edited(text, share, code, words, draw) for text in added], method)
                hits = index.find(copies, settings.distance, settings.jaccard)[0] == np.arange(len(added))
                recall.append(float(hits.mean()))
            found[method, code] = (len(added), recall)
    return found


def curve_table(curve: Curve, edits: list[float]) -> list[str]:
    lines = ["| method | text | pages | " + " | ".join(f"{share:.0%}" for share in edits) + " |"]
    lines.append("|---|---|---|" + "---|" * len(edits))
    for (method, code), (count, recall) in curve.items():
        lines.append(f"| {method} | {code} | {count:,} | {' | '.join(f'{value:.4f}' for value in recall)} |")
    return lines


def at_scale(count: int) -> str:
    """What an index of many pages, none like another, takes in memory and for a look-up."""
    settings = recipe.Deduplicate()
    rows = np.random.default_rng(0).integers(0, 2**64, (count, 7), dtype=np.uint64)
    index = Index(settings).near
    before = time.process_time()
    for start in range(0, count, CHUNK):
        index.find_or_add(rows[start : start + CHUNK], 0, settings.jaccard)
    rate = count / (time.process_time() - before)
    return (
        f"An index of {count:,} pages takes {index.bytes / count:.1f} bytes a page in memory: 60, and 2.6 MB "
        f"of buckets; ids stay in a file. It was filled at {rate:,.0f} pages a CPU second, each looked up first."
    )


def draw_curve(curve: Curve, edits: list[float], path: Path) -> None:
    """A picture of the recall by edit rate, with what is wanted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    for (method, code), (_, recall) in curve.items():
        axes.plot(
            [100 * share for share in edits],
            recall,
            "o-" if method == "minhash" else "s--",
            label=f"{method}, {code}",
            markersize=4,
        )
    axes.plot([100 * share for share in WANTED], list(WANTED.values()), "k_", markersize=14, label="wanted at least")
    axes.set_xlabel("% of the characters (zh) or words (en) edited")
    axes.set_ylabel("copies found")
    axes.set_ylim(0, 1.03)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")
