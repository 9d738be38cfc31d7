"""What a process sets before it computes."""

import os

import pytest
import torch

from megatron_ziya import process


@pytest.fixture
def restored(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.use_deterministic_algorithms(before[0])
    torch.set_num_threads(before[1])


def undefined_order() -> torch.Tensor:
    """Two values into one place: whichever thread comes last wins, so torch has no deterministic form of it."""
    return torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


def test_deterministic_refuses_what_has_no_fixed_order(restored):
    process.prepare("cpu", 1)
    undefined_order()
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    process.prepare("cpu", 1, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        undefined_order()


def test_threads_are_set(restored):
    process.prepare("cpu", 2)
    assert torch.get_num_threads() == 2
