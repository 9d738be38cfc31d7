import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_collectives.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)


def test_every_way_has_a_row_and_what_fits_no_slot_has_no_shared_memory():
    rows = run("--kib", "1", "--rounds", "1").stdout.splitlines()
    assert sum(row.startswith(("| gather", "| reduce-scatter")) for row in rows) == 6
    assert sum("shared memory" in row for row in rows) == 2


def test_one_rank_is_refused():
    refused = run("--ranks", "1")
    assert refused.returncode == 2
    assert "use 2 or more" in refused.stderr
