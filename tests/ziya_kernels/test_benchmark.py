"""`ziya benchmark kernels` on the tiny shape: every kernel and pass, its files, its roofs, and who takes part."""

import csv
import dataclasses
import math
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ziya_kernels import reference, select
from ziya_kernels.benchmark import cases, commands, measure, peers, roof, table

CPU = torch.device("cpu")
TINY = cases.SHAPES["tiny"]
BOTH = ("forward", "backward")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Roofs cost a second each; what they are is tested by itself."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(roof, "of_device", lambda device, dtype: roof.Roof("a CPU", 1e10, 1e11, "made up", 1e10))
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    monkeypatch.setattr(commands, "_keep_freed_memory", lambda: None)  # it would hold for every later test
    yield
    torch.set_num_threads(threads)


def test_every_kernel_and_pass_in_every_file(tmp_path, capfd):
    files = {kind: tmp_path / "out" / f"k.{kind}" for kind in ("csv", "markdown", "png")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    assert commands.kernels(["--shapes", "tiny", "--dtype", "fp32,bf16", "--rounds", "1", *options]) == 0
    printed = capfd.readouterr()
    assert "USDT" not in printed.err and "Traceback" not in printed.err
    rows = list(csv.DictReader(files["csv"].open()))
    found = {(row["kernel"], row["direction"], row["dtype"], row["side"]) for row in rows}
    for kernel in cases.KERNELS:
        for direction in cases.work(kernel, TINY, 4):
            for dtype in ("float32", "bfloat16") if kernel != "adamw" else ("float32",):
                assert {(kernel, direction, dtype, side) for side in ("ours", "eager")} <= found
    assert ("rms_norm", "forward", "bfloat16", "torch fused") in found
    assert all(float(row["ms"]) > 0 and float(row["share"]) > 0 and not row["failure"] for row in rows)
    for row in rows:  # a unit in the last place of the largest value, some tens of them where sums are long
        assert float(row["error"]) < {"float32": 2e-6, "bfloat16": 2e-2}[row["dtype"]], row
    text = files["markdown"].read_text()
    assert "This machine has no GPU: nothing below was measured. Predicted floor" in text
    assert printed.out.strip() in text
    assert "\n`ziya benchmark kernels --shapes tiny --dtype fp32,bf16 --rounds 1 --csv " in text
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["k.csv", "k.markdown", "k.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shapes", "llama3"], "--shapes: 'llama3' is not known; use some of tiny,llama2-7b"),
        (["--kernels", "softmin"], "--kernels: 'softmin' is not known; use some of rotary,rotary_qkv,attention"),
        (["--dtype", "int8"], "--dtype: 'int8' is not known; use some of fp32,bf16,fp16"),
        (["--rounds", "0"], "--rounds=0 must be 1 or more"),
        (["--device", "cuda"], "torch sees no GPU"),
    ],
)
def test_a_mistake_is_told(words, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        commands.kernels(words)


def test_the_floor_of_7b_by_hand():
    """RMSNorm of [4096, 4096] in BF16 moves 2 x 32 MiB; attention makes two products of half of 4096^2 x 4096."""
    shape, (a100, h100) = cases.SHAPES["llama2-7b"], roof.DATA_SHEETS
    norm = cases.work("rms_norm", shape, 2)["forward"]
    assert h100.bound(norm) == "memory"
    assert a100.floor(norm) == pytest.approx(2 * 2**25 / 2039e9)
    attention = cases.work("attention", shape, 2)
    assert h100.bound(attention["forward"]) == "compute"
    assert h100.floor(attention["forward"]) == pytest.approx(2 * 4096**3 / 989.4e12)
    assert a100.floor(attention["backward"]) == pytest.approx(5 * 4096**3 / 312e12)
    assert cases.work("attention documents", shape, 2)["forward"].flops == 2 * 4096**3 / 8
    assert cases.work("adamw", shape, 2)["forward"].bytes == 28 * 4096 * 11008


@pytest.mark.parametrize(
    ("name", "capability", "figures", "bandwidth", "peak"),
    [
        ("A100", (8, 0), (1593000, 5120, 1410000, 108), 2039e9, 312e12),
        ("H100", (9, 0), (2619000, 5120, 1830000, 132), 3352e9, 989.4e12),
    ],
)
def test_a_gpu_tells_what_its_data_sheet_says(name, capability, figures, bandwidth, peak, monkeypatch):
    monkeypatch.undo()
    memory_clock, width, clock, processors = figures
    properties = types.SimpleNamespace(
        name=name, major=capability[0], minor=capability[1], memory_clock_rate=memory_clock, memory_bus_width=width,
        clock_rate=clock, multi_processor_count=processors,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(roof, "measured_copy", lambda device: 1.0)
    found = roof.of_device(torch.device("cuda"), torch.bfloat16)
    assert found.bandwidth == pytest.approx(bandwidth, rel=1e-3)
    assert found.peak == pytest.approx(peak, rel=1e-3)
    assert found.copy == 1.0


def test_a_cpu_is_measured(monkeypatch):
    monkeypatch.undo()
    assert roof.processor()
    monkeypatch.setattr(roof, "_rate", lambda call, amount, device: (call(), amount)[1])
    found = roof.of_device(CPU, torch.float32)
    assert (found.bandwidth, found.peak) == (8.0 * 2**26, 2.0 * 768**3)


def test_peak_counts_what_is_freed_again():
    def call() -> torch.Tensor:
        first = torch.empty(1 << 20)
        second = first + 1
        del first
        return second * 2

    assert measure.peak(call, CPU) == pytest.approx(2 * 4 * 2**20, abs=1000)


def test_a_wrong_kernel_shows_in_its_error():
    sides = [
        peers.Side("ours", lambda x: reference.swiglu(x) * 1.01),
        peers.sides("swiglu", select("torch", CPU), False)[1],
    ]
    rows = measure.compare("swiglu", TINY, torch.float32, sides, roof.Roof("", 1.0, 1.0, ""), 1, CPU)
    wrong = {(row.direction, row.side): row.error for row in rows}
    for direction in BOTH:
        assert wrong[direction, "ours"] == pytest.approx(0.01, rel=0.2)
        assert wrong[direction, "eager"] < 1e-6


def test_a_side_that_cannot_run_is_named_and_the_others_go_on(monkeypatch, capsys):
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such card\nand more")

    plain = peers.sides
    monkeypatch.setattr(peers, "sides", lambda *given: [*plain(*given), peers.Side("other", broken)])
    assert commands.kernels(["--shapes", "tiny", "--kernels", "swiglu", "--rounds", "1"]) == 0
    assert "other failed on swiglu (tiny): RuntimeError: no such card\n" in capsys.readouterr().out
    monkeypatch.setattr(peers, "sides", lambda *given: [peers.Side("ours", broken), *plain(*given)[1:]])
    assert commands.kernels(["--shapes", "tiny", "--kernels", "swiglu", "--rounds", "1"]) == 1


def test_a_short_turn_is_repeated_and_each_side_begins_once():
    order: list[str] = []
    measure.times({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, CPU)
    assert order[-4:] == ["a", "b", "b", "a"]


# --- The others: their place is taken by functions of the same signature, to prove layouts and arguments


class Rope:
    """Liger's: heads before tokens, whole tables, in place of nothing here."""

    @staticmethod
    def apply(q, k, cos, sin):
        def turned(x):
            first, second = x.chunk(2, -1)
            return x * cos.unsqueeze(1) + torch.cat([-second, first], -1) * sin.unsqueeze(1)

        return turned(q), turned(k)


def flash(q, k, v, causal):
    assert causal
    return reference.attention(q, k, v)


def ragged(q, k, v, ends_q, ends_k, longest_q, longest_k, causal):
    assert causal and ends_q.dtype == torch.int32 and torch.equal(ends_q, ends_k)
    assert longest_q == longest_k == int(ends_q.diff().max())
    parts = [x.split(ends_q.diff().tolist()) for x in (q, k, v)]
    return torch.cat([reference.attention(*(x[None] for x in one))[0] for one in zip(*parts, strict=True)])


class Upper:
    @staticmethod
    def apply(scores, scale):
        assert scores.dim() == 3
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return (scores * scale).masked_fill(hidden, -math.inf).softmax(-1)


FAKES = {
    "liger_kernel.transformers.functional": {
        "liger_rms_norm": lambda x, w, eps, offset=0.0, casting_mode="llama", in_place=True: F.rms_norm(
            x, w.shape, w, eps
        ),
        "liger_fused_add_rms_norm": lambda x, r, w, eps, offset=0.0, casting_mode="llama", in_place=True: (
            F.rms_norm(x + r, w.shape, w, eps),
            x + r,
        ),
        "liger_swiglu": lambda a, b: F.silu(a) * b,
        "liger_rope": Rope.apply,
        "liger_cross_entropy": lambda x, y, reduction="mean": F.cross_entropy(x, y, reduction=reduction),
        "liger_fused_linear_cross_entropy": lambda x, w, y, bias=None, reduction="mean": F.cross_entropy(
            x @ w.t(), y, reduction=reduction
        ),
    },
    "flash_attn": {"flash_attn_func": flash, "flash_attn_varlen_func": ragged},
    "scaled_upper_triang_masked_softmax_cuda": {"forward": object()},
    "apex.transformer.functional.fused_softmax": {"ScaledUpperTriangMaskedSoftmax": Upper},
}


@pytest.mark.parametrize(
    ("kernel", "other"),
    [
        ("rms_norm", "liger"),
        ("rms_norm_residual", "liger"),
        ("swiglu", "liger"),
        ("rotary", "liger"),
        ("cross_entropy", "liger"),
        ("head_loss", "liger"),
        ("attention", "flash-attn"),
        ("attention documents", "flash-attn"),
        ("attention_varlen", "flash-attn"),
        ("softmax", "apex"),
    ],
)
def test_others_are_called_as_they_want_to_be(kernel, other, monkeypatch):
    for name, symbols in FAKES.items():
        module = types.ModuleType(name)
        module.__dict__.update(symbols)
        monkeypatch.setitem(sys.modules, name, module)
    on_gpu = dataclasses.replace(select("torch", CPU), device=torch.device("cuda"))
    found = {side.name: side for side in peers.sides(kernel, on_gpu, False)}
    pair = [found["eager"], found[other]]
    rows = measure.compare(kernel, TINY, torch.float32, pair, roof.Roof("", 1.0, 1.0, ""), 1, CPU)
    assert {row.side for row in rows} == {"eager", other} and not any(row.failure for row in rows)
    assert all(row.error < 2e-6 for row in rows)


def test_none_of_the_others_is_needed(monkeypatch):
    for name in ("liger_kernel", "flash_attn", "apex", "amp_C"):
        monkeypatch.setitem(sys.modules, name, None)
    assert peers.installed() == {"liger": False, "flash-attn": False, "apex": False}


def test_goals_are_judged_by_the_sums():
    def row(kernel: str, side: str, ms: float, share: float, bound: str = "memory") -> measure.Row:
        return measure.Row("7b", kernel, "forward", "bfloat16", side, ms=ms, share=share, bound=bound)

    rows = [
        row("rotary", "ours", 1.0, 0.85),
        row("swiglu", "ours", 2.0, 0.70),
        row("rotary", "liger", 2.0, 0.4),
        row("swiglu", "liger", 1.5, 0.4),
        row("attention", "ours", 3.0, 0.5, "compute"),
        row("attention", "flash-attn", 2.0, 0.7, "compute"),
    ]
    said = table.goals(rows, 0.9)
    assert said[0].endswith("1 of 2")
    assert "ours 3 ms, flash-attn 2 ms in all: missed" in said[1]
    assert "ours 3 ms, liger 3.5 ms in all: met" in said[2]
    assert table.goals(rows[:2], 0.9)[1] == "beside flash-attn: not installed, or nothing ran"


def test_the_script_says_a_mistake_in_one_line(monkeypatch):
    tool = str(Path(__file__).resolve().parents[2] / "tools/benchmark_kernels.py")
    monkeypatch.setattr(sys, "argv", [tool, "--shapes", "x"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="benchmark_kernels: error: --shapes: 'x' is not known"):
        runpy.run_path(tool, run_name="__main__")
