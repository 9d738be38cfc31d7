"""The mutations still fit the source, and name tests that exist. The drill itself takes minutes and is run by hand."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("mutation_drill", ROOT / "tools/mutation_drill.py")
drill = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(drill)


@pytest.mark.parametrize("mutation", drill.MUTATIONS, ids=lambda m: m.name)
def test_mutation_fits_the_source(mutation):
    compile(drill.mutated(mutation, ROOT), mutation.file, "exec")


def test_at_least_ten_and_no_name_twice():
    assert len({m.name for m in drill.MUTATIONS}) == len(drill.MUTATIONS) >= 10


def test_moved_source_is_told():
    moved = drill.Mutation("moved", "train.py", (("this text is nowhere", ""),), ())
    with pytest.raises(ValueError, match="the source has moved"):
        drill.mutated(moved, ROOT)


def test_the_tests_it_runs_exist():
    tests = sorted({test for m in drill.MUTATIONS for test in m.tests})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *tests]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
