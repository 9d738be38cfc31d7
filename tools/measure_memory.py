"""What a training step really holds on each rank, beside what `ziya plan` says: one row a layout.

Real processes over gloo take one step of a model of random weights. PyTorch's allocator reports every block that it
hands out and takes back, with its time (`torch.profiler`, `profile_memory`).
Weights, gradients and optimizer shares are the storages of the rank's buckets; what is live beyond them between two
actions of the pipeline is activations and messages, and what the fullest moment has on top is working memory.

Not RSS: it has Python, torch's libraries (some 300 MB) and every page that the C library keeps after a block was freed,
in a step of some hundred MB. It is printed too.
"""

import argparse
import datetime
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from megatron_ziya import batches
from megatron_ziya.config import Recipe
from megatron_ziya.launch import free_port
from megatron_ziya.parallel import mesh as meshes
from megatron_ziya.parallel.invariant import TreeBucket
from megatron_ziya.plan.memory import Memory, of_stages
from megatron_ziya.strict import from_dict
from megatron_ziya.trainer import Trainer, setup, train_step

EXAMPLE = "example:\n  python tools/measure_memory.py --only tp2 pp2 --markdown memory.md"
BOUND = 0.05
PARTS = ("weights", "gradients", "optimizer", "activations")
MARK, BEGIN, END = "held between actions", "step begins", "step ends"


# --- On a rank --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A sample of the mix."""

    tokens: Any
    starts: Any
    loss_mask: Any


class Samples:
    """Random tokens; with a document mask, documents of a quarter of the row."""

    def __init__(self, recipe: Recipe) -> None:
        self.vocabulary, self.sequence = recipe.model.vocabulary_size, recipe.data.sequence_length

    def __getitem__(self, number: int) -> Row:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(self.vocabulary, (self.sequence + 1,), generator=generator)
        starts = torch.arange(self.sequence, dtype=torch.int32) // max(1, self.sequence // 4) * (self.sequence // 4)
        return Row(tokens.numpy(), starts.numpy(), torch.ones(self.sequence, dtype=torch.bool).numpy())


class Marks:
    """Stands in for `parallel.trace.Trace`: puts a mark after each action, and notes the bytes of gradients there."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.gradients, self.reducing = trainer, list[int](), list[bool]()

    def begin(self) -> None:
        pass

    def start(self, action: object) -> None:
        pass

    def end(self, live: int) -> None:
        self.gradients.append(storage_bytes(gradient_tensors(self.trainer)))
        self.reducing.append(any(bucket.pending is not None for bucket in self.trainer.data.buckets))
        with record_function(MARK):
            pass


def gradient_tensors(trainer: Trainer) -> list[torch.Tensor]:
    tensors = []
    for bucket in trainer.data.buckets:
        if not isinstance(bucket, TreeBucket):
            tensors.append(bucket.gradient)
        else:
            tensors += [node.value for nodes in bucket.nodes.values() for node in nodes]
            tensors += [weight.main_grad for weight in bucket.weights if weight.main_grad is not None]
    return tensors


def storage_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Of the storages, each counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measure(recipe: Recipe) -> tuple[int, dict[str, float]]:
    """Stage and bytes of this rank in a step: the parts of `Memory`, `total` and `rss`."""
    a = recipe.model.architecture()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        p = recipe.parallel
        mesh = meshes.build(p.tensor, p.pipeline, torch.device("cpu"), a.tied, p.spread_head)
        trainer = setup(recipe, mesh, a)
        samples: Any = Samples(recipe)
        marks = Marks(trainer)
        micro_batches, counted = batches.read_step(samples, 0, recipe.data, mesh)
        trainer.pipeline.trace = marks  # type: ignore[assignment]
        with record_function(BEGIN):
            pass
        train_step(trainer, micro_batches, counted)
        with record_function(END):
            pass
        trainer.data.arrive()
    weights = [bucket.flat for bucket in trainer.data.buckets]
    states = [t for s in trainer.optimizer.states for t in (s.master, s.exp_avg, s.exp_avg_sq)]
    found: dict[str, float] = {"weights": storage_bytes(weights)}
    found["optimizer"] = storage_bytes(weights + states) - found["weights"]
    found["gradients"] = max(marks.gradients)
    fixed = found["weights"] + found["optimizer"]
    live, highest = walk(recorded)
    assert len(live) == len(marks.gradients)
    beside = zip(live, marks.gradients, marks.reducing, strict=True)
    # while gradients are on their way to other ranks, what is live beyond the parts is theirs
    found["activations"] = max(here - fixed - gradients for here, gradients, reducing in beside if not reducing)
    found["total"] = highest
    found["working"] = highest - sum(found[part] for part in PARTS)
    found["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return mesh.pipeline.index, found


def walk(recorded: profile) -> tuple[list[int], int]:
    """Live bytes at every mark, and the most between beginning and end of the step."""
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    now = highest = 0
    counting, live = False, []
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        name = event.name()
        if name == "[memory]":
            now += event.nbytes()
            highest = max(highest, now) if counting else highest
        elif name == MARK:
            live.append(now)
        elif name in (BEGIN, END):
            counting, highest = name == BEGIN, now if name == BEGIN else highest
    return live, highest


def _rank(pipe: Any, rank: int, size: int, port: int, recipe: Recipe) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo")
    pipe.send(measure(recipe))


# --- Layouts ----------------------------------------------------------------------------------------------------------

MODEL = {
    "vocabulary_size": 8000, "hidden_size": 512, "intermediate_size": 1376, "layers": 4, "heads": 8,
    "max_positions": 512,
}  # fmt: skip
LAYOUTS: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "one process": (1, {}),
    "one process, bf16": (1, {"precision": {"weights": "bf16"}}),
    "one process, documents": (1, {"data": {"document_mask": True}}),
    "one process, bf16, documents": (1, {"data": {"document_mask": True}, "precision": {"weights": "bf16"}}),
    "one process, rows of 512": (1, {"data": {"sequence_length": 512}}),
    "one process, rows of 512, bf16": (1, {"data": {"sequence_length": 512}, "precision": {"weights": "bf16"}}),
    "one process, grouped heads": (1, {"model": {"kv_heads": 2}}),
    "one process, tied": (1, {"model": {"tied": True}}),
    "one process, micro-batch 8": (1, {"data": {"micro_batch_size": 8}}),
    "recompute selective": (1, {"parallel": {"recompute": "selective"}}),
    "recompute selective, 2 layers": (1, {"parallel": {"recompute": "selective", "recompute_layers": 2}}),
    "recompute full": (1, {"parallel": {"recompute": "full"}}),
    "recompute full, 2 layers, bf16": (
        1, {"parallel": {"recompute": "full", "recompute_layers": 2}, "precision": {"weights": "bf16"}}),
    "invariant": (1, {"parallel": {"invariant": True}}),
    "tp2 + sequence parallel": (2, {"parallel": {"tensor": 2}}),
    "tp2 + sequence parallel, bf16": (2, {"parallel": {"tensor": 2}, "precision": {"weights": "bf16"}}),
    "tp2": (2, {"parallel": {"tensor": 2, "sequence": False}}),
    "tp2, recompute full": (2, {"parallel": {"tensor": 2, "recompute": "full"}}),
    "pp2 1f1b": (2, {"parallel": {"pipeline": 2}}),
    "pp2 gpipe": (2, {"parallel": {"pipeline": 2, "schedule": "gpipe"}}),
    "pp2 zb-h1": (2, {"parallel": {"pipeline": 2, "schedule": "zb-h1"}}),
    "pp2 zb-h1, recompute full": (
        2, {"parallel": {"pipeline": 2, "schedule": "zb-h1", "recompute": "full"}}),
    "pp2 zb-h1, bf16": (2, {"parallel": {"pipeline": 2, "schedule": "zb-h1"}, "precision": {"weights": "bf16"}}),
    "pp2 zb-v": (2, {"parallel": {"pipeline": 2, "schedule": "zb-v", "virtual": 2}}),
    "pp2 spread head": (2, {"parallel": {"pipeline": 2, "spread_head": True}}),
    "pp2 zb-h1, spread head, bf16": (
        2, {"parallel": {"pipeline": 2, "schedule": "zb-h1", "spread_head": True}, "precision": {"weights": "bf16"}}),
    "pp2 half layers": (2, {"parallel": {"pipeline": 2, "layout": [2.5, 1.5]}}),
    "dp2": (2, {}),
    "dp2, bf16": (2, {"precision": {"weights": "bf16"}}),
    "dp3": (3, {"data": {"global_batch_size": 12}}),
    "dp2, invariant": (2, {"parallel": {"invariant": True}}),
    "tp2 pp2 dp2": (8, {"parallel": {"tensor": 2, "pipeline": 2}}),
    "tp2 pp2 dp2, bf16": (8, {"parallel": {"tensor": 2, "pipeline": 2}, "precision": {"weights": "bf16"}}),
}  # fmt: skip
"""Processes, and knobs over `recipe_of`'s."""


def recipe_of(knobs: dict[str, dict[str, Any]], small: bool = False) -> Recipe:
    """Parts of tens of MB, so that arithmetic stands out; `small` is for a quick test."""
    model = MODEL | ({"hidden_size": 256, "intermediate_size": 688, "vocabulary_size": 2000} if small else {})
    raw: dict[str, dict[str, Any]] = {
        "run": {"device": "cpu"},
        "model": model,
        "data": {
            "sequence_length": 256, "global_batch_size": 8, "micro_batch_size": 2, "document_mask": False,
            "sources": [{"name": "random"}],
        },
        "precision": {"weights": "fp32"},
    }  # fmt: skip
    for section, values in knobs.items():
        raw[section] = raw.get(section, {}) | values
    recipe: Recipe = from_dict(Recipe, raw)
    return recipe


def run(recipe: Recipe, ranks: int, target: Callable[..., None] = _rank) -> list[tuple[int, dict[str, float]]]:
    """`measure` on every rank. Raises RuntimeError when one of them ends without an answer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["megatron_ziya.train", "torch.profiler"])
    port, pipes, processes = free_port(), [], []
    for rank in range(ranks):
        here, there = context.Pipe()
        processes.append(context.Process(target=target, args=(there, rank, ranks, port, recipe), daemon=True))
        processes[-1].start()
        there.close()
        pipes.append(here)
    try:
        return [pipe.recv() for pipe in pipes]
    except EOFError:
        raise RuntimeError("a rank ended without an answer; its error stands above") from None
    finally:
        for process in processes:
            process.kill()
            process.join()


def compare(recipe: Recipe, ranks: int, found: Sequence[tuple[int, dict[str, float]]]) -> list[dict[str, Any]]:
    """A row a part for the rank that holds most: bytes measured and planned, and the difference as a share.

    `working` has no bound of its own: it is the rest of the total.
    """
    planned = of_stages(recipe, recipe.model.architecture(), ranks, "cpu")
    stage, measured = max(found, key=lambda item: item[1]["total"])
    told: Memory = planned[stage]
    rows = []
    for part in (*PARTS, "working", "total"):
        wanted = float(getattr(told, part))
        share = wanted / measured[part] - 1 if measured[part] else 0.0
        rows.append({"part": part, "measured": measured[part], "planned": wanted, "difference": share})
    return rows


# --- The table --------------------------------------------------------------------------------------------------------


def within(rows: Sequence[dict[str, Any]]) -> bool:
    return all(abs(row["difference"]) <= BOUND for row in rows if row["part"] != "working")


def cell(row: dict[str, Any]) -> str:
    told = f"{row['measured'] / 2**20:.1f} / {row['planned'] / 2**20:.1f}"
    return told if row["part"] == "working" else f"{told} ({row['difference']:+.1%})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 when a part or the total is off by more than 5 %."""
    parser = argparse.ArgumentParser(
        description="Memory a rank, measured on real processes and planned, side by side.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="WORD", help="layouts whose name has one of these in it")
    parser.add_argument("--small", action="store_true", help="a smaller model, to try the script itself")
    parser.add_argument("--markdown", metavar="FILE")
    options = parser.parse_args(arguments)
    names = [n for n in LAYOUTS if not options.only or any(word in n for word in options.only)]
    if not names:
        parser.error(f"--only {' '.join(options.only)} fits no layout; there are: {'; '.join(LAYOUTS)}")
    lines = [
        f"{datetime.date.today()}, torch {torch.__version__}. MiB measured / planned, of the rank that holds most; RSS "
        "is the largest of any rank.",
        "",
        "| layout | ranks | " + " | ".join([*PARTS, "working", "total", "RSS"]) + " |",
        "|---|---|" + "---|" * 7,
    ]
    print("\n".join(lines), flush=True)
    fine = True
    for name in names:
        ranks, knobs = LAYOUTS[name]
        recipe = recipe_of(knobs, options.small)
        found = run(recipe, ranks)
        rows = compare(recipe, ranks, found)
        fine = fine and within(rows)
        rss = max(measured["rss"] for _, measured in found)
        lines.append(f"| {name} | {ranks} | " + " | ".join(map(cell, rows)) + f" | {rss / 2**20:.0f} |")
        print(lines[-1] + ("" if within(rows) else " <- beyond 5 %"), flush=True)
    if options.markdown:
        temporary = Path(options.markdown + ".tmp")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(options.markdown)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
