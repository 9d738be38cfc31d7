"""Saving and loading the state of a run, ours beside torch.distributed.checkpoint (DCP), in one run on one disk.

    python tools/benchmark_checkpoint.py --gb 1.2 --markdown docs/checkpoint.md

Two data-parallel ranks hold FP32 weights and Adam's two moments of a LLaMA of random numbers, each half of all. The two
systems take turns; a time is that of the slowest rank, the median of the rounds counts. Both make their files durable
(fsync) and read them from the page cache. `blocked` is what training waits for when the save is asynchronous.

The second table damages a checkpoint of each in five ways and loads it. The third converts a model of LLaMA2-13B's
sizes with fewer layers to a checkpoint and back, beside a plain copy of its files.
"""

import argparse
import contextlib
import ctypes
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as multiprocessing
from machine import here
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from megatron_ziya import process
from megatron_ziya.checkpoint import convert, distributed, training
from megatron_ziya.checkpoint import format as checkpoint_format
from megatron_ziya.checkpoint.format import Segment, checksum, weights_sum
from megatron_ziya.checkpoint.streaming import memory
from megatron_ziya.config import Architecture, Data, Model, Parallel, Recipe, Run
from megatron_ziya.launch import free_port
from megatron_ziya.model import parallelize
from megatron_ziya.model.weights import shapes
from megatron_ziya.parallel import mesh as meshes
from megatron_ziya.trainer import Trainer, setup

EXAMPLE = "example:\n  python tools/benchmark_checkpoint.py --gb 1.2 --markdown docs/checkpoint.md"
KINDS = ("weight", "exp_avg", "exp_avg_sq")
RANKS = 2
TIMES = ("save", "blocked", "asynchronous save, whole", "load", "load on tensor parallel 2")


def architecture(gigabytes: float) -> Architecture:
    """A LLaMA whose weights and moments are about so large in FP32."""
    a = Architecture(8192, 1024, 2752, 1, 16, max_positions=2048)
    layer = replace(a, layers=2).parameters() - a.parameters()
    return replace(a, layers=max(1, 1 + round((gigabytes * 1e9 / 12 - a.parameters()) / layer)))


def trainer_of(a: Architecture, tensor: int) -> Trainer:
    """Random weights and moments, as a run over all ranks holds them."""
    mesh = meshes.build(tensor, 1, torch.device("cpu"))
    model = Model(**{name: getattr(a, name) for name in Architecture.__dataclass_fields__})
    data = Data(sequence_length=64, global_batch_size=RANKS)
    recipe = Recipe(run=Run(device="cpu"), model=model, parallel=Parallel(tensor=tensor), data=data)
    trainer = setup(recipe, mesh, a)
    for state in trainer.optimizer.states:
        state.exp_avg.normal_()
        state.exp_avg_sq.normal_()
    return trainer


def dcp_state(a: Architecture) -> dict[str, DTensor]:
    """The same bytes as DTensors, each rank with half of the rows."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = {name: (shape[0] // dist.get_world_size(), *shape[1:]) for name, shape in shapes(a).items()}
    return {
        f"{kind}.{name}": DTensor.from_local(torch.randn(shape), mesh, [Shard(0)])
        for kind in KINDS
        for name, shape in rows.items()
    }


# --- Time -------------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds of the slowest rank, by system and what was done."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[float]] = {}

    def note(self, system: str, what: str, value: float) -> None:
        slowest = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        self.found.setdefault((system, what), []).append(slowest.item())

    def time(self, system: str, what: str, work: Callable[[], Any]) -> Any:
        dist.barrier()
        begin = time.perf_counter()
        result = work()
        self.note(system, what, time.perf_counter() - begin)
        return result


def peak_reset() -> int:
    """Resident bytes now, without what was freed and kept; from here on `peak` counts."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """The most bytes that were resident since `peak_reset`."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def round_of_ours(clock: Clock, trainer: Trainer, other: Trainer, folder: Path, step: int) -> None:
    origin, a, rank = distributed.Origin("0123456789abcdef", step), trainer.architecture, dist.get_rank()
    trainer.saver.folder = folder
    segments = lambda: training.owned_segments(trainer.optimizer.states, trainer.pieces())  # noqa: E731
    path = clock.time(
        "ours", "save", lambda: distributed.save(folder, origin, a, segments(), rank, "", {}, None)
    )  # fmt: skip
    if rank == 0:
        shutil.rmtree(path)
    with (
        mock.patch.object(checkpoint_format, "checksum", return_value="00000000"),
        mock.patch.object(distributed, "weights_sum", return_value=0),
    ):
        clock.time(
            "ours", "save unchecked", lambda: distributed.save(folder, origin, a, segments(), rank, "", {}, None)
        )  # fmt: skip
    if rank == 0:
        shutil.rmtree(path)
    before = peak_reset() if step == 1 else 0  # once: pages that are given back must be had again
    begin = time.perf_counter()
    start = lambda: trainer.saver.start(origin, a, segments(), "", {}, None, lambda path: None)  # noqa: E731
    clock.time("ours", "blocked", start)
    trainer.saver.copied()
    clock.note("ours", "copied", time.perf_counter() - begin)
    trainer.saver.wait()
    clock.note("ours", "asynchronous save, whole", time.perf_counter() - begin)
    if step == 1:
        clock.note("ours", "peak extra memory", peak() - before)
    clock.time("ours", "load", lambda: load(trainer, path))
    clock.time("ours", "load on tensor parallel 2", lambda: load(other, path))
    dist.barrier()
    if rank == 0:
        shutil.rmtree(path)


def load(trainer: Trainer, path: Path) -> None:
    reader = distributed.Reader(path)
    for chunk in trainer.chunks:
        parallelize.fill_pieces(chunk, trainer.mesh, training.weights_of(reader))
    training.restore(reader, trainer.optimizer.states, trainer.pieces())
    wrong = training.check_weights(reader, trainer.data.buckets, trainer.pieces(), trainer.mesh)
    assert not wrong, wrong


def round_of_dcp(clock: Clock, state: dict[str, DTensor], folder: Path, step: int) -> None:
    system, path = "torch DCP", folder / "dcp"

    def clean() -> None:
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(path)
        dist.barrier()

    clock.time(system, "save", lambda: dcp.save(state, checkpoint_id=path))
    clean()
    before = peak_reset() if step == 1 else 0
    begin = time.perf_counter()
    future = clock.time(system, "blocked", lambda: dcp.async_save(state, checkpoint_id=path))
    future.result()
    clock.note(system, "asynchronous save, whole", time.perf_counter() - begin)
    if step == 1:
        clock.note(system, "peak extra memory", peak() - before)
    clock.time(system, "load", lambda: dcp.load(state, checkpoint_id=path))
    clean()


def vouching(clock: Clock, trainer: Trainer) -> None:
    """What the checksums take, alone."""
    origin, logical = distributed.Origin("0123456789abcdef", 1), shapes(trainer.architecture)

    def work() -> None:
        for segment, tensor in training.owned_segments(trainer.optimizer.states, trainer.pieces()):
            checksum(segment.key(), memory(tensor), origin)
            if segment.kind == "weight":
                weights_sum(segment, tensor, logical[segment.name])

    clock.time("ours", "checksums", work)


def measure(rank: int, port: int, gigabytes: float, rounds: int, folder: str, out: str) -> None:
    """One rank; the first writes the table to `out`."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    process.prepare("cpu", 1)
    dist.init_process_group("cpu:gloo")
    a, clock = architecture(gigabytes), Clock()
    trainer, other, state = trainer_of(a, 1), trainer_of(a, 2), dcp_state(a)
    for number in range(rounds):
        round_of_ours(clock, trainer, other, Path(folder), number + 1)
        round_of_dcp(clock, state, Path(folder), number + 1)
        vouching(clock, trainer)
    if rank == 0:
        size = 12 * a.parameters()
        lines = [
            f"{size / 1e9:.2f} GB of state over {RANKS} ranks; median of {rounds} rounds.\n",
            "| what | ours, s | torch DCP, s | ours / DCP |\n|---|---|---|---|",
        ]
        found = {key: statistics.median(values) for key, values in clock.found.items()}
        for what in TIMES:
            ours, theirs = found["ours", what], found.get(("torch DCP", what.replace(" on tensor parallel 2", "")))
            lines.append(f"| {what} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |")
        held = [found[system, "peak extra memory"] / (size / RANKS) for system in ("ours", "torch DCP")]
        lines.append(
            f"\nOur copy is complete after {found['ours', 'copied']:.2f} s: an update that comes earlier waits."
        )
        lines.append(f"\nPeak extra memory of an asynchronous save, in copies of a rank's state: {held[0]:.2f} ours, "
                     f"{held[1]:.2f} DCP's.")  # fmt: skip
        alone, save, unchecked = (found["ours", what] for what in ("checksums", "save", "save unchecked"))
        lines.append(
            f"All checksums of a save take {alone:.2f} s when nothing else runs; without them it takes {unchecked:.2f} "
            f"s: they cost {save / unchecked - 1:.1%}."
        )
        Path(out).write_text("\n".join(lines) + "\n")
    dist.destroy_process_group()


# --- Damage -----------------------------------------------------------------------------------------------------------


def largest(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip(file: Path, other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 16
    file.write_bytes(content)


def hole(file: Path, other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 4 : len(content) // 4 + 4096] = bytes(4096)
    file.write_bytes(content)


def truncate(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100_000])


def foreign(file: Path, other: Path) -> None:
    shutil.copyfile(other, file)


def missing(file: Path, other: Path) -> None:
    file.unlink()


DAMAGES = {
    "one bit flipped": flip,
    "4 KiB of zeros, as a lost write leaves": hole,
    "100 kB cut off": truncate,
    "the file of another step": foreign,
    "the file is missing": missing,
}


def damage_table(folder: Path) -> list[str]:
    """Load checkpoints that were damaged; one process, a small model."""
    a = Architecture(8192, 128, 352, 2, 4, max_positions=64)  # most of a file is two large tensors

    def ours(step: int) -> Path:
        weights = {name: torch.randn(shape) for name, shape in shapes(a).items()}
        segments = [(Segment.whole("weight", name, tuple(w.shape)), w.flatten()) for name, w in weights.items()]
        return distributed.save(folder / "ours", distributed.Origin("run", step), a, segments, 0, "", {}, None)

    def theirs(step: int) -> Path:
        state = {name: torch.randn(shape) for name, shape in shapes(a).items()}
        dcp.save(state, checkpoint_id=folder / f"dcp/{step}", no_dist=True)
        return folder / f"dcp/{step}"

    def load_ours(path: Path) -> None:
        reader = distributed.Reader(path)
        for name in reader.shapes:
            reader.read(name)

    def load_theirs(path: Path) -> None:
        dcp.load({name: torch.empty(shape) for name, shape in shapes(a).items()}, checkpoint_id=path, no_dist=True)

    lines = ["| damage | ours | torch DCP |", "|---|---|---|"]
    for words, damage in DAMAGES.items():
        said = []
        for save, load in ((ours, load_ours), (theirs, load_theirs)):
            shutil.rmtree(folder, ignore_errors=True)
            one, two = save(1), save(2)
            damage(largest(two), largest(one))
            try:
                load(two)
                said.append("**loaded in silence**")
            except (Exception, dcp.api.CheckpointException) as error:  # which is no Exception
                last = str(error).strip().splitlines()[-1].replace(f"{folder}/", "").replace("|", "\\|")
                said.append(f"refused: {last[:200]}")
        lines.append(f"| {words} | {said[0]} | {said[1]} |")
    return lines


# --- Conversion -------------------------------------------------------------------------------------------------------


def thirteen_billion(folder: Path) -> Path:
    """A Hugging Face folder of LLaMA2-13B's sizes, one layer of them, with Ziya2's vocabulary: 1.4 GB in BF16."""
    a = Architecture(39424, 5120, 13824, 1, 40, rms_norm_eps=1e-6)
    draw = torch.Generator().manual_seed(1)
    weights = ((name, torch.randn(shape, generator=draw).bfloat16()) for name, shape in shapes(a).items())
    distributed.write_weights(folder / "first", a, weights)
    convert.to_hf(folder / "first", folder / "model", verify=False)
    shutil.rmtree(folder / "first")
    return folder / "model"


def timed(queue: Any, work: Callable[..., Any], *given: Any) -> None:
    """In a process of its own: seconds, and bytes of memory beyond those of the libraries."""
    with contextlib.redirect_stdout(io.StringIO()):
        before = peak_reset()
        begin = time.perf_counter()
        work(*given)
        os.sync()
    queue.put((time.perf_counter() - begin, peak() - before))


def conversion_table(folder: Path, rounds: int) -> list[str]:
    source = thirteen_billion(folder)
    size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    works = {
        "plain copy": (shutil.copytree, source, folder / "copy"),
        "from-hf": (convert.from_hf, source, folder / "checkpoint", False),
        "to-hf": (convert.to_hf, folder / "checkpoint", folder / "back", None, None, False),
    }
    context, found = multiprocessing.get_context("spawn"), {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, *given) in works.items():
            shutil.rmtree(given[1], ignore_errors=True)
            os.sync()
            queue = context.SimpleQueue()
            child = context.Process(target=timed, args=(queue, work, *given))
            child.start()
            found[name].append(queue.get())
            child.join()
    lines = [
        f"{size / 1e9:.2f} GB, the largest tensor {39424 * 5120 * 2 / 1e9:.2f} GB, median of {rounds} rounds; until "
        "everything is on the disk.\n",
        "| what | s | share of the copy's rate | memory beyond the libraries, GB |\n|---|---|---|---|",
    ]
    copied = statistics.median(seconds for seconds, _ in found["plain copy"])
    for name, values in found.items():
        seconds, held = (statistics.median(column) for column in zip(*values, strict=True))
        lines.append(f"| {name} | {seconds:.2f} | {copied / seconds:.2f} | {held / 1e9:.2f} |")
    return [*lines, "\nMemory includes the pages of the mapped source, which the system may take back at any time."]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Saving and loading a run's state beside torch.distributed.checkpoint.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gb", type=float, default=1.2, help="of state, in 10^9 bytes (default 1.2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary one")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        table = folder / "table.md"
        given = (free_port(), options.gb, options.rounds, str(folder / "state"), str(table))
        (folder / "state").mkdir()
        multiprocessing.spawn(measure, given, nprocs=RANKS)
        head = f"{here()}, torch {torch.__version__}, load average {before:.1f}; {table.read_text()}"
        damaged, converted = damage_table(folder / "damage"), conversion_table(folder, options.rounds)
        text = "\n".join([head, "## Damage\n", *damaged, "\n## Conversion\n", *converted])
    print(text)
    if options.markdown:
        title = "# Checkpoints beside torch.distributed.checkpoint\n\n`python tools/benchmark_checkpoint.py "
        options.markdown.write_text(f"{title}--gb {options.gb:g} --markdown {options.markdown}`\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
