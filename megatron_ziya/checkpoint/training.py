"""A rank's shares of weights, masters and moments: to segments of logical tensors, and back.

ZeRO-1 cuts a bucket without regard to where a weight ends, so a share begins and ends anywhere inside a weight.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_ziya.checkpoint.format import in_words, weights_sum
from megatron_ziya.checkpoint.reader import Reader, Segment
from megatron_ziya.config import Architecture
from megatron_ziya.model.parallelize import Piece
from megatron_ziya.optimizer import State
from megatron_ziya.parallel.data import Bucket
from megatron_ziya.parallel.mesh import Mesh

Pieces = Mapping[nn.Parameter, Sequence[Piece]]
"""Which logical pieces each local weight is made of (`parallelize.pieces`)."""


def owned_segments(states: Iterable[State], pieces: Pieces) -> Iterator[tuple[Segment, Tensor]]:
    """What this rank writes: its shares, unless it is another rank's turn to write the same weight."""
    for state in states:
        bucket = state.bucket
        if not bucket.kind.counted:
            continue
        for piece, local, box in _overlaps(bucket, pieces):
            for kind, flat in _held(state).items():
                segment = Segment(kind, piece.name, piece.dim, piece.start, piece.size, box.start, box.stop)
                yield segment, flat[local]


def weights_of(reader: Reader) -> Callable[[Piece], Tensor]:
    """What `parallelize.fill_pieces` asks for, read from a checkpoint of any layout."""
    return lambda piece: reader.read_box(piece.name, "weight", piece.dim, piece.start, piece.size)


@torch.no_grad()
def restore(reader: Reader, states: Iterable[State], pieces: Pieces) -> None:
    """Fill masters and moments of this rank's shares from a checkpoint of any layout.

    A checkpoint written with masters of the weights' own type (FP32 runs) gives them to an FP32-master run as well.
    """
    for state in states:
        for kind, flat in _held(state).items():
            if kind == "weight":
                continue
            stored = "weight" if kind == "master" and "master" not in reader.kinds() else kind
            for piece, local, box in _overlaps(state.bucket, pieces):
                run = Segment(stored, piece.name, piece.dim, piece.start, piece.size, box.start, box.stop)
                flat[local] = reader.read_run(run)


def check_weights(reader: Reader, buckets: Iterable[Bucket], pieces: Pieces, mesh: Mesh) -> str:
    """Hold the weights that the forward pass will read against those that were saved; all ranks call.

    Every data-parallel replica sums what its ranks hold (`format.weights_sum`). Returns what is wrong, "" when nothing
    is or when the weights were saved in another type, whose bits are others.
    """
    total, dtype = 0, None
    for bucket in buckets:
        for weight in bucket.weights if bucket.kind.counted else ():
            dtype = weight.dtype
            for piece in pieces[weight]:
                box = Segment("weight", piece.name, piece.dim, piece.start, piece.size, 0, 0)
                total += weights_sum(box, piece.of_local(weight), piece.shape)
    everyone = [(mesh.data.index, total)]
    if mesh.size > 1:
        everyone *= mesh.size
        dist.all_gather_object(everyone, (mesh.data.index, total))
    segment, file = reader.segments["weight", "embedding.weight"][0]
    if not reader.weights_sum or file.dtype(segment) != dtype:
        return ""
    for replica in range(mesh.data.size):
        found = in_words(sum(part for index, part in everyone if index == replica))
        if found != reader.weights_sum:
            return (
                f"{reader.path} was saved with weights whose sum is {reader.weights_sum}, what replica {replica} has "
                f"read sums to {found}"
            )
    return ""


def new_run(device: torch.device) -> str:
    """A random name for a run, the same on every rank; no random state of torch is touched."""
    drawn = torch.tensor(list(os.urandom(8)), dtype=torch.uint8, device=device)
    if dist.is_initialized():
        dist.broadcast(drawn, 0)
    return bytes(drawn.tolist()).hex()


def load_newest(
    found: Sequence[Path],
    architecture: Architecture,
    load: Callable[[Reader], None],
    check: Callable[[Reader], str] = lambda reader: "",
) -> tuple[Reader, list[str]]:
    """`load` the newest of `found` (oldest first) that no rank refuses. Returns it, and why newer ones were refused.

    All ranks call this and go on from the same checkpoint; `load` must overwrite all that it has half done before.
    `check` is called when all ranks have loaded it, and says what is wrong, the same on every rank.
    Raises ValueError, the same on every rank, when none is good or the good one is of another architecture.
    """
    refused: list[str] = []
    for path in reversed(found):
        reader, wrong = _open(path)
        wrong = _first(wrong)
        if not wrong:
            assert reader is not None
            if reader.architecture != architecture:
                raise ValueError(f"{path} holds another architecture than the recipe; choose another run.directory")
            wrong = _first(_failure(load, reader)) or check(reader)
            if not wrong:
                return reader, refused
        refused.append(wrong)
    raise none_good(found, refused)


def none_good(found: Sequence[Path], refused: Sequence[str]) -> ValueError:
    """What to raise when every checkpoint of a run was refused, and why."""
    return ValueError(
        f"none of the {len(found)} checkpoints in {found[-1].parent} is good: {'; '.join(refused)}; "
        "choose another run.directory to start anew"
    )


def _open(path: Path) -> tuple[Reader | None, str]:
    try:
        reader = Reader(path)
    except (ValueError, OSError) as error:
        return None, str(error)
    wrong = "" if path.name == f"step_{reader.step:06d}" else f"{path} holds step {reader.step}; it was renamed"
    return reader, wrong


def _failure(load: Callable[[Reader], None], reader: Reader) -> str:
    try:
        load(reader)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _first(wrong: str) -> str:
    """What the first rank that found something wrong says; "" when no rank has."""
    if not dist.is_initialized():
        return wrong
    everyone: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(everyone, wrong)
    return next((said for said in everyone if said), "")


def _held(state: State) -> dict[str, Tensor]:
    weight = state.bucket.flat[state.bucket.share]
    held = {"weight": weight, "exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq}
    return held if state.master.dtype == weight.dtype else held | {"master": state.master}


def _overlaps(bucket: Bucket, pieces: Pieces) -> Iterator[tuple[Piece, slice, slice]]:
    """The parts of pieces that fall into this rank's share: `(piece, elements of the share, elements of its box)`."""
    for weight, offset in zip(bucket.weights, bucket.offsets, strict=True):
        for piece in pieces[weight]:
            box = [piece.size if d == piece.dim else n for d, n in enumerate(piece.shape)]
            begin = offset + piece.rows[0] * math.prod(box[1:])
            first, last = max(begin, bucket.share.start), min(begin + math.prod(box), bucket.share.stop)
            if first < last:
                local = slice(first - bucket.share.start, last - bucket.share.start)
                yield piece, local, slice(first - begin, last - begin)
