"""Three first experiments with the data factory, before one trusts it with terabytes:

    python examples/demo/corpus.py --out runs/demo/raw
    python examples/factory_check/check.py --raw runs/demo/raw

1. Thresholds: what stands in the best 30 %, the next 30 % and the rest by perplexity? Documents of each, to be read.
2. A small sample: how far off are the two thresholds when they come from 100 ... 3,000 documents instead of all?
3. Consistent results: one process, two processes, and two tasks that share the shards write the same bytes?
"""

import argparse
import hashlib
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from ziya_data.document import Document
from ziya_data.factory import pipeline, recipe, score
from ziya_data.factory.preprocess import preprocess
from ziya_data.factory.read import read
from ziya_data.factory.recipe import Preprocess, Score, Source

SOURCES = {"zh": ("reviews_zh", "news_zh"), "en": ("wiki_en", "books_en")}
SAMPLES = (100, 300, 1000, 3000)
DRAWS = 20


def documents(raw: Path, suffix: str, language: str, most: int) -> list[Document]:
    """The first preprocessed documents of this language's sources. Raises FileNotFoundError."""
    found: list[Document] = []
    for name in SOURCES[language]:
        path = raw / f"{name}{suffix}"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; run python examples/demo/corpus.py --out {raw}")
        some = [item for item, _ in zip(read(Source(name, ()), path, 0), range(most // 2), strict=False)]
        reasons = preprocess(some, Preprocess())
        found += [item for item, reason in zip(some, reasons, strict=True) if not reason and item.language == language]
    return found


def histogram(some: list[Document]) -> Counter[int]:
    return Counter(score.bin_of(item.metadata["perplexity"]) for item in some)


def thresholds(some: list[Document], language: str) -> None:
    """First experiment: where the cuts lie, and what stands on each side of them."""
    cut = score.cuts(histogram(some), Score())
    assert cut is not None
    high, medium = (score.middle_of(place) for place in cut)
    print(f"\n1. {language}: {len(some):,} documents; high up to perplexity {high:.1f}, medium up to {medium:.1f}")
    ranked = sorted(some, key=lambda item: item.metadata["perplexity"])
    for name, place in (("high", 0.1), ("high", 0.25), ("medium", 0.45), ("dropped", 0.7), ("dropped", 0.95)):
        item = ranked[int(place * len(ranked))]
        text = " ".join(item.text.split())[:90]
        print(f"   {name:8} {100 * place:3.0f} %  {item.metadata['perplexity']:8.1f}  {text}")


def small_samples(some: list[Document], language: str) -> None:
    """Second experiment: how far off the cuts of a small sample are."""
    whole = score.cuts(histogram(some), Score())
    assert whole is not None
    print(f"\n2. {language}: thresholds of a sample against those of all {len(some):,}, worst of {DRAWS} draws")
    draw = random.Random(0)
    for size in (size for size in SAMPLES if size <= len(some) / 2):
        worst = [0.0, 0.0]
        for _ in range(DRAWS):
            cut = score.cuts(histogram(draw.sample(some, size)), Score())
            assert cut is not None
            for at in (0, 1):
                off = score.middle_of(cut[at]) / score.middle_of(whole[at]) - 1
                worst[at] = max(worst[at], abs(off))
        print(f"   {size:5,} documents: high {100 * worst[0]:4.1f} % off, medium {100 * worst[1]:4.1f} % off")


def outputs(folder: Path) -> dict[str, str]:
    """Digest of every file that a run writes, but those that hold times."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("report."))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path.name != "recipe.toml"  # it names the folder
    }


def consistent(raw: Path, suffix: str, models: dict[str, str], folder: Path) -> bool:
    """Third experiment: whether one process, two and array tasks write the same bytes."""
    names = [name for some in SOURCES.values() for name in some]

    def settings(name: str) -> recipe.Recipe:
        table: dict[str, Any] = {
            "run": {"output": str(folder / name), "holdout": 0.02},
            "source": [{"name": source, "paths": [str(raw / f"{source}{suffix}")]} for source in names],
            "score": {"models": models},
        }
        return recipe.parse(table)

    def quiet(line: str) -> None:
        pass

    pipeline.run(settings("one"), 1, quiet)
    pipeline.run(settings("two"), 2, quiet)
    for _ in range(2):
        for k in (0, 1):
            pipeline.run(settings("tasks"), 1, quiet, (k, 2))
    pipeline.run(settings("tasks"), 1, quiet)
    wanted = outputs(folder / "one")
    same = all(outputs(folder / name) == wanted for name in ("two", "tasks"))
    verdict = "all the same" if same else "THEY DIFFER"
    print(f"\n3. one process, two processes, two tasks: {len(wanted)} files each, {verdict}")
    return same


def main(argv: list[str] | None = None) -> int:
    """Run the three experiments. Returns 1 when the last one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, default=Path("runs/demo/raw"), help="what examples/demo/corpus.py wrote")
    parser.add_argument("--documents", type=int, default=12_000, help="of each language at most (default 12,000)")
    parser.add_argument("--suffix", default=".jsonl.zst", help="of its files (default .jsonl.zst)")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {}
        for language in SOURCES:
            some = documents(given.raw, given.suffix, language, given.documents)
            models[language] = str(folder / f"{language}.bin")
            score.train(language, given.raw / f"scorer_{language}.txt", Path(models[language]))
            score.measure(some, score.load_models(Score(models={language: models[language]})))
            thresholds(some, language)
            small_samples(some, language)
        return 0 if consistent(given.raw, given.suffix, models, folder) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as problem:
        sys.exit(f"check.py: {problem}")
