"""Collectives of an axis, through shared memory and through gloo, against plain sums and concatenations."""

import gc
import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from megatron_ziya.parallel import collectives, shared
from megatron_ziya.parallel import mesh as meshes
from megatron_ziya.parallel.mesh import Axis


def _axis(board: bool = True) -> Axis:
    axis = meshes.build(dist.get_world_size(), 1, torch.device("cpu")).tensor
    assert axis.board is not None
    return axis if board else replace(axis, board=None)


def _drawn(rank: int, number: int, rows: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(100 * rank + number)).to(dtype)


def _all_of_them(board: bool, dtype: torch.dtype, rows: int) -> None:
    """Twenty operations, some under way at once, waited for out of order."""
    axis = _axis(board)
    n, me = axis.size, axis.index
    pending = []
    for number in range(20):
        drawn = [_drawn(rank, number, n * rows, dtype) for rank in range(n)]
        total = drawn[0] + drawn[1] if n == 2 else torch.stack(drawn).sum(0)
        share = slice(me * rows, (me + 1) * rows)
        whole = torch.cat([x[rank * rows : (rank + 1) * rows] for rank, x in enumerate(drawn)])
        mine = torch.full_like(drawn[me], torch.nan)
        mine[share] = drawn[me][share]
        # every second one is no contiguous memory
        x = drawn[me] if number % 2 else torch.stack([drawn[me], drawn[me]], -1)[..., 0]
        pending += [
            (collectives.start_reduce_scatter(x, axis), total[share]),
            (collectives.start_gather(x[share], axis), whole),
            (collectives.start_spread(mine, axis), whole),
            (collectives.start_all_reduce(drawn[me].clone(), axis), total),
        ]
        for _ in range(number % 5):
            found, expected = pending.pop(number % len(pending))
            _same(found.wait(), expected, board)
        assert torch.equal(collectives.all_reduce(x.clone(), axis, dist.ReduceOp.MAX), torch.stack(drawn).amax(0))
        _same(collectives.all_reduce(x.clone(), axis), total, board)
    for found, expected in pending:
        _same(found.wait(), expected, board)


def _same(found: torch.Tensor, expected: torch.Tensor, board: bool) -> None:
    """To the bit through shared memory; gloo's own all-reduce adds in another order."""
    torch.testing.assert_close(found, expected, **({"rtol": 0, "atol": 0} if board else {}))


@pytest.mark.parametrize("board", [True, False])
@pytest.mark.parametrize("ranks", [2, 3])
def test_collectives_are_plain_sums_and_concatenations(ranks, board):
    run_ranks(ranks, _many_types, board)


def _many_types(board: bool) -> None:
    for dtype in (torch.float64, torch.float32, *([torch.bfloat16] if board else [])):  # gloo rounds BF16 each time
        _all_of_them(board, dtype, 2)


def _large() -> None:
    axis = _axis()
    rows = shared.SLOT // 24  # of 24 bytes; the whole of all ranks is larger than a slot, a share fits
    drawn = [_drawn(rank, 0, 2 * rows, torch.float32) for rank in range(2)]
    found = collectives.start_reduce_scatter(drawn[axis.index], axis).wait()
    assert torch.equal(found, (drawn[0] + drawn[1]).chunk(2)[axis.index])
    assert axis.board.started == 0, "left to gloo"
    whole = collectives.start_gather(drawn[axis.index][:rows], axis).wait()
    assert torch.equal(whole, torch.cat([d[:rows] for d in drawn])) and axis.board.started == 1


def test_what_does_not_fit_a_slot_goes_through_gloo():
    run_ranks(2, _large)


def _one_ends() -> str:
    axis = _axis()
    if axis.index == 1:
        return ""  # and its process ends
    with pytest.raises(dist.DistNetworkError, match="rank 1 of the group has ended"):
        _reduce_forever(axis)
    return "told"


def _reduce_forever(axis: Axis) -> None:
    while True:  # whether it is the write or the read that finds out depends on the moment
        collectives.all_reduce(torch.ones(2), axis)


def test_a_rank_that_has_ended_is_an_error_and_no_endless_wait():
    assert run_ranks(2, _one_ends) == ["told", ""]


def _pipes() -> int:
    """Open ends of pipes; gloo opens and closes sockets whenever it likes."""
    return sum(
        str(name.readlink()).startswith("pipe:") for name in Path("/proc/self/fd").iterdir() if name.is_symlink()
    )


def _boards() -> int:
    """Slots that are mapped."""
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:megatron-ziya")


def _leaves_nothing() -> None:
    axis = _axis()
    collectives.all_reduce(torch.ones(2), axis)
    del axis
    gc.collect()
    before = _pipes()
    assert _boards() == 0
    for _ in range(3):
        group = dist.group.WORLD
        with mock.patch.object(os, "pread", return_value=b"another machine"):
            assert shared.build(group, dist.get_rank(), 2) is None
        board = shared.build(group, dist.get_rank(), 2)
        assert board is not None
        assert _boards() == 2
        del board
        gc.collect()
        assert _boards() == 0
        assert _pipes() == before


def test_no_board_across_machines_and_nothing_is_left_open():
    run_ranks(2, _leaves_nothing)
