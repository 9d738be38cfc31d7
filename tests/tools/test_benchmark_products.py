"""The table has a row a matrix, and the engine's choice is told."""

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_products.py"


def test_every_matrix_has_a_row():
    environment = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, str(TOOL), "--calls", "2"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=True)
    first, *rows = run.stdout.splitlines()
    assert "the engine takes" in first and sum(row.count(" | ") == 3 for row in rows) == 6
