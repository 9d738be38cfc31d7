"""LLaMA2 (arXiv 2307.09288, 2302.13971) in plain PyTorch; a pipeline stage is a slice of it.

Hidden states are `[T, H]`: everything but attention works token by token, so the tokens of a micro-batch are one flat
list, and sequence parallel is a slice of it with no re-layout.

Letters: B batch, S sequence, T = B S tokens, H hidden, N heads, K heads of keys and values, D head size,
F intermediate, V vocabulary. With tensor parallel N, K, F, V and (between matrices) T are a rank's share; this file
reads them off the tensors and never asks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megatron_ziya.config import Architecture
from megatron_ziya.model.head import Head
from megatron_ziya.model.linear import Linear, Parameter, embed
from megatron_ziya.model.recompute import recompute
from ziya_kernels import Kernels
from ziya_kernels.reference import rotary_table


@dataclass
class MicroBatch:
    """What every stage knows of the tokens it works on. All `[B, S]`."""

    tokens: Tensor
    targets: Tensor
    """The token that follows each token."""
    loss_mask: Tensor
    """False where the prediction does not count."""
    starts: Tensor | None
    """First position of each token's document within its row; None = a row is one document."""
    loss_scale: float = 1.0
    """The gradient of each token's loss is seeded with this."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, statistics in FP32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float, kernels: Kernels) -> None:
        super().__init__()
        self.eps, self.kernels = eps, kernels
        self.weight = Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.kernels.rms_norm(x, self.weight, self.eps)

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of `x + residual`, and that sum; one kernel on a GPU."""
        return self.kernels.rms_norm_residual(x, residual, self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention with rotary positions; fused QKV."""

    recompute_core = False
    """The backward pass works out attention again from query, key and value (arXiv 2205.05198, section 5)."""

    def __init__(self, a: Architecture, kernels: Kernels) -> None:
        super().__init__()
        self.groups, self.kernels = a.heads // a.kv_heads, kernels
        n, k = a.heads * a.head_size, a.kv_heads * a.head_size
        self.qkv = Linear(a.hidden_size, {"query": n, "key": k, "value": k})
        self.output = Linear(n, {"output": a.hidden_size})

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], batch: MicroBatch) -> Tensor:
        q, k, v = self.kernels.rotary_qkv(self.qkv(x), self.groups, *rotary)  # [B, S, N or K, D]
        if self.recompute_core:
            mixed = recompute(lambda q, k, v: self.kernels.attention(q, k, v, batch.starts), q, k, v)
        else:
            mixed = self.kernels.attention(q, k, v, batch.starts)  # [B, S, N, D]
        return self.output(mixed.flatten(0, 1).flatten(1))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202); gate and up in one product."""

    def __init__(self, a: Architecture, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.gate_up = Linear(a.hidden_size, {"gate": a.intermediate_size, "up": a.intermediate_size})
        self.down = Linear(a.intermediate_size, {"down": a.hidden_size})

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.kernels.swiglu(self.gate_up(x)))


class Layer(nn.Module):
    """Attention and MLP; a pipeline cut may put them on two stages, and then each has one half."""

    recompute = False
    """The backward pass works out the whole layer again from its input."""

    def __init__(self, a: Architecture, kernels: Kernels, attention: bool = True, mlp: bool = True) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(a.hidden_size, a.rms_norm_eps, kernels) if attention else None
        self.attention = Attention(a, kernels) if attention else None
        self.mlp_norm = RMSNorm(a.hidden_size, a.rms_norm_eps, kernels) if mlp else None
        self.mlp = MLP(a, kernels) if mlp else None

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], batch: MicroBatch) -> Tensor:
        if self.attention is None or self.attention_norm is None:
            assert self.mlp is not None and self.mlp_norm is not None
            return x + self.mlp(self.mlp_norm(x))
        if self.mlp is None or self.mlp_norm is None:
            return x + self.attention(self.attention_norm(x), rotary, batch)
        normal, x = self.mlp_norm.of_sum(self.attention(self.attention_norm(x), rotary, batch), x)
        return x + self.mlp(normal)


class Embedding(nn.Module):
    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.weight = Parameter(torch.empty(vocabulary, hidden))

    def forward(self, tokens: Tensor) -> Tensor:
        return embed(tokens, self.weight)


class Llama(nn.Module):
    """The half layers `halves` of the model; with the embedding if `first`, with norm, head and loss if `last`.

    Half `2 i` is the attention of layer i, half `2 i + 1` its MLP; None = all.

    `forward` takes token ids `[T]` on the first stage and hidden states `[T, H]` on any other, and returns hidden
    states, or on the last stage `(loss, token_losses [T])` as `Head` does.
    """

    def __init__(
        self, a: Architecture, kernels: Kernels, halves: range | None = None, first: bool = True, last: bool = True
    ) -> None:
        super().__init__()
        self.architecture = a
        halves = range(2 * a.layers) if halves is None else halves
        self.embedding = Embedding(a.vocabulary_size, a.hidden_size) if first else None
        self.layers = nn.ModuleDict(
            {str(i): Layer(a, kernels, 2 * i in halves, 2 * i + 1 in halves) for i in sorted({h // 2 for h in halves})}
        )
        self.norm = RMSNorm(a.hidden_size, a.rms_norm_eps, kernels) if last else None
        self.head = Head(a.vocabulary_size, a.hidden_size, kernels) if last else None
        self.share_of_head: nn.Module | None = None
        """Where the head is spread over the pipeline stages, the share of this one. Then the last slice has none."""
        if a.tied and self.embedding is not None and self.head is not None:
            self.head.weight = self.embedding.weight

    def hidden(self, x: Tensor, batch: MicroBatch) -> Tensor:
        """Token ids `[T]` or hidden states `[T, H]` -> hidden states after the last layer of this slice."""
        if self.embedding is not None:
            x = self.embedding(x)
        rotary = rotary_angles(self.architecture, batch)
        for layer in self.layers.values():
            if layer.recompute:
                x = recompute(lambda x, layer=layer: layer(x, rotary, batch), x)
            else:
                x = layer(x, rotary, batch)
        return x

    def forward(self, x: Tensor, batch: MicroBatch) -> Tensor | tuple[Tensor, Tensor]:
        x = self.hidden(x, batch)
        if self.norm is not None:
            x = self.norm(x)
        if self.head is None:
            return x
        return self.head(x, batch.targets.flatten(), batch.loss_mask.flatten(), batch.loss_scale)

    def logits(self, tokens: Tensor, starts: Tensor | None = None) -> Tensor:
        """Scores `[B, S, V]` of the next token for `tokens [B, S]`; the whole model in one process."""
        assert self.embedding is not None and self.norm is not None and self.head is not None, "needs the whole model"
        batch = MicroBatch(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool), starts)
        x = self.norm(self.hidden(tokens.flatten(), batch))
        return self.head.logits(x).view(*tokens.shape, -1)


def rotary_angles(a: Architecture, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """cos and sin `[B, S, D/2]` in FP32 (arXiv 2104.09864; Ziya2 4.2). Positions restart with each document.

    `inv_freq` is made here each time: a buffer could be cast to BF16 along with the model, and positions collapse.
    """
    rows, sequence = batch.tokens.shape
    device = batch.tokens.device
    positions = torch.arange(sequence, device=device).expand(rows, sequence)
    if batch.starts is not None:
        positions = positions - batch.starts
    exponents = torch.arange(0, a.head_size, 2, device=device, dtype=torch.float32) / a.head_size
    inv_freq = 1.0 / (a.rope_theta**exponents) / a.rope_scaling
    return rotary_table(positions, inv_freq)
