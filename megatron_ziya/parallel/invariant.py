"""The layout-invariant mode (`parallel.invariant`): gradients are summed in one fixed tree, whatever the layout.

Floating-point sums depend on their order, and with plain data parallel the order depends on the number of ranks. Here
each row of the global batch is a micro-batch and a leaf. Leaves 2i and 2i + 1 are added, then pairs of pairs, up to
the root; a node without a sibling moves up as it is. A rank adds what lies whole within its own rows, the ranks swap
what is left over, and each finishes the tree for its share of the weights: always the same additions.

The gradient's norm, which scales every update, is summed in integers, where order does not matter.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ziya.model.linear import Parameter
from megatron_ziya.parallel.bucket import Bucket
from megatron_ziya.parallel.collectives import Pending, start_gather
from megatron_ziya.parallel.mesh import Axis, Mesh

BITS = 22  # of one word: sums of 2^40 of them fit in an int64
BLOCK = 1 << 20  # elements


class Node(NamedTuple):
    """The sum over rows `first : first + span`."""

    first: int
    span: int
    value: Tensor


def push(nodes: list[Node], node: Node, rows: int, add: Callable[[Tensor, Tensor], Tensor] = Tensor.add_) -> None:
    """Put the next node to the right of `nodes` and add up all siblings. `rows` is the number of leaves in all.

    Which nodes are added depends on their place in the tree alone, so it makes no difference who adds them or when.
    """
    while node.span < rows and node.first % (2 * node.span) == 0 and node.first + node.span >= rows:
        node = node._replace(span=2 * node.span)  # no sibling
    nodes.append(node)
    if len(nodes) > 1:
        left, right = nodes[-2:]
        if left.span == right.span and left.first % (2 * left.span) == 0 and left.first + left.span == right.first:
            del nodes[-2:]
            push(nodes, Node(left.first, 2 * left.span, add(left.value, right.value)), rows, add)


def spans(first: int, last: int, rows: int) -> list[tuple[int, int]]:
    """`(first, span)` of the nodes that are left when rows `first : last` of `rows` are added up."""
    nothing = torch.empty(0)
    nodes: list[Node] = []
    for row in range(first, last):
        push(nodes, Node(row, 1, nothing), rows, lambda left, _: left)
    return [(node.first, node.span) for node in nodes]


class TreeBucket(Bucket):
    """A bucket whose gradients are summed in the fixed tree. A micro-batch must be one row of the global batch."""

    def place_gradients(self) -> None:
        """Each weight adds the gradient of one micro-batch into a tensor of its own."""
        for weight in self.weights:
            weight.apart = True

    def start_step(self, micro_batches: int) -> None:
        self.rows, self.first = micro_batches * self.axis.size, micro_batches * self.axis.index
        self.micro_batches = micro_batches
        self.pending, self.leftover = None, torch.empty(0)
        self.nodes: dict[Parameter, list[Node]] = {weight: [] for weight in self.weights}
        self.seen = dict.fromkeys(self.weights, 0)
        for weight in self.weights:
            weight.main_grad = self._leaf(weight)

    def completed(self, weight: Parameter) -> None:
        assert weight.main_grad is not None
        push(self.nodes[weight], Node(self.first + self.seen[weight], 1, weight.main_grad), self.rows)
        self.seen[weight] += 1
        weight.main_grad = self._leaf(weight) if self.seen[weight] < self.micro_batches else None

    def _leaf(self, weight: Parameter) -> Tensor:
        return torch.zeros(weight.shape, dtype=self.gradient_type, device=weight.device)

    def sum_over_holders(self) -> None:
        """One rank after the other, in the order of their ranks."""
        self._collect()
        axis = self.kind.sum_over
        everyone = start_gather(self.leftover.flatten(), axis).wait().view(axis.size, *self.leftover.shape)
        self.leftover = everyone[0].clone()
        for other in everyone[1:]:
            self.leftover.add_(other)

    def _collect(self) -> None:
        """This rank's leftover nodes side by side: `leftover [nodes, elements of the bucket]`."""
        places = spans(self.first, self.first + self.micro_batches, self.rows)
        self.leftover = torch.zeros(len(places), len(self.flat), dtype=self.gradient_type, device=self.flat.device)
        for number, flat in enumerate(self.leftover):
            for weight, part in self.parts(flat):
                assert [(n.first, n.span) for n in self.nodes[weight]] == places
                part.copy_(self.nodes[weight][number].value)
        self.nodes = {}

    def reduce(self) -> None:
        assert self.pending is None, "a bucket is reduced once a step"
        if not len(self.leftover):
            self._collect()
        self.pending = start_tree(self.leftover, self.rows, self.axis)
        self.leftover = torch.empty(0)


class _Tree(Pending):
    def __init__(self, received: Tensor, work: dist.Work | None, places: Sequence[tuple[int, int]], rows: int) -> None:
        super().__init__(received, work)
        self.places, self.rows = places, rows

    def wait(self) -> Tensor:
        if self.places:
            nodes: list[Node] = []
            for place, value in zip(self.places, super().wait().chunk(len(self.places)), strict=True):
                push(nodes, Node(*place, value), self.rows)
            assert len(nodes) == 1 and nodes[0].first == 0, "the tree has no root"
            self.result, self.places = nodes[0].value, []
        return self.result


def start_tree(leftover: Tensor, rows: int, axis: Axis) -> Pending:
    """Swap leftover nodes `[nodes, n]` of every rank's rows, so that each can add up its share `[n / size]`."""
    each = rows // axis.size
    places = [spans(rank * each, (rank + 1) * each, rows) for rank in range(axis.size)]
    if axis.size == 1:
        return _Tree(leftover.flatten(), None, places[0], rows)
    share = leftover.shape[1] // axis.size
    outgoing = leftover.view(len(leftover), axis.size, share).transpose(0, 1).contiguous()
    incoming = outgoing.new_empty(sum(map(len, places)) * share)
    work = dist.all_to_all_single(
        incoming, outgoing.flatten(), [len(p) * share for p in places], [len(leftover) * share] * axis.size,
        group=axis.group, async_op=True,
    )  # fmt: skip
    return _Tree(incoming, work, [place for of_rank in places for place in of_rank], rows)


def cost(buckets: Sequence[Bucket], micro_batches: int) -> str:
    """What the tree adds to a step of `micro_batches` rows on this rank, measured now, in one line."""
    seconds = math.inf
    for _ in range(3):
        begin = time.perf_counter()
        for bucket in buckets:
            one = torch.zeros(len(bucket.flat), dtype=bucket.gradient_type, device=bucket.flat.device)
            torch.zeros_like(one).add_(one)
        seconds = min(seconds, time.perf_counter() - begin)
    copies = micro_batches.bit_length() + 1  # partial sums of the tree, and the row's own gradient
    mib = copies * sum(len(bucket.flat) * bucket.gradient_type.itemsize for bucket in buckets) / 2**20
    return (
        f"layout-invariant: one row a micro-batch; the tree over {micro_batches} rows a rank takes about "
        f"{1e3 * seconds * micro_batches:.1f} ms a step (measured) and up to {mib:.0f} MiB a rank"
    )


def square_sum(tensors: Sequence[Tensor], mesh: Mesh) -> float:
    """Sum of the squares of all elements over all ranks, to the bit the same however they are spread.

    Each square is cut into three words of 22 bits below the largest square, and the words are added as integers.
    """
    largest = torch.zeros((), dtype=torch.float64, device=mesh.device)
    for tensor in tensors:
        largest = torch.maximum(largest, tensor.abs().amax().double())
    largest.nan_to_num_(nan=math.inf)  # a maximum over ranks may lose a NaN, infinity stays
    if mesh.size > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    if largest.item() in (0.0, math.inf):
        return largest.item()
    exponent = 2 * math.frexp(largest.item())[1]
    words = torch.zeros(3, dtype=torch.int64, device=mesh.device)
    for tensor in tensors:
        for part in tensor.split(BLOCK):
            rest = (part.double() * 2.0 ** -(exponent // 2)).square_()  # at most 1
            for level in range(3):
                word = rest.mul_(2.0**BITS).round()
                words[level] += word.long().sum()
                rest.sub_(word)
    if mesh.size > 1:
        dist.all_reduce(words)
    high, middle, low = words.tolist()
    return math.ldexp((high << 2 * BITS) + (middle << BITS) + low, exponent - 3 * BITS)
