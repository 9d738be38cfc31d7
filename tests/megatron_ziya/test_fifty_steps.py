"""50 steps of the engine on one process against a plain PyTorch loop: transformers' model, `torch.optim.AdamW`,
`clip_grad_norm_` and transformers' cosine to a floor, in FP64.

Adam divides by the root of the second moment plus eps, so an element whose gradient is rounding noise (1e-17) moves by
rate x noise / eps, 1e-11 of a weight in the worst case seen; 50 steps stay under 1e-10 (measured: 5e-14). A bias
correction, decay or clip gone wrong is off by 1e-3 or more.
"""

import dataclasses

import numpy as np
import pytest
import torch
from models import transformers_model
from ranks import RandomMix, train_few_steps

from megatron_ziya import batches
from megatron_ziya.checkpoint.huggingface import names
from megatron_ziya.config import Data, Model, Optimizer, Precision, Recipe, Run
from megatron_ziya.model.parallelize import initial_weight
from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.trainer import setup, train_step

STEPS, ROWS, LENGTH = 50, 4, 16
MODEL = Model(
    vocabulary_size=100, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2, max_positions=LENGTH
)
OPTIONS = Optimizer(learning_rate=3e-3, minimum=3e-4, warmup=0.1, clip=0.5)


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads on a busy machine take 40 times as long for matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def their_rates(o: Optimizer, steps: int) -> list[float]:
    """transformers' linear warm-up that starts at one part, then its cosine to a floor.

    Its two schedules count differently: the one with this warm-up ends the cosine a step early.
    """
    from transformers import optimization

    warmup, found = round(o.warmup * steps), []
    for make in (
        optimization.get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
        optimization.get_cosine_with_min_lr_schedule_with_warmup,
    ):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=o.learning_rate)
        factor = make(optimizer, warmup, steps, min_lr=o.minimum).lr_lambdas[0]
        found.append([o.learning_rate * factor(step) for step in range(steps)])
    return found[0][:warmup] + found[1][warmup:]


def their_run(o: Optimizer, tied: bool):
    """Losses, norms and weights after 50 steps of a plain PyTorch loop."""
    a = dataclasses.replace(MODEL, tied=tied).architecture()
    model = transformers_model(a, torch.float64)
    for parent in list(model.modules()):  # its own norm is FP32 even here (tests/megatron_ziya/model/test_llama.py)
        for name, module in parent.named_children():
            if type(module).__name__ == "LlamaRMSNorm":
                setattr(parent, name, torch.nn.RMSNorm(a.hidden_size, a.rms_norm_eps, dtype=torch.float64))
    model.model.embed_tokens.padding_idx = None  # else piece 0 gets no gradient; here it is a piece like any other
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for ours, theirs in names(a).items():
            weights[theirs].copy_(initial_weight(ours, tuple(weights[theirs].shape), a, Run().seed))
    matrices, others = ([w for w in weights.values() if (w.dim() > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), eps=o.eps)
    mix, losses, norms = RandomMix(a.vocabulary_size, LENGTH), [], []
    for step, rate in enumerate(their_rates(o, STEPS)):
        samples = [mix[step * ROWS + row] for row in range(ROWS)]
        tokens = torch.from_numpy(np.stack([s.tokens for s in samples]))
        counts = torch.from_numpy(np.stack([s.loss_mask for s in samples]))
        labels = torch.where(counts, tokens[:, 1:], -100)
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), labels.flatten())
        adamw.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip or float("inf")).item())
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        losses.append(loss.item())
    return losses, norms, weights


@pytest.mark.parametrize(("clip", "tied"), [(0.5, False), (0.0, True)])
def test_fifty_steps_are_those_of_torch_and_transformers(clip, tied):
    o = dataclasses.replace(OPTIONS, clip=clip)
    recipe = Recipe(
        run=Run(steps=STEPS, device="cpu"),
        model=dataclasses.replace(MODEL, tied=tied),
        data=Data(sequence_length=LENGTH, global_batch_size=ROWS, micro_batch_size=2, document_mask=False),
        optimizer=o,
        precision=Precision(weights="fp64"),
    )
    found = train_few_steps(recipe, STEPS)
    losses, norms, weights = their_run(o, tied)
    assert min(norms) > 0.5, "every step is clipped, where there is a clip"
    assert found["loss"] == pytest.approx(losses, rel=1e-10)
    assert found["norm"] == pytest.approx(norms, rel=1e-10)
    for ours, theirs in names(recipe.model.architecture()).items():
        largest = weights[theirs].detach().abs().max().item()
        torch.testing.assert_close(found["weights"][ours], weights[theirs].detach(), rtol=0.0, atol=1e-10 * largest)


class SameMix:
    """The same sample whatever the number."""

    def __getitem__(self, number: int):
        return RandomMix(MODEL.vocabulary_size, LENGTH)[0]


def test_bf16_gradients_add_up_in_fp32():
    """64 times the same micro-batch: the sum in FP32 is 64 times one of them but for 64 roundings of 2^-24. In BF16
    each addition beyond the first few would lose up to 2^-9, and half of the sum in the end."""
    found = []
    for rows in (1, 64):
        recipe = Recipe(
            run=Run(steps=1, device="cpu"),
            model=MODEL,
            data=Data(sequence_length=LENGTH, global_batch_size=rows),
            optimizer=OPTIONS,
            precision=Precision(weights="bf16"),
        )
        mesh = Mesh()
        trainer = setup(recipe, mesh, MODEL.architecture())
        train_step(trainer, *batches.read_step(SameMix(), 0, recipe.data, mesh))
        found.append([bucket.summed() for bucket in trainer.data.buckets])
    for one, many in zip(*found, strict=True):
        assert many.dtype == torch.float32
        torch.testing.assert_close(many, one, rtol=64 * 2**-24, atol=0.0)
