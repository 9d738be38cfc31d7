"""What each Triton kernel costs on a GPU, found by compiling ahead of time; no GPU and no driver needed.

    python kernels/budgets.py                  compile for all TARGETS, compare with budgets.json, exit 1 if not equal
    python kernels/budgets.py --targets sm_90  for some of them
    python kernels/budgets.py --write          write budgets.json anew
    python kernels/budgets.py --search         try attention tiles and print those that do not spill

A budget is registers a thread, bytes of stack (spilled registers), bytes of shared memory, the number of 2-byte loads
(which show that a load was not vectorised) and that of the instructions that multiply matrices. Figures belong to one
version of Triton; with another one, only the hard rules are held: no spill, and shared memory within what the card has.
Shapes are LLaMA2-7B's, 13B's and 70B's.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
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
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# bytes a block: NVIDIA's tuning guides of A100, H100 and Blackwell; the LDS of AMD's CDNA3 instruction set
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
NARROW_LOADS = r"ld\.global[.\w:]*\.[bu]16|(?:global|buffer)_load_(?:ushort|short_d16)"
PRODUCTS = r"wgmma\.mma_async|mma\.sync|tcgen05\.mma|v_mfma_"
FLOATS = {"lse_ptr", "delta_ptr", "rstd_ptr", "partial_ptr", "cos_ptr", "sin_ptr", "numbers_ptr"}  # always float32
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
    products: int


@dataclass(frozen=True)
class Case:
    """A kernel, its constants, warps and stages; every other argument's type follows from its name."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    types: dict[str, str] = field(default_factory=dict)


def compile_case(case: Case, target: str) -> Budget:
    """Compile for `target` with BF16 tensors; pointers and sizes are multiples of 16, as PyTorch gives them."""
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
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    on_amd = TARGETS[target].backend == "hip"
    code = compiled.asm["amdgcn" if on_amd else "ptx"]
    return Budget(
        **(resources_of_amd(code) if on_amd else resources(compiled.asm["cubin"])),
        shared=compiled.metadata.shared,
        narrow_loads=len(re.findall(NARROW_LOADS, code)),
        products=len(re.findall(PRODUCTS, code)),
    )


def resources_of_amd(code: str) -> dict[str, int]:
    """Vector registers and private bytes a thread, as the assembly says in its metadata."""
    registers, stack = (re.search(rf"\.{name}:\s+(\d+)", code) for name in ("vgpr_count", "private_segment_fixed_size"))
    assert registers and stack, "the assembly has no metadata"
    return {"registers": int(registers[1]), "stack": int(stack[1])}


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


def attention_case(
    kind: str, size: int, tile: Tile, documents: bool, dtype: str = "bf16", keys: int = 8, group: int = 8
) -> Case:
    """`keys` heads of keys, `group` of queries for each: LLaMA2-70B's unless told otherwise."""
    kernel = {
        "forward": attention_forward.attention_forward_kernel,
        "backward keys": attention_backward.attention_backward_keys_kernel,
        "backward queries": attention_backward.attention_backward_queries_kernel,
    }[kind]
    heads = {"K": keys} if kind == "backward keys" else {"N": keys * group}
    constants = {"GROUP": group, "D": size, "DOCUMENTS": documents, "QUERIES": tile.queries, "KEYS": tile.keys, **heads}
    name = f"attention {kind}, head {size}{', documents' if documents else ''}{', fp32' if dtype == 'fp32' else ''}"
    name += f", {keys} heads" if group == 1 else ""
    floats = {
        name: f"*{dtype}" for name in kernel.arg_names if name.endswith("_ptr") and name not in FLOATS | INTEGERS.keys()
    }
    return Case(name, kernel, constants, tile.warps, tile.stages, floats)


def cases(target: str) -> Iterator[Case]:
    """Every kernel, in every configuration that is shipped for a target."""
    for kind, size, documents in itertools.product(attention.TILES, attention.SIZES, (False, True)):
        yield attention_case(kind, size, attention.tile(kind, size, False, target), documents)
    for kind, heads, documents in itertools.product(attention.TILES, (32, 40), (False, True)):  # 7B's and 13B's
        tile = attention.tile(kind, 128, False, target)
        yield attention_case(kind, 128, tile, documents, keys=heads, group=1)
    for kind, size in itertools.product(attention.TILES, attention.SIZES):
        yield attention_case(kind, size, attention.tile(kind, size, True, target), True, "fp32")
    for size in attention.SIZES:
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
            for residual in (False, True):
                name = f"rms_norm {way}, {hidden}{', residual' if residual else ''}"
                yield Case(name, kernel, {"RESIDUAL": residual, "BLOCK": block}, row_warps(block))
    yield Case("swiglu forward", swiglu.swiglu_forward_kernel, {"BLOCK": swiglu.BLOCK})
    yield Case("swiglu backward", swiglu.swiglu_backward_kernel, {"BLOCK": swiglu.BLOCK})
    grad = {"grad_ptr": "*fp32"}
    block = {"BLOCK": cross_entropy.BLOCK}
    for share in (False, True):
        name = f"cross_entropy forward{', share' if share else ''}"
        yield Case(name, cross_entropy.cross_entropy_forward_kernel, {"SHARE": share, **block}, 8)
    yield Case("cross_entropy backward", cross_entropy.cross_entropy_backward_kernel, block, 8, types=grad)
    for block, whole in ((4096, True), (16384, True), (16384, False)):
        shape = {"WHOLE": whole, "BLOCK": block}
        name = f"{block} keys" if whole else "any length"
        forward = {"CAUSAL": True, **shape}
        yield Case(f"softmax forward, {name}", softmax.softmax_forward_kernel, forward, row_warps(block))
        yield Case(f"softmax backward, {name}", softmax.softmax_backward_kernel, shape, row_warps(block))
    flat = {name: "*fp32" for name in ("master_ptr", "exp_avg_ptr", "exp_avg_sq_ptr", "grad_ptr")}
    yield Case("adamw", adamw.adamw_kernel, {"BLOCK": adamw.BLOCK}, types=flat)


def measure(targets: Sequence[str]) -> dict[str, dict[str, Budget]]:
    """-> {target: {case name: budget}, ...}; prints a line a case."""
    found: dict[str, dict[str, Budget]] = {}
    for target in targets:
        for case in cases(target):
            budget = compile_case(case, target)
            found.setdefault(target, {})[case.name] = budget
            print(
                f"{target:6}  {case.name:54} {budget.registers:4} registers {budget.stack:5} B stack {budget.shared:7} "
                f"B shared {budget.narrow_loads:3} narrow loads {budget.products:3} products",
                flush=True,
            )
    return found


def faults(found: dict[str, dict[str, Budget]], table: dict[str, Any]) -> list[str]:
    """What breaks a hard rule, and what differs from the table where its Triton is ours."""
    lines = []
    for target, budgets in found.items():
        limit = SHARED_LIMIT[target]
        for name, budget in budgets.items():
            if budget.stack:
                lines.append(f"{target} {name}: {budget.stack} bytes of registers spill")
            if budget.shared > limit:
                lines.append(f"{target} {name}: {budget.shared} bytes of shared memory; the card has {limit}")
            known = table["budgets"].get(target, {}).get(name)
            if table["triton"] == triton.__version__ and known != asdict(budget):
                lines.append(f"{target} {name}: {asdict(budget)}; budgets.json has {known}")
    return lines


def search(targets: Sequence[str]) -> None:
    """Print every attention tile that spills on none of the targets, most queries * keys first."""
    for kind, size in itertools.product(attention.TILES, attention.SIZES):
        tiles = [Tile(*point) for point in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3))]
        for tile in sorted(tiles, key=lambda tile: -tile.queries * tile.keys):
            found = {t: compile_case(attention_case(kind, size, tile, True), t) for t in targets}
            if all(not budget.stack and budget.shared <= SHARED_LIMIT[t] for t, budget in found.items()):
                figures = "  ".join(f"{t} {b.registers} registers {b.shared} B" for t, b in found.items())
                print(f"{kind:16} head {size:3}  {tile}  {figures}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Compile all, and compare with budgets.json or write it. Returns 1 when a kernel is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write budgets.json anew")
    parser.add_argument("--search", action="store_true", help="print attention tiles that do not spill")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="default all")
    options = parser.parse_args(argv)
    if options.search:
        search(options.targets)
        return 0
    found = measure(options.targets)
    table = json.loads(TABLE.read_text())
    if options.write:
        kept = table["budgets"] if table["triton"] == triton.__version__ else {}
        kept |= {target: {name: asdict(b) for name, b in budgets.items()} for target, budgets in found.items()}
        table = {"triton": triton.__version__, "budgets": kept}
        part = TABLE.with_name(TABLE.name + ".tmp")
        part.write_text(json.dumps(table, indent=1) + "\n")
        part.replace(TABLE)
    wrong = faults(found, table)
    print("\n".join(wrong) or "every kernel is within its budget")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
