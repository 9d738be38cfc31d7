"""Which implementation is chosen, and what a user reads when one cannot run."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ziya_kernels import select

CPU = torch.device("cpu")
CUDA = torch.device("cuda")  # only named: nothing below touches a GPU


def test_auto_is_torch_on_a_cpu_and_triton_on_a_gpu() -> None:
    assert select("auto", CPU).name == "torch"
    assert select("auto", CUDA).name == "triton"
    assert select("auto", CUDA).attention.__module__ == "ziya_kernels.attention"


def test_auto_without_triton_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziya_kernels.dispatch.find_spec", lambda name: None)
    assert select("auto", CUDA).name == "torch"
    with pytest.raises(ValueError, match="not installed; use kernels=torch"):
        select("triton", CUDA)


def test_describe_is_one_line_that_names_every_operator() -> None:
    line = select("torch", CPU).describe()
    assert line == (
        "kernels=torch on cpu; "
        "reference: rms_norm rms_norm_residual rotary rotary_qkv attention attention_varlen swiglu softmax adamw; "
        "reference_loss: cross_entropy cross_entropy_share cross_entropy_share_gradient head_loss"
    )


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("cuda", CPU, "kernels='cuda' is not known; use one of auto, triton, torch, compiled, apex"),
        ("triton", CPU, "kernels='triton' cannot run on cpu; use kernels=torch"),
        ("apex", CPU, "kernels='apex' cannot run on cpu; use kernels=torch"),
        ("apex", CUDA, "PyPI's apex is another package"),
    ],
)
def test_message(name: str, device: torch.device, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(name, device)


def test_an_apex_of_pypi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    with pytest.raises(ValueError, match="FusedRMSNorm is missing"):
        select("apex", CUDA)


def test_apex_gets_its_own_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with apex's symbols: which function is called, and with what."""
    calls = []

    def norm(x: torch.Tensor, weight: torch.Tensor, shape: torch.Size, eps: float) -> torch.Tensor:
        calls.append(("norm", shape, eps))
        return x.to(weight.dtype)

    def adam(chunk: int, overflow: torch.Tensor, lists: list, *settings: float) -> None:
        calls.append(("adam", *settings))
        lists[1][0].add_(lists[0][0])

    modules = {
        "apex": SimpleNamespace(__path__=[]),
        "apex.normalization": SimpleNamespace(FusedRMSNorm=object, __path__=[]),
        "apex.normalization.fused_layer_norm": SimpleNamespace(
            fused_rms_norm_affine=norm, mixed_dtype_fused_rms_norm_affine=norm
        ),
        "apex.optimizers": SimpleNamespace(FusedAdam=object),
        "amp_C": SimpleNamespace(multi_tensor_adam=adam),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    kernels = select("apex", CUDA)
    assert (kernels.name, kernels.swiglu.__module__) == ("apex", "ziya_kernels.swiglu")
    y = kernels.rms_norm(torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(4), 1e-5)
    assert y.dtype == torch.bfloat16
    master = torch.zeros(3)
    kernels.adamw(master, torch.zeros(3), torch.zeros(3), torch.ones(3), 0.1, 0.9, 0.95, 1e-8, 0.01, 7, 0.5)
    assert master.tolist() == [0.5] * 3
    assert calls == [("norm", (4,), 1e-5), ("adam", 0.1, 0.9, 0.95, 1e-8, 7, 1, 1, 0.01)]
