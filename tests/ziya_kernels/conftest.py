"""The worker that runs Triton kernels in the interpreter, one for the whole session."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """interpreted(operator, arguments, grads) -> (outputs, gradients, arguments after the call), by interpreter.py."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("interpreter.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None

    def ask(operator: str, arguments: tuple, grads: tuple = ()) -> Any:
        pickle.dump((operator, arguments, grads), worker.stdin)
        worker.stdin.flush()
        result = pickle.load(worker.stdout)
        if isinstance(result, Exception):
            raise result
        return result

    yield ask
    worker.stdin.close()
    worker.wait(10)
