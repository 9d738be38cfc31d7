"""Which rank does what: ranks -> frozen groups, passed as an argument, never global.

Ranks count tensor-parallel first, then data-parallel, then pipeline: the ranks that talk most sit closest together
(Megatron-LM's order).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_ziya.config import Run
from megatron_ziya.parallel.shared import Board
from megatron_ziya.parallel.shared import build as build_board


@dataclass(frozen=True)
class Axis:
    """One dimension of the mesh as a rank sees it. `group` is None when the axis has one rank."""

    size: int = 1
    index: int = 0
    ranks: tuple[int, ...] = (0,)
    group: dist.ProcessGroup | None = None
    board: Board | None = None
    """Shared memory, when these are processes of one machine that compute on its CPU."""


@dataclass(frozen=True)
class Mesh:
    """The place of one rank among all. The default is one process, which needs no torch.distributed."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    tensor: Axis = Axis()
    pipeline: Axis = Axis()
    data: Axis = Axis()
    tied: Axis = Axis()
    """First and last stage, which both hold the weight when embedding and head are tied."""
    head: Axis = Axis()
    """Ranks of one data-parallel index, stage after stage, that share the head when it is spread."""
    lines: Mapping[tuple[int, int], dist.ProcessGroup] = field(default_factory=dict)
    """(sending stage, taking stage) -> the group that carries these messages and nothing else. NCCL runs what a group
    carries one after another, so on a group of several lines a receive that waits would hold up a send."""

    @property
    def first_stage(self) -> bool:
        return self.pipeline.index == 0

    @property
    def last_stage(self) -> bool:
        return self.pipeline.index == self.pipeline.size - 1


def build(tensor: int, pipeline: int, device: torch.device, tied: bool = False, spread_head: bool = False) -> Mesh:
    """The mesh of this rank. Data parallel takes what tensor x pipeline leaves of the world."""
    if not dist.is_initialized():
        assert tensor == pipeline == 1, "torch.distributed is not initialised"
        return Mesh(device=device)
    rank, size = dist.get_rank(), dist.get_world_size()
    grid = torch.arange(size).reshape(pipeline, size // (tensor * pipeline), tensor)  # [pp, dp, tp]
    stages = grid.permute(1, 2, 0).flatten(0, 1)  # a row a pipeline
    return Mesh(
        device=device,
        rank=rank,
        size=size,
        tensor=_axis(grid.flatten(0, 1), rank, device),
        data=_axis(grid.permute(0, 2, 1).flatten(0, 1), rank, device),
        pipeline=_axis(stages, rank),
        tied=_axis(stages[:, [0, -1]], rank) if tied and pipeline > 1 else Axis(),
        head=_axis(grid.permute(1, 0, 2).flatten(1), rank) if spread_head and pipeline > 1 else Axis(),
        lines=_lines(grid, rank, spread_head),
    )


def _axis(rows: torch.Tensor, rank: int, device: torch.device | None = None) -> Axis:
    """The row of `rows [groups, size]` that holds `rank`. Every rank must make every group, in the same order.

    Axes with a `device` have collectives often enough for shared memory to pay.
    """
    mine = Axis()
    for row in rows.tolist():
        group = dist.new_group(row) if len(row) > 1 else None
        if rank in row:
            mine = Axis(len(row), row.index(rank), tuple(row), group)
    if mine.group is not None and device is not None and device.type == "cpu":
        mine = replace(mine, board=build_board(mine.group, mine.index, mine.size))
    return mine


def _lines(grid: torch.Tensor, rank: int, spread_head: bool) -> dict[tuple[int, int], dist.ProcessGroup]:
    """A group for each stage and each of its neighbours on the ring of stages; `grid` is `[pp, dp, tp]`.

    With a spread head also for each stage and the first and last one, of which one holds the last slice.
    """
    stages = range(len(grid))
    ends = {0, len(grid) - 1} if spread_head else set()
    pairs = [(a, b) for a in stages for b in stages
             if a != b and ((a - b) % len(grid) in (1, len(grid) - 1) or ends & {a, b})]  # fmt: skip
    groups = {pair: dist.new_group(sorted(grid[list(pair)].flatten().tolist())) for pair in pairs}
    return {pair: group for pair, group in groups.items() if rank in grid[list(pair)]}


def environment() -> tuple[int, int]:
    """`(rank, world size)` as torchrun tells this process; `(0, 1)` without torchrun."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def distributed(run: Run, device: torch.device) -> Iterator[dist.Store | None]:
    """Join the other processes; yields the store through which they met. One process needs none of it."""
    if environment()[1] == 1:
        yield None
        return
    store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=run.timeout_seconds)))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=run.timeout_seconds),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield dist.PrefixStore("watch", store)
    finally:
        dist.destroy_process_group()
