"""Run a function on several gloo processes, and the training engine on any layout."""

import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """`function(*arguments)` on `size` processes joined by gloo; returns each rank's result. Ends all it started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["megatron_ziya.train"])
    port = free_port()
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_child, args=(rank, size, port, results, function, arguments), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        return _collect(size, results, processes, timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collect(size: int, results: Any, processes: Sequence[Any], timeout: float) -> list[Any]:
    found: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(found) < size:
        if not results._reader.poll(0.5):
            codes = [process.exitcode for process in processes]
            if time.monotonic() > deadline or any(codes):
                raise TimeoutError(f"only ranks {sorted(found)} of {size} answered; exit codes {codes}")
            continue
        rank, failure, value = results.get()
        if failure:
            raise AssertionError(f"rank {rank} failed:\n{failure}")
        found[rank] = pickle.loads(value)
    return [found[rank] for rank in range(size)]


def _child(rank: int, size: int, port: int, results: Any, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    try:
        if size > 1:
            dist.init_process_group("gloo")
        # pickled here: torch would hand tensors over through a socket of this process, which ends first
        results.put((rank, "", pickle.dumps(function(*arguments))))
    except BaseException:
        results.put((rank, traceback.format_exc(), b""))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return int(s.getsockname()[1])


@dataclass(frozen=True)
class RandomSample:
    tokens: Any
    starts: Any
    loss_mask: Any
    source: int = 0


class RandomMix:
    """Samples drawn from their number: tokens, documents of random length, and some positions that do not count."""

    def __init__(self, vocabulary: int, sequence: int) -> None:
        self.vocabulary, self.sequence = vocabulary, sequence

    def __getitem__(self, number: int) -> RandomSample:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(self.vocabulary, (self.sequence + 1,), generator=generator)
        begins = torch.rand(self.sequence, generator=generator) < 0.15
        begins[0] = True
        starts = torch.where(begins, torch.arange(self.sequence), 0).cummax(0).values.int()
        mask = torch.rand(self.sequence, generator=generator) < 0.8
        return RandomSample(tokens.numpy(), starts.numpy(), mask.numpy())


def run_recipe(recipe: Any) -> None:
    """The whole run of a recipe on this rank, as the command line does it."""
    from megatron_ziya import train
    from megatron_ziya.parallel import mesh as meshes

    p = recipe.parallel
    mesh = meshes.build(p.tensor, p.pipeline, torch.device("cpu"), recipe.model.tied, p.spread_head)
    train.train(recipe, mesh, train.check(recipe, mesh.size))


def train_few_steps(recipe: Any, steps: int) -> dict[str, Any]:
    """Train on this rank; rank 0 returns losses, norms, and the whole gradients and weights by logical name."""
    from megatron_ziya import batches
    from megatron_ziya.parallel import mesh as meshes
    from megatron_ziya.trainer import setup, train_step

    a, p = recipe.model.architecture(), recipe.parallel
    mesh = meshes.build(p.tensor, p.pipeline, torch.device("cpu"), a.tied, p.spread_head)
    trainer = setup(recipe, mesh, a)
    mix = RandomMix(a.vocabulary_size, recipe.data.sequence_length)
    losses, norms, gradients = [], [], {}
    for step in range(steps):
        micro_batches, counted = batches.read_step(mix, step, recipe.data, mesh)
        row = train_step(trainer, micro_batches, counted)
        losses.append(row["loss"])
        norms.append(row["grad_norm"])
        if step == 0:
            tokens = recipe.data.global_batch_size * recipe.data.sequence_length
            gradients = logical_tensors(trainer, tokens / row["counted"], "gradient")
    return {"loss": losses, "norm": norms, "gradients": gradients, "weights": logical_tensors(trainer, 1.0, "weight")}


def logical_tensors(trainer: Any, scale: float, what: str) -> dict[str, torch.Tensor]:
    """Whole gradients or weights of all ranks, put together on rank 0 from every rank's share."""
    from megatron_ziya.checkpoint import training

    shares = []
    for state in trainer.optimizer.states:
        bucket = state.bucket
        flat = bucket.summed() * scale if what == "gradient" else bucket.flat[bucket.share]
        if bucket.kind.counted:
            shares += [
                (piece, box, flat[local].clone()) for piece, local, box in training._overlaps(bucket, trainer.pieces())
            ]
    everyone: list[Any] = [None] * trainer.mesh.size
    if trainer.mesh.size > 1:
        dist.all_gather_object(everyone, shares)
    else:
        everyone = [shares]
    if trainer.mesh.rank:
        return {}
    whole: dict[str, torch.Tensor] = {}
    for piece, box, values in (item for rank in everyone for item in rank):
        target = whole.setdefault(piece.name, torch.full(piece.shape, float("nan"), dtype=values.dtype))
        part = piece.of_logical(target)
        flat = part.reshape(-1).clone()
        flat[box] = values
        part.copy_(flat.view(part.shape))
    return whole
