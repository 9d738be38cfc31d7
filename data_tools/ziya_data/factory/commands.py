"""`ziya factory run | train-scorer | inspect | explain | tighten | sheet`."""

import argparse
import math
from dataclasses import replace
from pathlib import Path


def parser(name: str, what: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"ziya factory {name}",
        description=what,
        epilog=f"example:\n  ziya factory {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(argv: list[str]) -> int:
    """Exit code 1 only when the gate fails and the recipe says evaluate.required = true.

    Raises ValueError when nothing was kept: whatever comes next in a script has nothing to read.
    """
    arguments = parser("run", "Clean, score, filter, de-duplicate and check raw text.", "examples/demo/factory.toml")
    arguments.add_argument(
        "recipe", type=Path, help="TOML file; every knob is described in ziya_data/factory/recipe.py"
    )
    arguments.add_argument(
        "--workers", type=int, default=1, help="processes (default 1); the output does not depend on it"
    )
    arguments.add_argument(
        "--executor",
        default="processes",
        help="processes of this machine (default), or ray: the nodes of a Ray cluster",
    )
    arguments.add_argument(
        "--ray-address",
        default="",
        metavar="ADDRESS",
        help="of a Ray cluster whose nodes see these files (default: RAY_ADDRESS, else one is started here)",
    )
    arguments.add_argument(
        "--partitions", type=int, metavar="N", help="parts of the de-duplication index (default: the recipe's)"
    )
    arguments.add_argument(
        "--shard",
        default="",
        metavar="K/N",
        help="prepare and filter only every Nth shard from the Kth on (0 to N - 1), as one of N machines or tasks",
    )
    arguments.add_argument(
        "--estimate-tb",
        type=float,
        metavar="N",
        help="say what N terabytes of such text would take: from a sample before the run, from all of it after",
    )
    given = arguments.parse_args(argv)
    from ziya_data.factory import estimate, pipeline, recipe

    settings = recipe.load(given.recipe)
    if given.estimate_tb is not None and not given.estimate_tb > 0:
        raise ValueError(f"--estimate-tb {given.estimate_tb:g} must be above 0")
    if given.partitions is not None:
        settings = replace(settings, deduplicate=replace(settings.deduplicate, partitions=given.partitions))
        recipe.check(settings)
    share = part(given.shard)
    if given.estimate_tb:
        print("before the run, from the beginning of each source:", flush=True)
        print(estimate.estimate(estimate.sample(settings), given.estimate_tb), flush=True)
    report = pipeline.run(
        settings,
        given.workers,
        lambda line: print(line, flush=True),
        share,
        executor=given.executor,
        address=given.ray_address,
    )
    if not report:
        return 0
    print(pipeline.summary(report), flush=True)
    if mistake := pipeline.nothing_kept(report):
        raise ValueError(mistake)
    if given.estimate_tb:
        print("after the run, from all of it:", flush=True)
        print(estimate.estimate(report, given.estimate_tb))
    return int(settings.evaluate.required and not report["evaluate"]["passed"])


def part(given: str) -> tuple[int, int] | None:
    """(K, N) of "K/N". Raises ValueError."""
    if not given:
        return None
    first, _, count = given.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise ValueError(f"--shard {given} must be K/N with K from 0 to N - 1, such as 0/8")
    return int(first), int(count)


def train_scorer(argv: list[str]) -> int:
    """Trains a language model, or a classifier, and says how large it is."""
    arguments = parser(
        "train-scorer",
        "Train the n-gram model whose perplexity ranks documents, or a classifier of good against bad text.",
        "--language zh --text wikipedia.zh.txt --out scorer.zh.bin",
    )
    arguments.add_argument("--language", required=True, choices=("zh", "en"))
    arguments.add_argument("--text", required=True, type=Path, help="reference text, a sentence or paragraph a line")
    arguments.add_argument("--out", required=True, type=Path)
    arguments.add_argument("--method", choices=("perplexity", "classifier"), default="perplexity")
    arguments.add_argument("--order", type=int, default=0, help="tokens in the longest gram (default: zh 4, en 3)")
    arguments.add_argument(
        "--prune", type=int, default=1, help="leave out grams of 3 and more seen so often (default 1)"
    )
    arguments.add_argument(
        "--against", type=Path, metavar="FILE", help="classifier: raw web text, one paragraph a line"
    )
    arguments.add_argument("--bits", type=int, default=20, help="classifier: 2**BITS weights (default 20: 4 MB)")
    arguments.add_argument("--passes", type=int, default=20, help="classifier: over both texts (default 20)")
    given = arguments.parse_args(argv)
    from ziya_data.factory import score

    for path in filter(None, (given.text, given.against)):
        if not path.is_file():
            raise FileNotFoundError(f"no text at {path}; give a file with a sentence or paragraph a line")
        if path.suffix in (".jsonl", ".zst", ".gz", ".parquet"):
            raise ValueError(f"{path} is no plain text; give a .txt with a sentence or paragraph a line")
    if given.prune < 0:
        raise ValueError(f"--prune {given.prune} must be 0 or more")
    if (given.method == "classifier") != (given.against is not None):
        raise ValueError("--against FILE names the bad text of --method classifier; give both or neither")
    if given.method == "classifier":
        found, apart = score.train_classifier(
            given.language, given.text, given.against, given.out, given.bits, given.passes
        )
        rank = "too few to hold any out" if math.isnan(apart) else f"{100 * apart:.2f} % of held-out pairs ranked right"
        said = f"{found.examples // given.passes:,} examples, {rank}"
    else:
        model = score.train(given.language, given.text, given.out, given.order, given.prune)
        said = f"{model.grams:,} grams up to {model.order} tokens"
    print(f"{given.out}: {said}, {given.out.stat().st_size / 1e6:.1f} MB")
    return 0


def inspect(argv: list[str]) -> int:
    """Prints dropped documents with their reasons."""
    arguments = parser(
        "inspect", "Show dropped documents and why.", "runs/demo/factory --dropped deduplicate.content --sample 3"
    )
    arguments.add_argument("output", type=Path, help="the run's folder")
    arguments.add_argument(
        "--dropped", default="", metavar="REASON", help="a reason, or a part of the factory (default: all)"
    )
    arguments.add_argument("--sample", type=int, default=20, help="how many, drawn at random (default 20; 0 shows all)")
    arguments.add_argument("--characters", type=int, default=300, help="of each text (default 300)")
    given = arguments.parse_args(argv)
    from ziya_data.factory import look

    records = look.dropped(given.output, given.dropped, given.sample)
    if not records:
        print("no document was dropped")
    for record in records:
        print(f"== {record['id']}  [{record['language'] or '-'}]  {record['reason']}  {record.get('why', '')}")
        print(record["text"][: given.characters])
    return 0


def explain(argv: list[str]) -> int:
    """Prints what each part does to one document."""
    arguments = parser(
        "explain", "Walk one document through every part.", "runs/demo/factory web_html:gne/tests/sxmu/1.html"
    )
    arguments.add_argument("output", type=Path, help="the run's folder")
    arguments.add_argument("id", help="as kept/ and dropped/ name it: SOURCE:ID")
    given = arguments.parse_args(argv)
    from ziya_data.factory import look

    for line in look.explain(given.output, given.id):
        print(line)
    return 0


def tighten(argv: list[str]) -> int:
    """Prints which thresholds to move, and writes the recipe with them moved if told to."""
    arguments = parser(
        "tighten", "After a failed gate: which thresholds to move, and what that would cost.", "runs/demo/factory"
    )
    arguments.add_argument("output", type=Path, help="the run's folder")
    arguments.add_argument("--write", type=Path, metavar="RECIPE.toml", help="write the recipe with the moves made")
    given = arguments.parse_args(argv)
    from ziya_data.factory import tighten

    found = tighten.propose(given.output)
    print("\n".join(tighten.lines(found)))
    if given.write and found.moves:
        tighten.write(given.output, found, given.write)
        print(f"{given.write}: run ziya factory run {given.write}")
    return 0


def sheet(argv: list[str]) -> int:
    """Exit code 1 when a verdict is read and it is not passed."""
    arguments = parser(
        "sheet", "A page on which a person marks kept items by keyboard; and what the marks say.", "runs/demo/factory"
    )
    arguments.add_argument("output", type=Path, help="the run's folder")
    arguments.add_argument("--items", type=int, default=1000, help="drawn at random (default 1,000, as in Ziya2)")
    arguments.add_argument("--verdict", type=Path, metavar="FILE", help="read what the page saved, and judge")
    given = arguments.parse_args(argv)
    from ziya_data.factory import sheet

    if given.verdict is None:
        path, count = sheet.write(given.output, given.items)
        print(f"{path}: {count:,} items; open it in a browser, it needs no network")
        return 0
    found = sheet.judge(given.output, given.verdict)
    print("\n".join(sheet.lines(found)))
    return int(not found["passed"])
