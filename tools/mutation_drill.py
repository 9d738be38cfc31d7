"""Break one known thing at a time in a copy of the tree, and see a fast test go red.

Prints mutation -> the test that caught it and what it said, so that a mutation that only crashes shows. Exit code 1
when a mutation survives. Each mutation is an exact text that occurs once in the source; when the source has moved, the
drill says so and stops (tests/tools/test_mutation_drill.py notices at once).

example:
  python tools/mutation_drill.py
  python tools/mutation_drill.py --only padding --only norm
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("megatron_ziya", "kernels", "data_tools", "tests", "pyproject.toml")
LIMIT = 180  # seconds for the tests of one mutation
GRID = "tests/megatron_ziya/parallel/test_grid.py"
LLAMA = "tests/megatron_ziya/model/test_llama.py"
STEPS = "tests/megatron_ziya/test_fifty_steps.py"
VERIFY = "tests/megatron_ziya/parallel/test_schedule.py"


class Mutation(NamedTuple):
    name: str
    file: str
    """Under megatron_ziya/."""
    edits: tuple[tuple[str, str], ...]
    """Texts that occur once, and what stands there instead."""
    tests: tuple[str, ...]
    """What should catch it, as pytest's arguments."""


def cell(*names: str) -> tuple[str, ...]:
    """Cells of the parity grid by name."""
    return tuple(f"{GRID}::test_cell[{name}]" for name in names)


MUTATIONS = (
    Mutation("drop an all-reduce of tensor parallel's backward", "parallel/collectives.py", ((
        "return board.start(x, _sum)", "return Pending(x)"),), cell("tensor=2 sequence=False tied=True")),
    Mutation("write a slot of shared memory that another rank still reads", "parallel/shared.py", ((
        "self.started - self.pending[0].number >= AHEAD", "self.started - self.pending[0].number > 2 * SLOTS"),),
        ("tests/megatron_ziya/parallel/test_collectives.py",)),
    Mutation("scale the loss's gradient by tp", "model/head.py", ((
        "seed = mask[part].to(scores.dtype) * scale",
        "seed = mask[part].to(scores.dtype) * scale * (head.axis.size if hasattr(head, 'axis') else 1)"),),
        cell("tensor=2 clip=0.5")),
    Mutation("count replicated norms once per tp rank in the clip norm", "trainer.py", ((
        "held_by=mesh.tensor, counted=mesh.tensor.index == 0)", "held_by=mesh.tensor, counted=True)"),),
        cell("tensor=2 clip=0.5")),
    Mutation("count a tied embedding on both stages", "trainer.py", ((
        "counted=apart.index == 0)", "counted=True)"),), cell("tensor=2 pipeline=2 kv_heads=4 tied=True clip=0.5")),
    Mutation("a tied embedding's two gradients not summed", "trainer.py", ((
        "apart = mesh.tied if uses == 1 else Axis()", "apart = Axis()"),),
        cell("tensor=2 pipeline=2 kv_heads=4 tied=True clip=0.5")),
    Mutation("norm gradients that differ across tp under sequence parallel", "trainer.py", ((
        "axis = mesh.tensor if sequence else Axis()", "axis = Axis()"),), cell("tensor=2 clip=0.5")),
    Mutation("reorder micro-batches between stages", "parallel/pipeline.py", ((
        "batch = self.batches[micro_batch]",
        "batch = self.batches[-1 - micro_batch if messages else micro_batch]"),),
        cell("pipeline=3 micro=2 clip=0.5")),
    Mutation("a schedule that runs two micro-batches in the wrong order", "parallel/schedule.py", ((
        "    return [forward + backward for _ in range(stages)]",
        "    return [forward + backward[::-1] for _ in range(stages - 1)] + [forward + backward]"),),
        (VERIFY, *cell("pipeline=2 schedule=gpipe kv_heads=4"))),
    Mutation("skip the last micro-batch in the reduce", "parallel/data.py", ((
        "if self.missing[bucket] == 0 and bucket.kind.sum_over.size == 1:",
        "if self.missing[bucket] == sum(self.per_micro_batch[w] for w in bucket.weights) "
        "and bucket.kind.sum_over.size == 1:"),), cell("data=5 kv_heads=4 clip=0.5")),
    Mutation("accumulate gradients in BF16", "trainer.py", ((
        "gradient_type = torch.promote_types(dtype, torch.float32)", "gradient_type = dtype"),),
        (f"{STEPS}::test_bf16_gradients_add_up_in_fp32",)),
    Mutation("cast inv_freq to BF16", "model/llama.py", ((
        "inv_freq = 1.0 / (a.rope_theta**exponents) / a.rope_scaling",
        "inv_freq = (1.0 / (a.rope_theta**exponents) / a.rope_scaling).bfloat16().float()"),),
        (f"{LLAMA}::test_logits_loss_and_gradients",)),
    Mutation("whole logits into the vocabulary-parallel loss (loss + log tp)", "parallel/cross_entropy.py", ((
        "return largest, total, target", "return largest, total * self.axis.size, target"),),
        cell("tensor=2 clip=0.5")),
    Mutation("padded vocabulary leaks into the softmax", "parallel/cross_entropy.py", ((
        'scores[:, self.existing :] = float("-inf")', "pass"),), cell("tensor=2 clip=0.5")),
    Mutation("a stage's share is left out of the head's gradient", "parallel/pipeline.py", ((
        "gradient = torch.stack(messages).sum(0)", "gradient = torch.stack(messages[:-1]).sum(0)"),),
        cell("pipeline=3 documents=False micro=2 clip=0.5 spread_head=True")),
    Mutation("a stage scales its share by its own largest score", "parallel/cross_entropy.py", ((
        "factor = scores.seed * (scores.largest - most).exp() / total", "factor = scores.seed / total"),),
        cell("pipeline=3 documents=False micro=2 clip=0.5 spread_head=True")),
    Mutation("gather the weights before the step (stale weights)", "optimizer.py", (
        ("        for state in self.states:\n            self.kernels.adamw(",
         "        for state in self.states:\n            state.bucket.gather()\n            self.kernels.adamw("),
        ("copy_(state.master)\n            state.bucket.gather()", "copy_(state.master)")),
        cell("data=5 kv_heads=4 clip=0.5")),
    Mutation("gather the BF16 weights before they are copied from the masters", "optimizer.py", ((
        "state.bucket.flat[state.bucket.share].copy_(state.master)\n            state.bucket.gather()",
        "state.bucket.gather()\n            state.bucket.flat[state.bucket.share].copy_(state.master)"),),
        (f"{GRID}::test_narrow_types_round_no_more_than_one_process",)),
    Mutation("pipeline sums micro-batches instead of averaging", "trainer.py", ((
        "max(tokens, 1) / loss_scale.value",
        "max(tokens, 1) / loss_scale.value * (len(micro_batches) if mesh.pipeline.size > 1 else 1)"),),
        cell("pipeline=3 micro=2 clip=0.5")),
    Mutation("every stage clips by stage 0's norm", "optimizer.py", ((
        "            dist.all_reduce(total)", "            dist.broadcast(total, 0)"),),
        cell("pipeline=3 micro=2 clip=0.5")),
    Mutation("every data-parallel rank reads the first one's rows", "batches.py", ((
        "first = data.rows_before(step) + mesh.data.index * share", "first = data.rows_before(step)"),),
        cell("data=5 kv_heads=4 clip=0.5")),
    Mutation("mean over all tokens instead of those that count", "trainer.py", ((
        "recipe.data.sequence_length / max(tokens, 1)", "recipe.data.sequence_length / "
        "(recipe.data.rows(trainer.step) * recipe.data.sequence_length)"),), (STEPS,)),
    Mutation("decay the norms too", "trainer.py", ((
        "yield weight, Kind(False, sum_over=axis", "yield weight, Kind(True, sum_over=axis"),), (STEPS,)),
    Mutation("Adam's bias correction one step late", "optimizer.py", ((
        "else 0.0, number, gradient_scale * clip", "else 0.0, number + 1, gradient_scale * clip"),), (STEPS,)),
    Mutation("documents of a row see each other", "model/llama.py", ((
        "            mixed = self.kernels.attention(q, k, v, batch.starts)",
        "            mixed = self.kernels.attention(q, k, v, None)"),), (LLAMA,)),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Break one known thing at a time and see a test go red.",
        epilog="example:\n  python tools/mutation_drill.py --only padding",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", default=[], help="mutations whose name has this word")
    only = parser.parse_args().only
    chosen = [m for m in MUTATIONS if not only or any(word in m.name for word in only)]
    if not chosen:
        parser.error(f"no mutation has {only} in its name")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_tree(copy)
        for mutation in chosen:
            mutated(mutation, copy)  # all of them, before the first minute is spent
        code, answer, seconds = run_tests(sorted({test for m in chosen for test in m.tests}), copy, LIMIT * 3)
        print(f"nothing broken: {answer} in {seconds:.0f} s\n", flush=True)
        if code:
            return 1
        print("| mutation | went red | it said | seconds |\n|---|---|---|---|", flush=True)
        survived = [m for m in chosen if not drill(m, copy)]
    print(f"\n{len(chosen) - len(survived)} of {len(chosen)} caught")
    return 1 if survived else 0


def copy_tree(copy: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)


def mutated(mutation: Mutation, tree: Path) -> str:
    """The source with the mutation in it. Raises ValueError when a text is not there exactly once."""
    text = (tree / "megatron_ziya" / mutation.file).read_text(encoding="utf-8")
    for old, new in mutation.edits:
        if text.count(old) != 1:
            raise ValueError(
                f"{mutation.name}: {mutation.file} has {text.count(old)} times {old!r}, not once; "
                "the source has moved, write the mutation anew"
            )
        text = text.replace(old, new)
    return text


def drill(mutation: Mutation, copy: Path) -> bool:
    """Break, test, mend. True when a test went red."""
    path = copy / "megatron_ziya" / mutation.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutated(mutation, copy), encoding="utf-8")
    code, answer, seconds = run_tests(mutation.tests, copy, LIMIT)
    path.write_text(whole, encoding="utf-8")
    print(f"| {mutation.name} | {answer if code else '**survived** | '} | {seconds:.0f} |", flush=True)
    return code != 0


def run_tests(tests: Sequence[str], copy: Path, limit: int) -> tuple[int, str, float]:
    """Tests of the copy, up to the first that fails: pytest's exit code, what to print, seconds.

    Raises RuntimeError when pytest neither passes nor fails, since then it says nothing of the mutation.
    """
    paths = os.pathsep.join(str(copy / part) for part in ("", "kernels", "data_tools"))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"COLUMNS": "300"}  # pytest cuts its summary to the terminal
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-rf", "-m", "not slow and not gpu", *tests]
    begin = time.monotonic()
    process = subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return 1, f"hung | for {limit} s", time.monotonic() - begin
    if process.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {process.returncode}:\n{output}")
    lines = output.strip().splitlines()
    red = [line.removeprefix("FAILED tests/") for line in lines if line.startswith("FAILED ")]
    told = red[0].replace(" - ", " | ", 1).replace("AssertionError: ", "") if red else lines[-1]
    return process.returncode, told[:240], time.monotonic() - begin


if __name__ == "__main__":
    sys.exit(main())
