"""Continues a prompt: greedy, or drawn with temperature and top-p (arXiv 1904.09751).

Each new token runs the whole text through the model again; there is no cache of keys and values, which is fine for
the few hundred tokens that show what a model has learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_ziya.model.llama import Llama, MicroBatch


@dataclass(frozen=True)
class Sampling:
    tokens: int = 64
    """At most so many new ones; eos ends earlier."""
    temperature: float = 0.0
    """0 = greedy: always the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens={self.tokens} must be 1 or more")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")


@torch.no_grad()
def generate(model: Llama, prompt: Sequence[int], sampling: Sampling, eos_id: int, pieces: int) -> list[int]:
    """The new tokens after `prompt`, without eos. Rows from `pieces` on are padding and never chosen.

    Raises ValueError for an empty prompt, and when it and the new tokens do not fit the model's positions."""
    positions = model.architecture.max_positions
    _check_prompt(prompt, positions, sampling.tokens)
    assert model.norm is not None and model.head is not None, "needs the whole model"
    device = model.head.weight.device
    generator = torch.Generator().manual_seed(sampling.seed)
    ids = list(prompt)
    while len(ids) - len(prompt) < sampling.tokens:
        tokens = torch.tensor([ids], device=device)
        batch = MicroBatch(tokens, tokens, torch.ones_like(tokens, dtype=torch.bool), None)
        last = model.norm(model.hidden(tokens.flatten(), batch)[-1:])
        token = choose(model.head.logits(last)[0, :pieces], sampling, generator)
        if token == eos_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token id from `logits [V]`."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = (logits.float().cpu() / sampling.temperature).softmax(-1)
    probabilities, ids = probabilities.sort(descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities[before >= sampling.top_p] = 0.0
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def generate_with_transformers(
    folder: Path, prompts: Sequence[Sequence[int]], sampling: Sampling, eos_id: int, pieces: int, dtype: torch.dtype
) -> list[list[int]]:
    """The same with transformers' own `generate`, from a Hugging Face folder."""
    from megatron_ziya.checkpoint.proof import open_transformers

    model, _ = open_transformers(folder, dtype)
    positions = model.config.max_position_embeddings
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
    padding = list(range(pieces, model.config.vocab_size))
    found = []
    for prompt in prompts:
        _check_prompt(prompt, positions, sampling.tokens)
        torch.manual_seed(sampling.seed)
        ids = torch.tensor([list(prompt)])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=bool(drawn),
            max_new_tokens=sampling.tokens,
            eos_token_id=eos_id,
            pad_token_id=eos_id,
            suppress_tokens=padding or None,
            **drawn,
        )
        new = output[0, len(prompt) :].tolist()
        found.append(new[: new.index(eos_id)] if eos_id in new else new)
    return found


def _check_prompt(prompt: Sequence[int], positions: int, new: int) -> None:
    if not prompt:
        raise ValueError("the prompt is empty; give some text, or --bos")
    if len(prompt) >= positions:
        raise ValueError(f"the prompt has {len(prompt)} tokens, the model {positions} positions; shorten the prompt")
    if len(prompt) + new > positions:
        raise ValueError(
            f"tokens={new} new ones after a prompt of {len(prompt)} do not fit the model's {positions} positions; "
            f"ask for at most {positions - len(prompt)}"
        )
