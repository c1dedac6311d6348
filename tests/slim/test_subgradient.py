"""The published penalty: what autograd says of loss + s·Σ|γ|, whatever the loop does around it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from normapps.errors import InputError
from normapps.slim.regularizer import ScaleRegularizer
from normapps.slim.scales import split_parameters

S = 0.03


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)).double()
    nn.init.normal_(model[1].weight)
    with torch.no_grad():
        model[1].weight[2] = 0.0
    return model


def a_batch(step: int) -> Tensor:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(16, 5, generator=draw, dtype=torch.float64)


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def by_autograd(model: nn.Sequential, optimizer: Optimizer, steps: int = 6) -> Tensor:
    """Train on loss + s·Σ|γ| itself."""
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(a_batch(step)).square().mean() + S * model[1].weight.abs().sum()
        loss.backward()
        optimizer.step()
    return weights_of(model)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adam fused"])
def test_equals_autograd_of_the_penalized_loss(kind: str) -> None:
    def optimizer_of(model: nn.Module) -> Optimizer:
        groups = split_parameters(model, 0.01)
        if "adam" in kind:
            return Adam(groups, 0.02, fused="fused" in kind)
        return SGD(groups, 0.1, 0.9)

    model, twin = a_model(), a_model()
    wanted = by_autograd(twin, optimizer_of(twin))
    optimizer = optimizer_of(model)
    reg = ScaleRegularizer(model, optimizer, kind="subgradient", strength=S)
    for step in range(6):
        optimizer.zero_grad()
        model(a_batch(step)).square().mean().backward()
        optimizer.step()
        reg.step()
    torch.testing.assert_close(weights_of(model), wanted, rtol=1e-12, atol=1e-14)


def test_maximizing_the_negative_loss_is_minimizing_the_loss() -> None:
    results = []
    for maximize in (False, True):
        model = a_model()
        optimizer = SGD(model.parameters(), 0.1, 0.9, maximize=maximize)
        reg = ScaleRegularizer(model, optimizer, kind="subgradient", strength=S)
        for step in range(3):
            optimizer.zero_grad()
            loss = model(a_batch(step)).square().mean()
            (-loss if maximize else loss).backward()
            optimizer.step()
            reg.step()
        results.append(weights_of(model))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_comes_once_after_clipping_and_accumulation() -> None:
    model, twin = a_model(), a_model()
    optimizer, other = SGD(model.parameters(), 0.1), SGD(twin.parameters(), 0.1)
    reg = ScaleRegularizer(model, optimizer, kind="subgradient", strength=S)
    for each in (model, twin):
        for part in range(4):
            (each(a_batch(part)).square().mean() / 4).backward()
        nn.utils.clip_grad_norm_(each.parameters(), 0.01)
    twin[1].weight.grad += S * twin[1].weight.detach().sign()
    optimizer.step()
    reg.step()
    other.step()
    torch.testing.assert_close(weights_of(model), weights_of(twin), rtol=1e-12, atol=1e-14)


class ScaledSgd(SGD):
    """Unscales the gradients itself, as fused optimizers do for a GradScaler."""

    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for each in group["params"]:
                each.data.sub_(each.grad / self.grad_scale, alpha=group["lr"])


def test_is_scaled_where_the_optimizer_unscales() -> None:
    model, twin = a_model(), a_model()
    wanted = by_autograd(twin, SGD(twin.parameters(), 0.1), steps=1)
    optimizer = ScaledSgd(model.parameters(), 0.1)
    ScaleRegularizer(model, optimizer, kind="subgradient", strength=S)
    optimizer.grad_scale = torch.tensor(1024.0)
    (model(a_batch(0)).square().mean() * 1024).backward()
    optimizer.step()
    torch.testing.assert_close(weights_of(model), wanted, rtol=1e-12, atol=1e-14)


def test_with_grad_scaler() -> None:
    """What it unscales before the step is real; a step that it skips is none."""
    model, twin = a_model().float(), a_model().float()
    other = SGD(twin.parameters(), 0.1)
    optimizer = SGD(model.parameters(), 0.1)
    reg = ScaleRegularizer(model, optimizer, kind="subgradient", strength=S)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    loss = model(a_batch(0).float()).square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    reg.step()
    (twin(a_batch(0).float()).square().mean() + S * twin[1].weight.abs().sum()).backward()
    other.step()
    torch.testing.assert_close(weights_of(model), weights_of(twin), rtol=1e-5, atol=1e-6)
    before = copy.deepcopy(model.state_dict())
    model[1].weight.grad.fill_(float("inf"))
    scaler.step(optimizer)
    scaler.update()
    reg.step()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_any_optimizer_will_do() -> None:
    model = a_model()
    optimizer = torch.optim.RMSprop(model.parameters(), 0.01)
    reg = ScaleRegularizer(model, optimizer, kind="subgradient", strength=S)
    model(a_batch(0)).sum().backward()
    optimizer.step()
    reg.step()
    assert reg.penalty() == pytest.approx(S * float(model[1].weight.detach().abs().sum()))


def test_only_what_is_regularized_gets_it() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    optimizer = SGD(model.parameters(), 1.0)
    ScaleRegularizer(model, optimizer, kind="subgradient", strength=0.5, include="1")
    for each in model.parameters():
        each.grad = torch.zeros_like(each)
    optimizer.step()
    assert torch.equal(model[0].weight, torch.ones(3))
    assert torch.equal(model[1].weight, torch.full((3,), 0.5))


def test_a_closure_is_refused() -> None:
    model = a_model()
    optimizer = SGD(model.parameters(), 0.1)
    ScaleRegularizer(model, optimizer, kind="subgradient")
    with pytest.raises(InputError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_it_reaches_no_exact_zeros_so_no_target() -> None:
    model = a_model()
    optimizer = SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match="'subgradient' has no exact zeros"):
        ScaleRegularizer(model, optimizer, kind="subgradient", target_sparsity=0.5, steps=9)
