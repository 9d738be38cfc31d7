"""tools/gpu_check.sh on a machine without a GPU, and with nvidia-smi and Python played by lines of shell."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "gpu_check.sh"
# what a checkout's .venv/bin/python would do: torch is there, one part of the tests fails, the benchmark writes a table
PYTHON = """#!/usr/bin/env bash
case "$*" in
*tests/ziya_kernels*) echo "12 passed" ;;
*tests/megatron_ziya*) echo "E  wrong | loss"; exit {engine} ;;
*benchmark_kernels.py*) printf '# Kernels: today\\n\\n| a table |\\n' >"${{@: -1}}" ;;
*print*) echo "torch 2.13" ;;
esac
"""
SMI = """#!/usr/bin/env bash
case "$1" in
-L) echo "GPU 0: it" ;;
*) echo "NVIDIA H100 80GB HBM3, 550.54" ;;
esac
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def check(folder: Path, smi: str, engine: int = 0) -> subprocess.CompletedProcess[str]:
    (folder / "tools").mkdir()
    shutil.copy(TOOL, folder / "tools")
    program(folder / "bin/nvidia-smi", smi)
    program(folder / ".venv/bin/python", PYTHON.format(engine=engine))
    environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(folder / "tools/gpu_check.sh")], env=environment, capture_output=True, text=True, timeout=60
    )


def test_without_a_gpu_one_line_and_exit_code_2(tmp_path):
    run = check(tmp_path, "#!/usr/bin/env bash\nexit 9\n")
    assert run.returncode == 2
    assert run.stderr == "gpu_check: nvidia-smi finds no GPU on this machine; nothing was run\n"
    assert run.stdout == "" and not (tmp_path / "docs").exists()


@pytest.mark.parametrize("engine", [0, 3])
def test_every_part_runs_and_a_dated_table_is_written(tmp_path, engine):
    run = check(tmp_path, SMI, engine)
    assert run.returncode == (1 if engine else 0), run.stderr
    (table,) = (tmp_path / "docs/gpu").iterdir()
    assert table.name.endswith("-NVIDIA-H100-80GB-HBM3.md") and table.name.startswith("20")
    text = table.read_text()
    assert "driver 550.54, 1 GPU(s), torch 2.13, commit" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == [
        "| set-up",
        "| tests of the kernels",
        "| tests of the engine, NCCL",
        "| benchmark",
        "| a table |",
    ]
    assert rows[1][1] == "pass" and rows[1][3].startswith("12 passed")
    assert rows[2][1] == ("FAIL, exit code 3" if engine else "pass")
    assert rows[3][1] == "pass"
    assert "## Kernels: today" in text
    assert ("E  wrong | loss" in text) == bool(engine), "the end of a failing part's words is in the table"


def test_the_limits_leave_it_under_eight_minutes():
    limits = [int(line.split('"')[2].split()[0]) for line in TOOL.read_text().splitlines() if line.startswith('part "')]
    assert len(limits) == 4
    assert sum(limits) + 2 * len(limits) < 480, "timeout kills 2 s after it has asked"
