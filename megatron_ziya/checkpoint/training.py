"""A rank's shares of weights, masters and moments: to segments of logical tensors, and back.

ZeRO-1 cuts a bucket without regard to where a weight ends, so a share begins and ends anywhere inside a weight.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from megatron_ziya.checkpoint.reader import Reader, Segment
from megatron_ziya.model.parallelize import Piece
from megatron_ziya.optimizer import State
from megatron_ziya.parallel.data import Bucket

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
