"""AdamW against torch.optim.AdamW, rates against transformers' schedules, the loss scale against GradScaler."""

import math

import pytest
import torch
import transformers

import ziya_kernels
from megatron_ziya import config, optimizer
from megatron_ziya.model.linear import Parameter
from megatron_ziya.parallel.data import DataParallel, Kind
from megatron_ziya.parallel.mesh import Mesh
from megatron_ziya.precision import LossScale

STEPS, WARMUP = 50, 10


def theirs(name: str, shape: str):
    """transformers' schedule of the same name: 1 at its peak."""
    one = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    if name == "constant":
        return transformers.get_constant_schedule_with_warmup(one, WARMUP)
    if name == "cosine":
        return transformers.get_cosine_with_min_lr_schedule_with_warmup(one, WARMUP, STEPS, min_lr_rate=0.1)
    return transformers.get_wsd_schedule(one, WARMUP, 20, num_training_steps=STEPS, decay_type=shape, min_lr_ratio=0.1)


CASES = [("constant", "linear"), ("cosine", "linear"), ("wsd", "linear"), ("wsd", "1-sqrt")]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_rates_are_those_of_transformers(name, shape):
    o = config.Optimizer(
        learning_rate=3e-3, minimum=3e-4, warmup=WARMUP / STEPS, schedule=name, decay=0.4, decay_shape=shape
    )
    warmup, wanted = theirs("constant", "").lr_lambdas[0], theirs(name, shape).lr_lambdas[0]
    for step in range(STEPS):
        # transformers' first step has rate 0, ours is one ahead until the warm-up is over; and its wsd, unlike its
        # other schedules, warms up from the minimum
        factor = warmup(step + 1) if step < WARMUP else wanted(step)
        assert optimizer.learning_rate(step, STEPS, o) == pytest.approx(3e-3 * factor, rel=1e-12), step


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_fifty_steps_equal_torch(name, shape):
    """With skipped steps in between, which must not count for Adam's bias correction."""
    o = config.Optimizer(learning_rate=1e-2, warmup=0.2, schedule=name, decay_shape=shape, clip=0.7)
    draw = torch.Generator().manual_seed(0)
    matrix, norm = Parameter(torch.randn(6, 5, generator=draw)), Parameter(torch.randn(7, generator=draw))
    twins = [torch.nn.Parameter(w.detach().clone()) for w in (matrix, norm)]
    groups = [{"params": twins[:1], "weight_decay": o.weight_decay}, {"params": twins[1:], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), eps=o.eps)
    data = DataParallel([(matrix, Kind(True), 1), (norm, Kind(False), 1)], Mesh(), 1e6, torch.float32)
    ours = optimizer.AdamW(data, o, Mesh(), ziya_kernels.select("torch", torch.device("cpu")))
    skipped = 0
    for step in range(STEPS):
        rate = optimizer.learning_rate(step, STEPS, o)
        data.start_step(1)
        for weight, twin in zip((matrix, norm), twins, strict=True):
            gradient = torch.randn(weight.shape, generator=draw) * (math.inf if step % 9 == 4 else 1.0)
            twin.grad = gradient.clone()
            weight.main_grad.add_(gradient * 8)
            weight.gradient_added(weight)
        data.finish_step()
        found = ours.step(step + 1 - skipped, rate, 1 / 8)
        if step % 9 == 4:
            skipped += 1
            assert not math.isfinite(found)
            continue
        assert found == pytest.approx(torch.nn.utils.clip_grad_norm_(twins, o.clip).item(), rel=1e-6)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    for weight, twin in zip((matrix, norm), twins, strict=True):
        torch.testing.assert_close(weight.data, twin.data, rtol=2e-6, atol=2e-7)


def test_a_loss_that_is_not_finite_changes_nothing():
    weight = Parameter(torch.ones(3, 3))
    data = DataParallel([(weight, Kind(True), 1)], Mesh(), 1e6, torch.float32)
    ours = optimizer.AdamW(data, config.Optimizer(), Mesh(), ziya_kernels.select("torch", torch.device("cpu")))
    data.start_step(1)
    weight.main_grad.add_(1.0)
    weight.gradient_added(weight)
    data.finish_step()
    ours.step(1, 1e-2, 1.0, loss=math.nan)
    assert torch.equal(weight.data, torch.ones(3, 3)) and not ours.states[0].exp_avg.any()


def test_the_loss_scale_moves_as_in_gradscaler():
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    scale = LossScale(64.0, 3)
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], lr=0.0)
    for finite in [1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1]:
        weight.grad = torch.tensor([1.0 if finite else math.inf])
        scaler.scale(torch.ones(1))
        scaler.step(sgd)
        scaler.update()
        scale.update(bool(finite))
        assert scale.value == scaler.get_scale()
    again = LossScale(1.0, 3)
    again.restore(scale.state())
    assert again == scale


def test_the_loss_scale_is_no_help_at_one():
    scale = LossScale(2.0, 10)
    assert scale.update(False) and scale.value == 1.0
    assert not scale.update(False)
    assert not LossScale().update(False)
