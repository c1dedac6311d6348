"""Weights on manifolds: the formulas in float64, the constraint in training, resuming."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import normapps.models  # noqa: F401  the guard before timm
from normapps.errors import InputError
from normapps.norm.weight.manifold import (
    constrain_,
    oblique_tangent,
    polar_rows,
    qr_rows,
    stiefel_tangent,
    unit_rows,
)
from normapps.norm.weight.methods import weight_standardization_

KINDS = [("oblique", "qr"), ("stiefel", "qr"), ("stiefel", "polar")]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _lamb(parameters: Any) -> Optimizer:
    from timm.optim import Lamb

    found: Optimizer = Lamb(parameters, 0.01)
    return found


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, 0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda parameters: Adam(parameters, 0.01),
    "lamb": _lamb,
}


def _network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 50)
    )


X = torch.linspace(-1, 1, 2 * 2 * 4 * 4).reshape(2, 2, 4, 4).square()


def _train(network: nn.Module, optimizer: Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        (network(X + 0.01 * step) - 1).square().mean().backward()
        optimizer.step()


def _matrices(network: nn.Sequential) -> list[Tensor]:
    """The weights as (out, in·k), in float64."""
    first, second, third = (network[i].weight.detach().double() for i in (0, 2, 4))  # type: ignore[union-attr, operator]
    return [first.flatten(1), second.transpose(0, 1).flatten(1), third]


def _distance(matrix: Tensor, manifold: str) -> float:
    if manifold == "oblique":
        return float((matrix.square().sum(1) - 1).abs().max())
    gram = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
    return float((gram - torch.eye(len(gram)).double()).abs().max())


# Formulas


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_retractions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(polar_rows(matrix), u @ v)
    found = qr_rows(matrix)
    assert _distance(found, "stiefel") < 1e-12
    # unique: what Gram and Schmidt do to the rows (columns, if tall), in their order
    wide, rows = (matrix, found) if shape[0] <= shape[1] else (matrix.t(), found.t())
    done: list[Tensor] = []
    for row in wide:
        left = row - sum((row @ each) * each for each in done)
        done.append(left / left.square().sum().sqrt())
    torch.testing.assert_close(rows, torch.stack(done))
    assert _distance(unit_rows(matrix), "oblique") < 1e-12


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_tangents_are_orthogonal_projections(shape: tuple[int, int]) -> None:
    for start, tangent, retract in (
        (unit_rows, oblique_tangent, unit_rows),
        (polar_rows, stiefel_tangent, polar_rows),
        (polar_rows, stiefel_tangent, qr_rows),
    ):
        weight = start(torch.randn(*shape, dtype=torch.float64))
        vector, other = torch.randn(2, *shape, dtype=torch.float64)
        along = tangent(weight, vector)
        torch.testing.assert_close(tangent(weight, along), along)  # a projection
        inner = (tangent(weight, other) * (vector - along)).sum()
        assert float(inner) == pytest.approx(0, abs=1e-10)  # and an orthogonal one
        # the retraction agrees with the tangent to first order
        errors = [
            float((retract(weight + h * along) - weight - h * along).norm()) for h in (1e-3, 1e-4)
        ]
        assert errors[1] < errors[0] / 50
        kind = "oblique" if start is unit_rows else "stiefel"
        assert _distance(weight + 1e-6 * along, kind) < 1e-10
        assert float(tangent(weight, weight).abs().max()) < 1e-12  # decay is normal


# Training


@pytest.mark.parametrize(
    ("name", "manifold", "retraction"),
    [(name, *kind) for name in ("sgd", "adam") for kind in KINDS] + [("lamb", *KINDS[1])],
)
def test_the_constraint_holds_over_100_steps(name: str, manifold: str, retraction: str) -> None:
    network = _network()
    optimizer = OPTIMIZERS[name](network.parameters())
    constrain_(optimizer, network, manifold, retraction=retraction)
    before = _matrices(network)
    assert all(_distance(each, manifold) < 1e-5 for each in before)
    first = float((network(X) - 1).square().mean().detach())
    _train(network, optimizer, 100)
    for matrix, old in zip(_matrices(network), before, strict=True):
        assert _distance(matrix, manifold) < 1e-5
        assert float((matrix - old).abs().max()) > 0.01
    assert float((network(X) - 1).square().mean().detach()) < first


@pytest.mark.parametrize("manifold", ["oblique", "stiefel"])
def test_a_step_is_the_riemannian_one(manifold: str) -> None:
    """Momentum SGD by hand, in float64: g projected, W retracted, m projected at the new W."""
    layer = nn.Linear(6, 4, bias=False).double()
    optimizer = SGD(layer.parameters(), 0.1, momentum=0.9)
    constrain_(optimizer, layer, manifold, retraction="polar")
    tangent = oblique_tangent if manifold == "oblique" else stiefel_tangent
    retract = unit_rows if manifold == "oblique" else polar_rows
    weight, momentum = layer.weight.detach().clone(), torch.zeros(4, 6).double()
    for _ in range(3):
        gradient = torch.randn(4, 6, dtype=torch.float64)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + tangent(weight, gradient)
        weight = retract(weight - 0.1 * momentum)
        momentum = tangent(weight, momentum)
        torch.testing.assert_close(layer.weight.detach(), weight)
        torch.testing.assert_close(optimizer.state[layer.weight]["momentum_buffer"], momentum)


@pytest.mark.parametrize(
    ("name", "manifold"), [("sgd", "oblique"), ("sgd", "stiefel"), ("lamb", "stiefel")]
)
def test_it_resumes_exactly(name: str, manifold: str) -> None:
    whole = _network()
    optimizer = OPTIMIZERS[name](whole.parameters())
    constrain_(optimizer, whole, manifold)
    _train(whole, optimizer, 4)
    states = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    _train(whole, optimizer, 3)
    for constrained_first in (True, False):
        resumed = _network()
        again = OPTIMIZERS[name](resumed.parameters())
        if constrained_first:
            constrain_(again, resumed, manifold)
        resumed.load_state_dict(states[0])
        again.load_state_dict(copy.deepcopy(states[1]))
        if not constrained_first:
            constrain_(again, resumed, manifold)
        _train(resumed, again, 3)
        for key, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), key


def test_it_works_under_a_schedule_and_with_a_closure() -> None:
    network = _network()
    optimizer = SGD(network.parameters(), 0.05, momentum=0.9)
    constrain_(optimizer, network, "stiefel")
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = network(X).square().sum()
        loss.backward()
        seen.append(network[4].weight.grad.clone())  # type: ignore[union-attr, operator]
        return loss

    weight = network[4].weight.detach().clone()  # type: ignore[union-attr, operator]
    optimizer.step(closure)
    schedule.step()
    expected = stiefel_tangent(weight, seen[0])
    assert not torch.allclose(expected, seen[0])
    torch.testing.assert_close(network[4].weight.grad, expected)  # type: ignore[union-attr, operator]
    assert _distance(_matrices(network)[2], "stiefel") < 1e-5


def test_parameters_without_a_gradient_and_others_stay() -> None:
    network = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    optimizer = SGD(network.parameters(), 0.1, weight_decay=0.5)
    constrain_(optimizer, network, "oblique", include=["0"])
    before = copy.deepcopy(network.state_dict())
    network[1](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(network[0].weight, before["0.weight"])
    assert not torch.equal(network[1].weight, before["1.weight"])
    length = network[1].weight.detach().square().sum(1)  # type: ignore[union-attr, operator]
    assert float((length - 1).abs().max()) > 0.1


def test_undo_frees_the_weights() -> None:
    layer = nn.Linear(5, 4)
    optimizer = SGD(layer.parameters(), 0.1)
    with constrain_(optimizer, layer, "stiefel"):
        weight = layer.weight.detach().clone()
    assert torch.equal(layer.weight, weight)
    layer(torch.ones(1, 5)).sum().backward()
    gradient = layer.weight.grad
    assert gradient is not None
    expected = weight - 0.1 * gradient
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), expected)


@pytest.mark.parametrize("manifold", ["oblique", "stiefel"])
def test_half_precision_stays_half_and_near(manifold: str) -> None:
    layer = nn.Linear(6, 4).bfloat16()
    optimizer = SGD(layer.parameters(), 0.05, momentum=0.9)
    constrain_(optimizer, layer, manifold)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.ones(2, 6).bfloat16()).square().sum().backward()
        optimizer.step()
    assert layer.weight.dtype == torch.bfloat16
    assert _distance(layer.weight.detach().double(), manifold) < 0.02


def test_a_weight_that_two_layers_share_is_kept_once() -> None:
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    network[1].weight = network[0].weight
    optimizer = SGD(network.parameters(), 0.1)
    constrain_(optimizer, network)
    network(torch.ones(1, 4)).square().sum().backward()
    optimizer.step()
    assert _distance(network[0].weight.detach().double(), "stiefel") < 1e-5  # type: ignore[union-attr, operator]


# Refusals


def test_refusals_name_the_layer() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = SGD(network[0].parameters(), 0.1)
    with pytest.raises(InputError, match="1: the optimizer does not have 'weight'; exclude"):
        constrain_(optimizer, network)
    with pytest.raises(InputError, match="unknown manifold 'stiefl'; did you mean 'stiefel'"):
        constrain_(optimizer, network[0], "stiefl")
    with pytest.raises(InputError, match="unknown retraction 'qrr'; did you mean 'qr'"):
        constrain_(optimizer, network[0], retraction="qrr")
    lbfgs = torch.optim.LBFGS(network[0].parameters())
    with pytest.raises(InputError, match="LBFGS: its line search leaves the manifold"):
        constrain_(lbfgs, network[0])
    whole = SGD(network.parameters(), 0.1)
    for weight, manifold in ((torch.zeros(2, 3), "oblique"), (torch.ones(2, 3), "stiefel")):
        with torch.no_grad():
            network[1].weight.copy_(weight)  # type: ignore[union-attr, operator]
        with pytest.raises(InputError, match="1: rows of zeros, or that depend on each other"):
            constrain_(whole, network, manifold)
    tall = nn.Linear(2, 5)
    with torch.no_grad():
        tall.weight[3] = 0
    with pytest.raises(InputError, match="Linear: rows of zeros, or that depend on each other"):
        constrain_(SGD(tall.parameters(), 0.1), tall, "oblique")
    weight_standardization_(network, include=["1"])
    with pytest.raises(InputError, match="1: 'weight' is parametrized"):
        constrain_(whole, network)
