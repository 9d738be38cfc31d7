"""Our model in one process against transformers' LlamaForCausalLM, in FP64: logits, loss, every gradient.

transformers computes RMSNorm in FP32 even in an FP64 model, so its norms are replaced by torch's own. Then nothing but
the order of FP64 sums differs: under 1e-12 of the largest value. Anything wrong by design is off by 1e-3 or more.
"""

import dataclasses
from itertools import pairwise

import pytest
import torch
from models import our_model, small, transformers_model

from megatron_ziya.checkpoint.huggingface import names
from megatron_ziya.model.llama import MicroBatch
from megatron_ziya.model.weights import shapes

SHAPES = {
    "grouped heads": {},
    "all heads": {"kv_heads": 4},
    "one head of keys": {"kv_heads": 1},
    "tied": {"tied": True},
    "scaled positions": {"rope_scaling": 2.5},
    "LLaMA2's constants": {"rms_norm_eps": 1e-5, "rope_theta": 10000.0},
}
ROWS, LENGTH = 3, 24


def reference(a):
    model = transformers_model(a, torch.float64)
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if type(module).__name__ == "LlamaRMSNorm":
                plain = torch.nn.RMSNorm(a.hidden_size, a.rms_norm_eps, dtype=torch.float64)
                plain.weight = module.weight
                setattr(parent, name, plain)
    return model


def close(found, expected, what):
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12 * scale, msg=lambda text: f"{what}: {text}")


def logical_gradients(model, a):
    from megatron_ziya.model import parallelize
    from megatron_ziya.parallel.mesh import Mesh

    return {
        piece.name: piece.of_local(weight.grad)
        for weight, pieces in parallelize.pieces(model, Mesh())
        for piece in pieces
    }


@pytest.mark.parametrize("name", SHAPES)
def test_logits_loss_and_gradients(name):
    a = small(**SHAPES[name])
    theirs, generator = reference(a), torch.Generator().manual_seed(1)
    ours = our_model(a, theirs, torch.float64)
    tokens = torch.randint(a.vocabulary_size, (ROWS, LENGTH + 1), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    mask = torch.rand(ROWS, LENGTH, generator=generator) < 0.7
    close(ours.logits(inputs), theirs(inputs).logits, "logits")

    labels = torch.where(mask, targets, -100)
    logits = theirs(inputs).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=-100)
    expected.backward()
    batch = MicroBatch(inputs, targets, mask, None, 1.0 / int(mask.sum()))
    loss, token_losses = ours(inputs.flatten(), batch)
    loss.backward()
    close(loss.detach(), expected.detach(), "loss")
    close(token_losses.sum() / mask.sum(), expected.detach(), "loss of the tokens")
    gradients, weights = logical_gradients(ours, a), dict(theirs.named_parameters())
    assert gradients.keys() == shapes(a).keys()
    for ours_name, their_name in names(a).items():
        close(gradients[ours_name], weights[their_name].grad, ours_name)


def test_documents_of_a_row_are_as_if_alone():
    a = small()
    theirs = reference(a)
    ours = our_model(a, theirs, torch.float64)
    tokens = torch.randint(a.vocabulary_size, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    bounds = [0, 1, 9, LENGTH]
    starts = torch.zeros(1, LENGTH, dtype=torch.int32)
    for begin, end in pairwise(bounds):
        starts[0, begin:end] = begin
    found = ours.logits(tokens, starts)
    for begin, end in pairwise(bounds):
        close(found[:, begin:end], theirs(tokens[:, begin:end]).logits, f"document {begin}")


def test_recomputation_changes_nothing():
    a = small()
    theirs, tokens = transformers_model(a, torch.float64), torch.arange(LENGTH)[None]
    batch = MicroBatch(tokens, tokens.flip(1), torch.ones_like(tokens, dtype=torch.bool), None)
    found = []
    for recompute in (False, True):
        model = our_model(dataclasses.replace(a), theirs, torch.float64)
        model.recompute = recompute
        model(tokens.flatten(), batch)[0].backward()
        found.append(logical_gradients(model, a))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_bf16_loses_no_more_than_transformers_does():
    """FlashAttention's rule: the error against FP64 is at most twice that of the plain implementation."""
    a = small(layers=3)
    tokens = torch.randint(a.vocabulary_size, (4, LENGTH), generator=torch.Generator().manual_seed(3))
    narrow = transformers_model(a, torch.bfloat16)
    with torch.no_grad():
        ours = our_model(a, narrow, torch.bfloat16).logits(tokens).double()
        theirs = narrow(tokens).logits.double()
        truth = narrow.double()(tokens).logits
    assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max()
    assert (ours - truth).square().mean() <= 2 * (theirs - truth).square().mean()
