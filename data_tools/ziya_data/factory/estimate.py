"""Hours and machines for more text, from the rates of a finished run."""

from typing import Any

ONE_PROCESS = ("resolve", "collect", "evaluate")
"""Parts that one process does for all shards; the others run a process a core."""
CORES = (1, 16, 64, 256)
ZIYA2_HOUR = 15e9
"""Bytes an hour of Ziya2's own factory, on hardware that it does not name."""


def estimate(report: dict[str, Any], terabytes: float) -> str:
    """A few lines: what `terabytes` (10^12 bytes) of text would take if they were like this run's.

    Text is counted as it was read, after HTML has been taken off. Raises ValueError when the run is too small to tell.
    """
    size, seconds = report["totals"][0]["bytes"], report["seconds"]
    if size < 1e6:
        raise ValueError(f"a run over {size:,} bytes is too small to estimate from; give it a megabyte or more")
    together = sum(seconds[part] for part in seconds if part not in ONE_PROCESS)
    # The gate looks at a share of what is kept, but at no fewer documents than `at_least`, as in a small run.
    kept, looked_at = report["totals"][-1]["documents"], report["evaluate"]["documents"]
    gate = min(report["recipe"]["evaluate"]["share"] * kept / max(looked_at, 1), 1.0)
    alone = sum(seconds.get(part, 0.0) * (gate if part == "evaluate" else 1.0) for part in ONE_PROCESS)
    times = terabytes * 1e12 / size / 3600
    rate = size / 1e6 / (together + alone)
    lines = [f"{terabytes:g} TB of text like this run's {size / 1e6:.1f} MB, at {rate:.2f} MB a core second:"]
    for cores in CORES:
        hours = times * (together / cores + alone)
        lines.append(
            f"{cores:5} cores {hours:12,.1f} h  ({times * alone:,.1f} h of them in one process: "
            f"{', '.join(part for part in ONE_PROCESS if part in seconds)})"
        )
    lines.append(f"Ziya2 {terabytes * 1e12 / ZIYA2_HOUR:12,.1f} h  (15 GB an hour, on hardware that it does not name)")
    return "\n".join(lines)
