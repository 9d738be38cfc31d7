"""Part 4: pages seen before, by address, by content, by likeness."""

import numpy as np
from numpy.typing import NDArray

from ziya_data.factory.clusters import FROM
from ziya_data.factory.fingerprints import Prints
from ziya_data.factory.index import Index
from ziya_data.factory.recipe import Deduplicate

Verdicts = dict[int, tuple[str, str]]
"""Position of a document that goes -> (reason, why)."""


def resolve(
    prints: Prints, ids: list[str], index: Index, old: list[Index], settings: Deduplicate, near: bool = True
) -> Verdicts:
    """Checks documents in order against the index and the older ones and adds what is new to `index`.

    Cheap to dear: the address, then the content with everything but letters folded away, then likeness (with `near`).
    """
    verdicts: Verdicts = {}
    left = np.arange(len(prints))
    for name, what in (("url", "address"), ("content", "content")):
        asked = left[prints["has_url"][left]] if name == "url" else left
        keys = prints[name][asked]
        seen = np.logical_or.reduce([other.seen(name + "s", keys, other is index) for other in (index, *old)])
        verdicts |= dict.fromkeys(asked[seen].tolist(), (f"deduplicate.{name}", f"its {what} was seen before"))
        left = np.setdiff1d(left, asked[seen], assume_unique=True)
    return verdicts | near_ones(prints, left, ids, index, old, settings) if near else verdicts


def near_ones(
    prints: Prints, places: NDArray[np.int64], ids: list[str], index: Index, old: list[Index], settings: Deduplicate
) -> Verdicts:
    """The older indexes first; what is new to them too is looked for in `index`, or added to it, one by one."""
    verdicts: Verdicts = {}
    places = places[prints["page"][places, -1] >= settings.shortest]
    rows = prints["page"][places]
    for other in (*old, index):
        search = other.near.find_or_add if other is index else other.near.find
        pages, bits, alike = search(rows, settings.distance, settings.jaccard)
        found = pages >= 0
        if other is index:
            index.ids.extend(ids[i] for i in places[~found].tolist())
            index.copies.add(pages[found])
        for i, page, apart, j in zip(places[found].tolist(), pages[found], bits[found], alike[found], strict=True):
            bit_count = f"{apart} of 128 bits and " if settings.method == "simhash" else ""
            verdicts[i] = "deduplicate.near", f"{bit_count}Jaccard {j:.2f}{FROM}{other.ids[int(page)]}"
        places, rows = places[~found], rows[~found]
    return verdicts
