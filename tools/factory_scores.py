"""What the factory's two scorers are worth, on pages that neither was trained on: perplexity beside the classifier."""

import random
from collections import Counter
from pathlib import Path

import factory_labelled as labelled
from factory_lines import ADVERTS, MENUS, held_out, in_view

from ziya_data.document import Document
from ziya_data.factory import recipe, score

LEARNED = 3000
"""Paragraphs of the reference text that the classifier's bad text is made of."""
PAGES = 600
"""Pages of each language to be told apart."""
LONG = 100
"""Characters of those at least."""

Scorers = dict[str, dict[str, Path]]
"""`perplexity` or `classifier` -> language -> file."""


def unfit(texts: list[str], code: str, lines: list[str], seed: int) -> dict[str, list[str]]:
    """As many pages of each kind as there are texts: their words in any order, junk, and eight of `lines` each."""
    draw, words = random.Random(seed), labelled.words_of(texts, code)
    return {
        "shuffled pages": [labelled.salad(text, code, draw) for text in texts],
        "junk pages": [labelled.junk(code, draw, words) for _ in texts],
        "adverts and menus": ["\n".join(draw.sample(lines, 8)) for _ in texts],
    }


def train(reference: dict[str, Path], folder: Path) -> Scorers:
    """Both scorers of each language's reference text. The classifier's bad text is made of that same text and of the
    lines that tools/factory_lines.py does not hold out."""
    found: Scorers = {"perplexity": {}, "classifier": {}}
    for code, good in reference.items():
        for name, files in found.items():
            files[code] = folder / f"{code}.{name}"
        score.train(code, good, found["perplexity"][code])
        texts = [line for line in good.read_text(encoding="utf-8").split("\n") if len(line) >= LONG][:LEARNED]
        kinds = unfit(texts, code, [*in_view(ADVERTS[code]), *in_view(MENUS[code])], 0)
        bad = folder / f"{code}.bad.txt"
        bad.write_text(
            "\n".join(page for pages in zip(*kinds.values(), strict=True) for page in pages), encoding="utf-8"
        )
        score.train_classifier(code, good, bad, found["classifier"][code])
    return found


def scored(texts: list[str], code: str, path: Path) -> list[Document]:
    documents = [Document(str(at), text, "s", language=code) for at, text in enumerate(texts)]
    score.measure(documents, score.load_models(recipe.Score(models={code: str(path)})))
    return documents


def values(texts: list[str], code: str, name: str, path: Path) -> list[float]:
    """What `metadata` holds under the measure's name; less is better."""
    key = "score" if name == "classifier" else name
    return [document.metadata[key] for document in scored(texts, code, path)]


def table_of_pairs(pages: dict[str, list[str]], scorers: Scorers) -> list[str]:
    """Of pairs of a clean and an unfit page, the share in which the clean one scores better."""
    lines = [
        "| text | clean pages against as many | " + " | ".join(scorers) + " |",
        "|---|---|" + "---|" * len(scorers),
    ]
    for code in scorers["perplexity"]:
        texts = [text for text in pages[code] if len(text) >= LONG][:PAGES]
        if not texts:
            continue
        good = {name: values(texts, code, name, files[code]) for name, files in scorers.items()}
        kinds = unfit(texts, code, [*held_out(ADVERTS[code]), *held_out(MENUS[code])], 1)
        for kind, bad in kinds.items():
            apart = (
                score.told_apart(good[name], values(bad, code, name, files[code])) for name, files in scorers.items()
            )
            lines.append(f"| {code}, {len(texts)} | {kind} | {' | '.join(f'{share:.4f}' for share in apart)} |")
    return lines


def table_of_cuts(pages: dict[str, list[str]], scorers: Scorers) -> list[str]:
    """Pages of which two in five were shuffled: what the default cut keeps of either kind."""
    lines = [
        "| text | ranked by | pages | shuffled | whole ones kept | shuffled ones dropped |",
        "|---|---|---|---|---|---|",
    ]
    for code in scorers["perplexity"]:
        draw = random.Random(0)
        texts = [text for text in pages[code] if len(text) >= LONG][:PAGES]
        if len(texts) < recipe.Score().smallest_group:
            continue
        bad = [at % 5 < 2 for at in range(len(texts))]
        rows = [
            labelled.salad(text, code, draw) if shuffled else text for text, shuffled in zip(texts, bad, strict=True)
        ]
        for name, files in scorers.items():
            documents = scored(rows, code, files[code])
            places = Counter(place for item in documents if (place := score.place_of(item)) is not None)
            bounds = score.cuts(places, recipe.Score())
            goes = [bool(score.judge(document, bounds)) for document in documents]
            kept = sum(not gone for gone, shuffled in zip(goes, bad, strict=True) if not shuffled)
            caught = sum(gone for gone, shuffled in zip(goes, bad, strict=True) if shuffled)
            counts = f"{len(rows)} | {sum(bad)} | {kept / (len(bad) - sum(bad)):.4f} | {caught / sum(bad):.4f}"
            lines.append(f"| {code} | {name} | {counts} |")
    return lines
