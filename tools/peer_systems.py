"""What `compare_peers.py` measures: each system builds itself on its ranks and returns a function that runs a step.

All train the same LLaMA with AdamW and a clip of 1.0, on `SEQUENCES` rows a step in micro-batches of one row. The peers
are written with their own public interfaces and plain torch.

Letters: T tokens of a micro-batch, H hidden, F intermediate, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Step = Callable[[], Any]


@dataclass(frozen=True)
class Size:
    """The yardstick; tests use a smaller one."""

    hidden: int = 256
    layers: int = 8
    heads: int = 8
    intermediate: int = 688
    vocabulary: int = 8192
    sequence: int = 256
    sequences: int = 8
    """Rows a step."""

    def parameters(self) -> int:
        """Weights of the matrices that are multiplied with."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.vocabulary * self.hidden


@dataclass(frozen=True)
class System:
    """One row of the table."""

    ranks: int
    dtype: str
    build: Callable[["System", Size], Step]
    target: float | None = None
    """Most that issue 4 allows, as a share of transformers on one process."""
    layout: dict[str, Any] = field(default_factory=dict)
    """Keys of the recipe's section `parallel`."""
    kernels: str = "auto"


def rows(size: Size) -> Tensor:
    """Token ids `[sequences, sequence + 1]`, the same for everyone."""
    return torch.randint(
        size.vocabulary, (size.sequences, size.sequence + 1), generator=torch.Generator().manual_seed(1)
    )


# --- The floor ------------------------------------------------------------------------------------------------------


def matrix_products(system: System, size: Size) -> Step:
    """Forward, input gradient and weight gradient of every linear layer, and nothing else; attention not counted."""
    dtype, h, f = DTYPES[system.dtype], size.hidden, size.intermediate
    shapes = [(3 * h, h), (h, h), (2 * f, h), (h, f)] * size.layers + [(size.vocabulary, h)]
    made = [[torch.randn(s, dtype=dtype) for s in ((size.sequence, i), (o, i), (size.sequence, o))] for o, i in shapes]
    sums = [torch.empty(o, i, dtype=dtype) for o, i in shapes]

    def step() -> None:
        for _ in range(size.sequences):
            for (x, weight, dy), total in zip(made, sums, strict=True):
                torch.mm(x, weight.t())
                torch.mm(dy, weight)
                torch.mm(dy.t(), x, out=total)

    return step


# --- Peers ----------------------------------------------------------------------------------------------------------


def transformers_model(size: Size, dtype: torch.dtype) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model: nn.Module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.intermediate,
            num_hidden_layers=size.layers, num_attention_heads=size.heads, max_position_embeddings=size.sequence,
            use_cache=False,
        )
    )  # fmt: skip
    return model.to(dtype)


def eager_step(model: nn.Module, data: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Step:
    """A step of any torch model: a micro-batch a row, clip, fused AdamW on the weights as they are."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        loss = torch.zeros(())
        for number, row in enumerate(data):
            if isinstance(model, nn.parallel.DistributedDataParallel):
                model.require_backward_grad_sync = number == len(data) - 1
            part = loss_of(row[None]) / len(data)
            part.backward()
            part = part.detach()
            loss += part.full_tensor() if isinstance(part, DTensor) else part
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def transformers(system: System, size: Size) -> Step:
    """transformers' LlamaForCausalLM, eager, its default attention and loss."""
    model = transformers_model(size, DTYPES[system.dtype])
    return eager_step(model, rows(size), transformers_loss(model))


def transformers_loss(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda row: model(input_ids=row[:, :-1], shift_labels=row[:, 1:].contiguous(), labels=row[:, 1:]).loss


def data_parallel(system: System, size: Size) -> Step:
    """The same over two processes with torch's DistributedDataParallel; gradients are summed once a step."""
    model = nn.parallel.DistributedDataParallel(transformers_model(size, DTYPES[system.dtype]))
    mine = rows(size).chunk(system.ranks)[dist.get_rank()]
    return eager_step(model, mine, transformers_loss(model))


def dtensor(system: System, size: Size) -> Step:
    """The same over two processes with torch's DTensor: tensor and sequence parallel, loss over the split vocabulary.

    The plan is the one of torch's tutorial for LLaMA.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        loss_parallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (system.ranks,))
    model = PlainLlama(size).to(DTYPES[system.dtype])
    gather = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
    gather_first = PrepareModuleInput(input_layouts=(Shard(1), None), desired_input_layouts=(Replicate(), None))
    plan: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }
    layer: dict[str, Any] = {
        "attention_norm": SequenceParallel(),
        "mlp_norm": SequenceParallel(),
        "attention": gather_first,
        "mlp": gather,
    }
    layer |= {f"attention.{name}": ColwiseParallel() for name in "qkv"} | {
        "attention.o": RowwiseParallel(output_layouts=Shard(1))
    }
    layer |= {f"mlp.{name}": ColwiseParallel() for name in ("gate", "up")} | {
        "mlp.down": RowwiseParallel(output_layouts=Shard(1))
    }
    parallelize_module(model, mesh, plan | {f"layers.{i}.{k}": v for i in range(size.layers) for k, v in layer.items()})

    def loss_of(row: Tensor) -> Tensor:
        logits = model(row[:, :-1])[0]  # [T, V / ranks]
        return nn.functional.cross_entropy(logits.float(), row[:, 1:].flatten())

    inner = eager_step(model, rows(size), loss_of)

    def step() -> float:
        with loss_parallel():
            return float(inner())

    return step


class PlainLlama(nn.Module):
    """LLaMA2 as one would write it with torch.nn, for DTensor's plans (transformers' own modules do not fit them)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.hidden)
        self.layers = nn.ModuleList(PlainLayer(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.hidden, 1e-5)
        self.head = nn.Linear(size.hidden, size.vocabulary, bias=False)
        frequencies = 10000.0 ** (-torch.arange(0, size.hidden // size.heads, 2) / (size.hidden // size.heads))
        self.angles = torch.outer(torch.arange(size.sequence), frequencies).repeat(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.angles)
        return self.head(self.norm(x))


class PlainLayer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.RMSNorm(size.hidden, 1e-5), nn.RMSNorm(size.hidden, 1e-5)
        self.attention, self.mlp = PlainAttention(size), PlainMLP(size)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), angles)
        return x + self.mlp(self.mlp_norm(x))


class PlainAttention(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.head_size = size.hidden // size.heads
        self.q, self.k, self.v, self.o = (nn.Linear(size.hidden, size.hidden, bias=False) for _ in range(4))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2) for m in (self.q, self.k, self.v))
        cos, sin = angles.cos().to(q.dtype), angles.sin().to(q.dtype)

        def rotate(t: Tensor) -> Tensor:
            first, second = t.chunk(2, -1)
            return t * cos + torch.cat((-second, first), -1) * sin

        mixed = nn.functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


class PlainMLP(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(size.hidden, size.intermediate, bias=False) for _ in range(2))
        self.down = nn.Linear(size.intermediate, size.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


# --- Ours -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A sample of the mix, without document boundaries, which the peers know nothing of."""

    tokens: Any
    starts: Any
    loss_mask: Any


def ours(system: System, size: Size) -> Step:
    """megatron-ziya's train_step with batch reading, as `megatron_ziya.train` does it."""
    from megatron_ziya import batches, config, process
    from megatron_ziya.parallel import mesh as meshes
    from megatron_ziya.strict import from_dict
    from megatron_ziya.trainer import setup, train_step

    device = process.prepare("cpu", 1)
    recipe = from_dict(
        config.Recipe,
        {
            "run": {"device": "cpu", "steps": 1000},
            "model": {
                "vocabulary_size": size.vocabulary, "hidden_size": size.hidden, "layers": size.layers,
                "intermediate_size": size.intermediate, "heads": size.heads, "max_positions": size.sequence,
            },
            "parallel": system.layout,
            "data": {"sequence_length": size.sequence, "global_batch_size": size.sequences, "document_mask": False},
            "precision": {"weights": system.dtype, "kernels": system.kernels},
        },
    )  # fmt: skip
    mesh = meshes.build(recipe.parallel.tensor, recipe.parallel.pipeline, device)
    trainer = setup(recipe, mesh, recipe.model.architecture())
    tokens = rows(size).numpy()
    mask = torch.ones(size.sequence, dtype=torch.bool).numpy()
    mix: Any = [Row(row, row[:-1] * 0, mask) for row in tokens]

    def step() -> float:
        micro_batches, counted = batches.read_step(mix, 0, recipe.data, mesh)
        return float(train_step(trainer, micro_batches, counted)["loss"])

    return step


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FLOOR, PEER = "matrix products alone", "transformers"
SYSTEMS = {
    f"{FLOOR}, fp32": System(1, "fp32", matrix_products),
    f"{FLOOR}, bf16": System(1, "bf16", matrix_products),
    f"{PEER}, fp32": System(1, "fp32", transformers),
    f"{PEER}, bf16": System(1, "bf16", transformers),
    "torch DDP 2": System(2, "fp32", data_parallel),
    "torch DTensor tp2 + sequence parallel": System(2, "fp32", dtensor),
    "ours, fp32": System(1, "fp32", ours, 0.90),
    "ours, bf16": System(1, "bf16", ours, 0.85),
    "ours, fp32, compiled": System(1, "fp32", ours, 0.85, kernels="compiled"),
    "ours, bf16, compiled": System(1, "bf16", ours, 0.78, kernels="compiled"),
    "ours tp2 + sequence parallel": System(2, "fp32", ours, 1.35, {"tensor": 2}),
    "ours tp2": System(2, "fp32", ours, None, {"tensor": 2, "sequence": False}),
    "ours pp2 1f1b": System(2, "fp32", ours, 1.03, {"pipeline": 2}),
    "ours pp2 zero-bubble": System(2, "fp32", ours, 1.03, {"pipeline": 2, "schedule": "zb-h1"}),
    "ours dp2 zero1": System(2, "fp32", ours, 1.05),
    "ours tp2 pp2 dp2": System(8, "fp32", ours, 1.6, {"tensor": 2, "pipeline": 2}),
}
