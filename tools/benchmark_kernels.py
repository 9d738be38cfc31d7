"""What each kernel costs here, from a checkout that is not installed: the command `ziya benchmark kernels`.

python tools/benchmark_kernels.py --shapes llama2-7b,llama2-13b,llama2-70b --csv kernels.csv --png kernels.png
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))

from ziya_kernels.benchmark.commands import kernels

if __name__ == "__main__":
    try:
        sys.exit(kernels(sys.argv[1:]))
    except ValueError as error:
        sys.exit(f"benchmark_kernels: error: {error}")
