"""What each Triton kernel costs on a GPU, found by compiling ahead of time; no GPU and no driver needed.

    python kernels/budgets.py            compile for sm_80 and sm_90, compare with budgets.json, exit 1 on a difference
    python kernels/budgets.py --write    write budgets.json anew
    python kernels/budgets.py --search   try attention tiles and print those that do not spill

A budget is registers a thread, bytes of stack (spilled registers), bytes of shared memory, and the number of 2-byte
loads (which show that a load was not vectorised). Figures belong to one version of Triton; with another one, only the
hard rules are held: no spill, and shared memory within what the card has. Shapes are LLaMA2-7B's, 13B's and 70B's.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Both before Triton is imported: compile for real, and with the fused multiply-adds that its next release turns off.
os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ziya_kernels import (
    adamw,
    attention,
    attention_backward,
    attention_forward,
    cross_entropy,
    rms_norm,
    rotary,
    softmax,
    swiglu,
)
from ziya_kernels.attention import Tile
from ziya_kernels.launch import row_warps

TABLE = Path(__file__).with_name("budgets.json")
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block: NVIDIA's A100 and H100 tuning guides
FLOATS = {"lse_ptr", "delta_ptr", "rstd_ptr", "partial_ptr", "cos_ptr", "sin_ptr", "loss_ptr"}  # always float32
INTEGERS = {"starts_ptr": "*i32", "ends_ptr": "*i32", "target_ptr": "*i64"}
SCALARS = {
    "eps",
    "scale",
    "keep",
    "step_size",
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "root_bias2",
    "grad_scale",
}


@dataclass(frozen=True)
class Budget:
    registers: int
    stack: int
    shared: int
    narrow_loads: int


@dataclass(frozen=True)
class Case:
    """A kernel, its constants, warps and stages; every other argument's type follows from its name."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    types: dict[str, str] = field(default_factory=dict)


def compile_case(case: Case, capability: int) -> Budget:
    """Compile for sm_`capability` with BF16 tensors; pointers and sizes are multiples of 16, as PyTorch gives them."""
    signature, attributes = {}, {}
    for index, name in enumerate(case.kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
            continue
        if name.endswith("_ptr"):
            kind = "*fp32" if name in FLOATS else INTEGERS.get(name, "*bf16")
        else:
            kind = "fp32" if name in SCALARS else "i32"
        signature[name] = case.types.get(name, kind)
        if signature[name] != "fp32":
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, case.constants, attributes)
    options = {"num_warps": case.warps, "num_stages": case.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Budget(
        **resources(compiled.asm["cubin"]),
        shared=compiled.metadata.shared,
        narrow_loads=len(re.findall(r"ld\.global[.\w:]*\.[bu]16", compiled.asm["ptx"])),
    )


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes a thread, as the disassembler that Triton brings along reports them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found, report
    return {"registers": int(found[1]), "stack": int(found[2])}


def attention_case(kind: str, size: int, tile: Tile, documents: bool, dtype: str = "bf16") -> Case:
    kernel = {
        "forward": attention_forward.attention_forward_kernel,
        "backward keys": attention_backward.attention_backward_keys_kernel,
        "backward queries": attention_backward.attention_backward_queries_kernel,
    }[kind]
    heads = {"K": 8} if kind == "backward keys" else {"N": 64}
    constants = {"GROUP": 8, "D": size, "DOCUMENTS": documents, "QUERIES": tile.queries, "KEYS": tile.keys, **heads}
    name = f"attention {kind}, head {size}{', documents' if documents else ''}{', fp32' if dtype == 'fp32' else ''}"
    floats = {
        name: f"*{dtype}" for name in kernel.arg_names if name.endswith("_ptr") and name not in FLOATS | INTEGERS.keys()
    }
    return Case(name, kernel, constants, tile.warps, tile.stages, floats)


TILES = {
    "forward": attention.FORWARD,
    "backward keys": attention.BACKWARD_KEYS,
    "backward queries": attention.BACKWARD_QUERIES,
}


def cases() -> Iterator[Case]:
    for (kind, table), size, documents in itertools.product(TILES.items(), attention.FORWARD, (False, True)):
        yield attention_case(kind, size, table[size], documents)
    for kind, size in itertools.product(TILES, attention.FORWARD):
        small = attention.SMALL_KEYS if kind == "backward keys" else attention.SMALL
        yield attention_case(kind, size, small, True, "fp32")
    for size in attention.FORWARD:
        constants = {"N": 32, "D": size, "QUERIES": 64}
        yield Case(f"attention delta, head {size}", attention_backward.attention_delta_kernel, constants)
    for heads, groups in ((32, 32), (40, 40), (64, 8)):
        blocks = {"N_BLOCK": triton.next_power_of_2(heads), "K_BLOCK": triton.next_power_of_2(groups)}
        constants = {"N": heads, "K": groups, **blocks, "HALF": 64, "HALF_BLOCK": 64, "SIGN": 1}
        yield Case(f"rotary, {heads} and {groups} heads", rotary.rotary_kernel, constants, 8)
    for hidden in (4096, 5120, 8192):
        block = triton.next_power_of_2(hidden)
        for way, kernel in (
            ("forward", rms_norm.rms_norm_forward_kernel),
            ("backward", rms_norm.rms_norm_backward_kernel),
        ):
            yield Case(f"rms_norm {way}, {hidden}", kernel, {"BLOCK": block}, row_warps(block))
    yield Case("swiglu forward", swiglu.swiglu_forward_kernel, {"BLOCK": swiglu.BLOCK})
    yield Case("swiglu backward", swiglu.swiglu_backward_kernel, {"BLOCK": swiglu.BLOCK})
    grad = {"grad_ptr": "*fp32"}
    block = {"BLOCK": cross_entropy.BLOCK}
    yield Case("cross_entropy forward", cross_entropy.cross_entropy_forward_kernel, block, 8)
    yield Case("cross_entropy backward", cross_entropy.cross_entropy_backward_kernel, block, 8, types=grad)
    for block, whole in ((4096, True), (16384, True), (16384, False)):
        shape = {"WHOLE": whole, "BLOCK": block}
        name = f"{block} keys" if whole else "any length"
        forward = {"CAUSAL": True, **shape}
        yield Case(f"softmax forward, {name}", softmax.softmax_forward_kernel, forward, row_warps(block))
        yield Case(f"softmax backward, {name}", softmax.softmax_backward_kernel, shape, row_warps(block))
    flat = {name: "*fp32" for name in ("master_ptr", "exp_avg_ptr", "exp_avg_sq_ptr", "grad_ptr")}
    yield Case("adamw", adamw.adamw_kernel, {"BLOCK": adamw.BLOCK}, types=flat)


def measure() -> dict[str, dict[str, Budget]]:
    """-> {"sm_80": {case name: budget}, ...}; prints a line a case."""
    found: dict[str, dict[str, Budget]] = {}
    for capability in SHARED_LIMIT:
        for case in cases():
            budget = compile_case(case, capability)
            found.setdefault(f"sm_{capability}", {})[case.name] = budget
            print(
                f"sm_{capability}  {case.name:44} {budget.registers:4} registers {budget.stack:5} B stack "
                f"{budget.shared:7} B shared {budget.narrow_loads:3} narrow loads",
                flush=True,
            )
    return found


def faults(found: dict[str, dict[str, Budget]], table: dict[str, Any]) -> list[str]:
    """What breaks a hard rule, and what differs from the table where its Triton is ours."""
    lines = []
    for target, budgets in found.items():
        limit = SHARED_LIMIT[int(target.removeprefix("sm_"))]
        for name, budget in budgets.items():
            if budget.stack:
                lines.append(f"{target} {name}: {budget.stack} bytes of registers spill")
            if budget.shared > limit:
                lines.append(f"{target} {name}: {budget.shared} bytes of shared memory; the card has {limit}")
            if table["triton"] == triton.__version__ and table["budgets"].get(target, {}).get(name) != asdict(budget):
                lines.append(
                    f"{target} {name}: {asdict(budget)}; budgets.json has {table['budgets'][target].get(name)}"
                )
    return lines


def search() -> None:
    """Print every attention tile that spills on neither card, most queries * keys first."""
    for kind, size in itertools.product(TILES, attention.FORWARD):
        tiles = [Tile(*point) for point in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3))]
        for tile in sorted(tiles, key=lambda tile: -tile.queries * tile.keys):
            found = {c: compile_case(attention_case(kind, size, tile, True), c) for c in SHARED_LIMIT}
            if all(not budget.stack and budget.shared <= SHARED_LIMIT[c] for c, budget in found.items()):
                figures = "  ".join(f"sm_{c} {b.registers} registers {b.shared} B" for c, b in found.items())
                print(f"{kind:16} head {size:3}  {tile}  {figures}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write budgets.json anew")
    parser.add_argument("--search", action="store_true", help="print attention tiles that do not spill")
    options = parser.parse_args(argv)
    if options.search:
        search()
        return 0
    found = measure()
    table = {
        "triton": triton.__version__,
        "budgets": {target: {name: asdict(b) for name, b in budgets.items()} for target, budgets in found.items()},
    }
    if options.write:
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    wrong = faults(found, table if options.write else json.loads(TABLE.read_text()))
    print("\n".join(wrong) or "every kernel is within its budget")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
