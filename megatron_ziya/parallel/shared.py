"""Collectives between the processes of one machine, through memory that they share.

On a CPU a collective of gloo goes through sockets and threads, which cost many times what a copy through shared memory
does (`tools/benchmark_collectives.py` prints both). So the ranks of an axis that run on one machine write what the
others need into a slot of shared memory and tell each with one byte through a pipe; who waits sleeps in a read. The
kernel takes memory and pipes back when the processes end, however they end: nothing has a name on disk.
"""

import mmap
import os
import secrets
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

SLOT = 4 * 2**20
"""Bytes of a message; larger ones, which sockets carry nearly as fast, are left to gloo."""
SLOTS = 8
AHEAD = SLOTS // 2
"""Operations that may be under way at once. Whoever starts operation k has completed k - AHEAD. So when this rank has
completed k - AHEAD, everyone has started it, has completed k - 2 AHEAD = k - SLOTS, and its slot can be written."""


class Pending:
    """A collective under way; `wait` gives its result."""

    def __init__(self, result: Tensor, *work: dist.Work | None) -> None:
        self.result, self.work = result, work

    def wait(self) -> Tensor:
        for work in self.work:
            if work is not None:
                work.wait()
        self.work = ()
        return self.result


class Board:
    """One rank's view of the slots `[ranks, SLOTS, SLOT]` of an axis and of the pipes between its ranks."""

    def __init__(self, index: int, slots: Sequence[Tensor], takes: Sequence[int], tells: Sequence[int]) -> None:
        """`takes[r]` and `tells[r]` are the pipes from and to rank r of the axis; this rank's own are not used."""
        self.index, self.slots, self.takes, self.tells = index, slots, takes, tells
        self.others = [r for r in range(len(slots)) if r != index]
        self.started = 0
        self.told = [0] * len(slots)  # how many operations each rank has started, as far as this one knows
        self.pending: deque[Shared] = deque()
        weakref.finalize(self, _close, [*takes, *tells])

    def start(self, x: Tensor, finish: Callable[[list[Tensor]], Tensor]) -> "Shared":
        """Let every rank have `x`. When all have, `finish` gets the `x` of each, in order, and makes the result."""
        while self.pending and (self.pending[0].done or self.started - self.pending[0].number >= AHEAD):
            self.pending.popleft().wait()
        operation = Shared(self, self.started, x, finish)
        self.pending.append(operation)
        self.view(self.index, operation).copy_(x)
        self.started += 1
        try:
            for rank in self.others:
                os.write(self.tells[rank], b"+")
        except BrokenPipeError:
            raise dist.DistNetworkError(f"Connection closed: rank {rank} of the group has ended") from None
        return operation

    def view(self, rank: int, operation: "Shared") -> Tensor:
        """What `rank` has written for an operation."""
        x, begin = operation.result, operation.number % SLOTS * SLOT
        return self.slots[rank][begin : begin + x.nbytes].view(x.dtype).view(x.shape)

    def wait_for(self, number: int) -> None:
        """Sleep until every other rank has started operation `number`."""
        for rank in self.others:
            while self.told[rank] <= number:
                signs = os.read(self.takes[rank], SLOTS)
                if not signs:
                    raise dist.DistNetworkError(f"Connection closed: rank {rank} of the group has ended")
                self.told[rank] += len(signs)


class Shared(Pending):
    """An operation on a board."""

    def __init__(self, board: Board, number: int, x: Tensor, finish: Callable[[list[Tensor]], Tensor]) -> None:
        super().__init__(x)
        self.board, self.number, self.finish = board, number, finish
        self.done = False

    def wait(self) -> Tensor:
        if not self.done:
            board = self.board
            board.wait_for(self.number)
            parts = [self.result if r == board.index else board.view(r, self) for r in range(len(board.slots))]
            self.result, self.done = self.finish(parts), True
        return self.result


def build(group: dist.ProcessGroup, index: int, size: int) -> Board | None:
    """The board of an axis; None when its ranks are not all on one machine. Every rank of the axis must call it."""
    if not hasattr(os, "memfd_create"):  # not Linux
        return None
    memory, token = os.memfd_create("megatron-ziya"), secrets.token_bytes(16)
    os.truncate(memory, SLOTS * SLOT)  # takes no memory before it is written to
    os.pwrite(memory, token, 0)
    pipes = [os.pipe() for _ in range(size)]
    everyone: list[tuple[int, int, bytes, list[int]]] = [(0, 0, b"", [])] * size
    dist.all_gather_object(everyone, (os.getpid(), memory, token, [write for _, write in pipes]), group=group)
    slots, tells = [], []
    for pid, descriptor, wanted, ends in everyone:
        try:
            theirs = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR)
            if os.pread(theirs, len(token), 0) == wanted:  # else it is a process of another machine or container
                slots.append(torch.frombuffer(mmap.mmap(theirs, SLOTS * SLOT), dtype=torch.uint8))
                tells.append(os.open(f"/proc/{pid}/fd/{ends[index]}", os.O_WRONLY))
            os.close(theirs)
        except OSError:  # no such process here
            break
    there: list[bool] = [False] * size
    dist.all_gather_object(there, len(tells) == size, group=group)
    takes = [read for read, _ in pipes]
    _close([memory, *(write for _, write in pipes)])  # now the other rank alone can write, and its end is seen
    if all(there):
        return Board(index, slots, takes, tells)
    _close([*takes, *tells])
    return None


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
