"""Bytes that a rank holds in a step, by arithmetic; `tools/measure_memory.py` lays them beside what real ranks hold.

Weights, gradients and the optimizer's shares are counted on the rank's own buckets, made without memory (torch's meta
device). Activations are counted half layer by half layer: what `model/llama.py` and the kernels keep from the forward
to the backward pass, played through the schedule. All sizes are bytes.

Letters: T tokens of a micro-batch, t the share of them that a rank holds between matrices, H hidden, N query heads and
K key heads of a rank times head size, F intermediate size of a rank, V vocabulary rows of a rank.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

import ziya_kernels
from megatron_ziya import optimizer
from megatron_ziya.config import Architecture, Recipe
from megatron_ziya.model import parallelize
from megatron_ziya.model.head import CHUNK
from megatron_ziya.parallel.data import DataParallel
from megatron_ziya.parallel.mesh import Axis, Mesh
from megatron_ziya.parallel.schedule import Schedule
from megatron_ziya.parallel.slices import halves
from megatron_ziya.parallel.tensor import vocabulary_share
from megatron_ziya.parallel.verify import planned
from megatron_ziya.precision import TYPES
from megatron_ziya.trainer import weights_by_kind
from ziya_kernels import attention_short, reference

CACHED = 2 << 20  # bytes a thread of what `ziya_kernels.reference` works on at once


@dataclass(frozen=True)
class Memory:
    """Of one rank of stage `stage`."""

    stage: int
    parameters: int
    """Weights, the rows that pad the vocabulary included."""
    weights: float
    gradients: float
    """FP32 buffers of all gradients; in invariant mode with the partial sums of the tree."""
    optimizer: float
    """This rank's share: moments, and FP32 masters where the weights are narrower."""
    activations: float
    """Most that is held between two actions of the pipeline: for backward passes, for weight gradients that wait, and
    messages on their way."""
    working: float
    """What the fullest moment needs on top: logits of a chunk, gradients on their way, or other ranks' shares of a
    sum."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


def memory(recipe: Recipe, a: Architecture, ranks: int, device: str = "cuda") -> Memory:
    """Of a rank of the fullest stage; `device` is cpu or cuda, which keep different things."""
    return max(of_stages(recipe, a, ranks, device), key=lambda m: m.total)


def of_stages(recipe: Recipe, a: Architecture, ranks: int, device: str = "cuda") -> list[Memory]:
    """Of the first rank of every stage."""
    p, d = recipe.parallel, recipe.data
    data_ranks = ranks // (p.tensor * p.pipeline)
    micro_batches = d.global_batch_size // (data_ranks * d.micro_batch_size)
    schedule, _, verdict = planned(p, a, d.sequence_length, micro_batches)
    sizes = Sizes(recipe, a, device)
    cuts = halves(p, a.layers)
    costs = [_slice_cost(sizes, cuts, number) for number in range(len(cuts))]
    found = []
    for stage in range(p.pipeline):
        parameters, weights, gradients, shares = _states(recipe, a, stage, data_ranks)
        held, highest = _play(schedule, stage, costs, verdict.ahead, sizes)
        if p.invariant:
            sums = max(number.bit_count() for number in range(micro_batches)) + 1
            left = 1 if micro_batches & (micro_batches - 1) == 0 else sums
            reduced, gradients = float(gradients * left), gradients * sums
        else:  # a CPU receives the shares of all others before it adds them up, NCCL gives their sum
            reduced = gradients * (1 if device == "cuda" else data_ranks - 1) / data_ranks
        reduced = 0.0 if data_ranks == 1 else reduced
        found.append(Memory(stage, parameters, weights, gradients, shares, held, max(highest, reduced) - held))
    return found


def _states(recipe: Recipe, a: Architecture, stage: int, data_ranks: int) -> tuple[int, int, int, int]:
    """Number of weights; bytes of weights, gradients and optimizer state, counted on buckets that have no memory."""
    p, dtype = recipe.parallel, TYPES[recipe.precision.weights]
    ends = Axis(2, int(stage > 0)) if a.tied and p.pipeline > 1 and stage in (0, p.pipeline - 1) else Axis()
    mesh = Mesh(
        device=torch.device("meta"), tensor=Axis(p.tensor), pipeline=Axis(p.pipeline, stage), data=Axis(data_ranks),
        tied=ends, head=Axis(p.tensor * p.pipeline, p.tensor * stage) if p.spread_head else Axis(),
    )  # fmt: skip
    kernels = ziya_kernels.select("torch", torch.device("cpu"))
    chunks = parallelize.build(a, p, mesh, kernels, dtype)
    gradient_type = torch.promote_types(dtype, torch.float32)
    data = DataParallel(weights_by_kind(chunks, mesh, p.sequence), mesh, p.bucket_mib * 2**20, gradient_type)
    states = optimizer.AdamW(data, recipe.optimizer, mesh, kernels).states
    masters = sum(state.master.nbytes for state in states if state.master.dtype != dtype)
    moments = sum(state.exp_avg.nbytes + state.exp_avg_sq.nbytes for state in states)
    flat = sum(bucket.flat.nbytes for bucket in data.buckets)
    gradients = sum(bucket.gradient.nbytes for bucket in data.buckets)
    return sum(weight.numel() for weight in data.home), flat, gradients, masters + moments


# --- What one micro-batch leaves in one slice of the model ------------------------------------------------------------


class Cost(NamedTuple):
    """Of one micro-batch in one slice."""

    kept: float
    """From the forward pass to the backward pass."""
    waiting: float
    """From `B` to `W`, when the backward pass is split."""
    forward: float
    """Most that is held at once during the forward pass, what is kept included."""
    backward: float
    """Most that is held at once during the backward pass, above what was held before it."""


class Sizes:
    """Bytes of the tensors of one half layer, on one rank."""

    def __init__(self, recipe: Recipe, a: Architecture, device: str) -> None:
        p, d = recipe.parallel, recipe.data
        self.p, self.a, self.cpu, self.documents = p, a, device == "cpu", d.document_mask
        self.rows, self.sequence, self.threads = d.micro_batch_size, d.sequence_length, recipe.run.threads
        dtype = TYPES[recipe.precision.weights]
        self.width = dtype.itemsize
        self.fused_head = not self.cpu and recipe.precision.kernels != "torch"  # where Triton is there
        self.wide = max(4, self.width)
        self.narrow = self.width < self.wide
        self.tokens = self.rows * self.sequence
        self.share = self.tokens // (p.tensor if p.sequence else 1)
        self.gathered = p.tensor > 1 and p.sequence
        self.heads, self.keys = a.hidden_size // p.tensor, a.kv_heads * a.head_size // p.tensor
        self.ffn = a.intermediate_size // p.tensor
        shares = p.tensor * (p.pipeline if p.spread_head else 1)
        self.vocabulary = vocabulary_share(a.vocabulary_size, Axis(shares))[1]

    @property
    def between(self) -> int:
        """Hidden states between two matrices, `[t, H]`."""
        return self.share * self.a.hidden_size * self.width

    @property
    def hidden(self) -> int:
        """Hidden states of all tokens, `[T, H]`."""
        return self.tokens * self.a.hidden_size * self.width

    def split(self, size: int) -> int:
        """A tensor of all tokens and a rank's share of the rest, `[T, size]`."""
        return self.tokens * size * self.width

    @property
    def inputs(self) -> int:
        """What a norm keeps, and this rank's share of the input of the matrix after it."""
        return 2 * self.between + 4 * self.share

    @property
    def angles(self) -> int:
        """cos and sin, of all layers of a slice; FP64 has its own in each."""
        return self.tokens * self.a.head_size * 4

    def core(self) -> int:
        """Attention between rotary and output projection: query, key, value and result, and what the kernel keeps."""
        qkv, out = self.heads + 2 * self.keys, self.heads
        heads = self.a.heads // self.p.tensor
        sums = self.tokens * heads * 4
        narrow = self.split(qkv + out)
        if not self.cpu:
            return narrow + sums
        if not self.documents and reference.PRODUCTS <= self.sequence < reference.SHORT:
            return narrow + self.rows * heads * self.wide * attention_short.kept(self.sequence)
        if self.documents or self.sequence < reference.SHORT:
            copies = qkv if self.narrow else 0
            again = out if self.narrow or self.documents else 0
            return self.split(out + (0 if self.narrow else qkv)) + self.tokens * (copies + again) * self.wide + sums
        return narrow + sums

    def kept(self, half: int, recompute: str) -> int:
        """What half a layer keeps for its backward pass."""
        if recompute == "full":
            return self.between if half % 2 == 0 else 0
        if half % 2:
            return self.inputs + self.split(3 * self.ffn)
        core = self.split(2 * self.heads + 2 * self.keys) if recompute == "selective" else self.core()
        return self.inputs + core

    def waiting(self, half: int) -> int:
        """Inputs and output gradients of the two matrices of half a layer."""
        inner = self.split(3 * self.ffn) if half % 2 else self.split(2 * self.heads + 2 * self.keys)
        return 2 * self.hidden + inner

    def backward(self, half: int) -> int:
        """What the backward pass of half a layer needs at its fullest moment, above what was kept for it."""
        arriving = self.hidden + (self.between if self.gathered else 0)
        if half % 2:
            blocks = min(self.tokens * 2 * self.ffn * self.wide, CACHED * self.threads) if self.cpu else 0
            product = self.product(self.a.hidden_size * self.ffn)
            return arriving + max(self.split(2 * self.ffn) + 2 * blocks, self.split(self.ffn) + product)
        return arriving + (8 if self.cpu else 1) * self.tokens * self.heads * self.wide

    def product(self, elements: int) -> int:
        """A weight gradient on its way into the FP32 buffer; a CPU widens it before it is added."""
        return elements * (self.width + (self.wide if self.cpu else 0)) if self.narrow else 0

    def head(self) -> int:
        """Logits of a chunk of tokens, their FP32 copy and gradient if they have one, and the products made of them."""
        tokens = min(CHUNK, self.tokens)
        chunk = tokens * self.vocabulary
        copies = self.narrow and not self.fused_head
        logits = chunk * (self.width + self.wide + self.width if copies else self.width)
        if self.tokens > CHUNK:  # the chunk before is dropped when the next one is there
            logits += chunk * (self.wide if copies else self.width)
        gradient = max(tokens * self.a.hidden_size * self.width, self.product(self.vocabulary * self.a.hidden_size))
        return logits + gradient + self.between + (self.hidden if self.gathered else 0)

    def scores(self) -> int:
        """What a share of a spread head keeps from `S` to `T`."""
        return self.tokens * self.vocabulary * (self.width if self.fused_head else self.wide) + self.hidden

    def spread(self) -> tuple[int, int]:
        """What `S` and `T` need at their fullest moment, above what is held before them."""
        copies = self.narrow and not self.fused_head
        logits = self.tokens * self.vocabulary * self.width if copies else 0
        product = self.product(self.vocabulary * self.a.hidden_size)
        return self.scores() + logits, logits + self.hidden + product


def _slice_cost(sizes: Sizes, cuts: Sequence[range], number: int) -> Cost:
    """Walk through a slice forward and backward and note the fullest moment of each."""
    cut, p, last = cuts[number], sizes.p, number == len(cuts) - 1
    layers = sorted({half // 2 for half in cut})
    recomputed = set(layers[: p.recompute_layers or None]) if p.recompute != "none" else set()
    modes = {half: p.recompute if half // 2 in recomputed else "none" for half in cut}
    live = highest = sizes.angles if cut else 0
    ends = 0
    if number == 0 and p.tensor > 1:
        ends += 9 * sizes.tokens  # tokens of this rank's rows, and which are
    # at the end: the input of the last norm and the gradient that the head has worked out already, or the output alone
    ends += (sizes.between if p.spread_head else sizes.hidden) + 4 * sizes.share if last else 0
    ends += sizes.between
    if last and p.invariant:
        ends += sizes.vocabulary * sizes.a.hidden_size * sizes.wide
    for half in cut:
        kept = sizes.kept(half, modes[half])
        inside = sizes.kept(half, "none") if modes[half] == "full" else kept
        highest = max(highest, live + inside + sizes.hidden)
        live += kept
    kept = live + ends
    highest = max(highest, kept + (sizes.head() if last and not p.spread_head else 0))
    waiting = grown = most = 0
    for half in reversed(cut):
        again = 0
        if modes[half] == "full":
            again = sum(sizes.kept(h, "none") for h in cut if h // 2 == half // 2 and h <= half)
        elif modes[half] == "selective" and half % 2 == 0:
            again = sizes.core() - sizes.split(2 * sizes.heads + 2 * sizes.keys)
        most = max(most, grown + again + sizes.backward(half))
        waiting += sizes.waiting(half)
        grown += sizes.waiting(half) * (p.schedule in ("zb-h1", "zb-v")) - sizes.kept(half, modes[half])
    return Cost(kept, waiting, highest, most)


# --- What a stage holds while its schedule runs -----------------------------------------------------------------------


def _play(schedule: Schedule, stage: int, costs: Sequence[Cost], ahead: int, sizes: Sizes) -> tuple[float, float]:
    """Most that is held between two actions, and most that is held at all."""
    live: dict[tuple[int, int], float] = {}  # micro-batch, chunk
    waiting: dict[tuple[int, int], float] = {}
    scores: dict[int, float] = {}
    sends: deque[tuple[str, int, int]] = deque()
    coming = {other: len(schedule.line(other, stage)) for other in range(schedule.stages) if other != stage}
    between = highest = 0.0

    def held() -> float:
        posted = sum(min(ahead, left) for left in coming.values())
        # a sent hidden state is the output that the backward pass keeps anyway
        sent = sum(kind != "F" or (m, chunk) not in live for kind, m, chunk in sends)
        kept = [*live.values(), *waiting.values(), *scores.values()]
        return sum(kept) + sizes.between * (posted + sent)

    for action in schedule.actions[stage]:
        key, cost = (action.micro_batch, action.chunk), costs[schedule.placement[stage][action.chunk]]
        for taken in schedule.takes(stage, action):
            if schedule.source(taken) != stage:
                coming[schedule.source(taken)] -= 1
        needs = {"F": cost.forward, "B": cost.backward, "W": 0.0, "S": sizes.spread()[0], "T": sizes.spread()[1]}
        highest = max(highest, held() + needs[action.kind])
        if action.kind == "F":
            live[key] = cost.kept
        elif action.kind == "B":
            del live[key]
            waiting |= {key: cost.waiting} if schedule.split else {}
        elif action.kind == "W":
            del waiting[key]
        elif action.kind == "S":
            scores[action.micro_batch] = sizes.scores()
        else:
            del scores[action.micro_batch]
        for sent in schedule.sends(stage, action):
            if schedule.target(sent) != stage:
                sends.append((action.kind, *key))
            if len(sends) > 4 * schedule.stages:
                sends.popleft()
        between = max(between, held())
    return between, max(highest, between)
