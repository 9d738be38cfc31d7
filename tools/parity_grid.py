"""Run the parity grid (tests/support/grid.py) and write its table, docs/parity.md.

example:
  python tools/parity_grid.py --part 1/8
"""

import argparse
import datetime
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support")]
TABLE = ROOT / "docs/parity.md"
MARK = "<!-- the rest is written by tools/parity_grid.py -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Hold every layout against one process and write docs/parity.md.",
        epilog="example:\n  python tools/parity_grid.py --part 1/8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", default="1/1", help="K/N: the K-th of N parts of the cells, each part a fair sample")
    parser.add_argument("--whole", action="store_true", help="all combinations of the knobs, four times as many cells")
    parser.add_argument("--dry-run", action="store_true", help="only say how many cells there are")
    options = parser.parse_args()
    number, of = (int(word) for word in options.part.split("/"))

    from grid import cells, layouts, part, run, too_far, worst
    from pool import Pool

    chosen = {layout: part(cells(layout, options.whole), number - 1, of) for layout in layouts()}
    whole = sum(len(cells(layout, whole=True)) for layout in layouts())
    print(f"{sum(map(len, chosen.values()))} of {whole} combinations in {len(chosen)} layouts", flush=True)
    if options.dry_run:
        return 0
    found: dict[Any, dict[str, float]] = {}
    wrong: list[str] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Pool() as pool:
        for layout, todo in chosen.items():
            if not todo:
                continue
            results = run(pool, todo, Path(folder))
            found |= results
            wrong += too_far(results)
            values = ", ".join(f"{what} {value:.1e}" for what, value in worst(results.values()).items())
            print(f"{time.monotonic() - begin:6.0f} s  {layout} {len(todo):4} cells: {values}", flush=True)
    write(found, whole, wrong, time.monotonic() - begin)
    print("\n".join(wrong))
    return 1 if wrong else 0


def write(found: dict[Any, dict[str, float]], whole: int, wrong: list[str], seconds: float) -> None:
    """Put the table under the mark of docs/parity.md: a row a layout and schedule, the worst of its cells."""
    import torch
    from grid import BOUND, worst

    rows: dict[tuple[Any, ...], list[Any]] = {}
    for cell in found:
        key = (cell.tensor, cell.pipeline, cell.data, cell.schedule if cell.pipeline > 1 else "-", cell.virtual)
        rows.setdefault(key, []).append(cell)
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"{datetime.date.today()}, torch {torch.__version__}, {platform.machine()}, {cores} CPU cores "
        f"({torch.backends.cpu.get_cpu_capability()}), gloo, one thread a process: "
        f"{len(found)} of {whole} combinations, {len(wrong)} over {BOUND:.0e}, {seconds / 60:.0f} minutes.",
        "",
        "| tp | pp | dp | schedule | virtual | cells | loss | norm | gradients | weights |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, members in rows.items():
        values = worst(found[cell] for cell in members).values()
        columns = [*key, len(members), *(f"{value:.1e}" for value in values)]
        lines.append("| " + " | ".join(map(str, columns)) + " |")
    values = worst(found.values()).values()
    lines.append(f"| all | | | | | {len(found)} | " + " | ".join(f"**{value:.1e}**" for value in values) + " |")
    text = TABLE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + "\n" + "\n".join([*lines, *wrong]) + "\n"
    temporary = TABLE.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(TABLE)


if __name__ == "__main__":
    sys.exit(main())
