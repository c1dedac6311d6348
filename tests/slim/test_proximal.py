"""The thresholds are right: what the iteration comes to rest at is the minimizer itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from normapps.errors import InputError
from normapps.slim.proximal import group_soft_threshold, soft_threshold, step_length
from normapps.slim.regularizer import ScaleRegularizer

CHANNELS, STRENGTH = 48, 0.3


def a_norm(channels: int = CHANNELS) -> nn.BatchNorm1d:
    """A batch norm in float64 whose scales and shifts are random."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(channels).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def a_bowl(channels: int = CHANNELS) -> tuple[Tensor, Tensor]:
    """Curvature and centre of ½Σ a(γ − c)², some centres near 0 and some far."""
    draw = torch.Generator().manual_seed(1)
    curvature = 0.2 + torch.rand(channels, generator=draw, dtype=torch.float64)
    return curvature, torch.randn(channels, generator=draw, dtype=torch.float64)


def minimizer(curvature: Tensor, centre: Tensor, strength: float = STRENGTH) -> Tensor:
    """The lasso's closed form for a diagonal quadratic, written element by element."""
    values = []
    for a, c in zip(curvature.tolist(), centre.tolist(), strict=True):
        size = max(abs(c) - strength / a, 0.0)
        values.append(math.copysign(size, c))
    return torch.tensor(values, dtype=torch.float64)


def descend(
    norm: nn.BatchNorm1d, optimizer: Optimizer, after: Callable[[], object], steps: int = 400
) -> None:
    curvature, centre = a_bowl(norm.num_features)
    sign = -1 if optimizer.param_groups[0].get("maximize") else 1
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (curvature * (norm.weight - centre).square()).sum() / 2
        loss = loss + (curvature.flip(0) * (norm.bias - 0.3 * centre.flip(0)).square()).sum() / 2
        (sign * loss).backward()
        optimizer.step()
        after()


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "plain": lambda p: SGD(p, 0.4),
    "plain, dampening unused": lambda p: SGD(p, 0.4, dampening=0.5),
    "momentum": lambda p: SGD(p, 0.06, 0.9),
    "dampening": lambda p: SGD(p, 0.09, 0.9, dampening=0.4),
    "nesterov": lambda p: SGD(p, 0.06, 0.9, nesterov=True),
    "maximize": lambda p: SGD(p, 0.06, 0.9, maximize=True),
    "foreach": lambda p: SGD(p, 0.06, 0.9, foreach=True),
    "fused": lambda p: SGD(p, 0.06, 0.9, fused=True),
    "lr a tensor": lambda p: SGD(p, torch.tensor(0.06, dtype=torch.float64), 0.9),
    "adam": lambda p: Adam(p, 0.06),
    "adam, large eps": lambda p: Adam(p, 0.1, eps=0.5),
    "adam fused": lambda p: Adam(p, 0.06, fused=True),
    "adam foreach": lambda p: Adam(p, 0.06, foreach=True),
    "adam, lr a tensor": lambda p: Adam(p, torch.tensor(0.06, dtype=torch.float64), foreach=False),
    "adam maximize": lambda p: Adam(p, 0.06, maximize=True),
    "amsgrad": lambda p: Adam(p, 0.1, amsgrad=True, eps=0.1),
    "adamw": lambda p: AdamW(p, 0.06, weight_decay=0.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_comes_to_rest_at_the_minimizer(name: str) -> None:
    norm = a_norm()
    optimizer = OPTIMIZERS[name](norm.parameters())
    reg = ScaleRegularizer(norm, optimizer, strength=STRENGTH)
    descend(norm, optimizer, reg.step)
    wanted = minimizer(*a_bowl())
    torch.testing.assert_close(norm.weight.detach(), wanted, rtol=0, atol=1e-8)
    assert torch.equal(norm.weight == 0, wanted == 0)
    assert reg.sparsity() == (wanted == 0).double().mean() > 0.2


def test_naive_threshold_solves_another_problem() -> None:
    norm = a_norm()
    optimizer = SGD(norm.parameters(), 0.03, 0.9)

    @torch.no_grad()
    def naive() -> None:
        norm.weight.copy_(soft_threshold(norm.weight, 0.03 * STRENGTH))

    descend(norm, optimizer, naive)
    curvature, centre = a_bowl()
    other = minimizer(curvature, centre, STRENGTH * (1 - 0.9))
    torch.testing.assert_close(norm.weight.detach(), other, rtol=0, atol=1e-8)
    zeros, wanted = (norm.weight == 0).sum(), (minimizer(curvature, centre) == 0).sum()
    assert zeros * 3 < wanted


def test_naive_threshold_after_adam_reaches_no_minimizer() -> None:
    norm = a_norm()
    optimizer = Adam(norm.parameters(), 0.01)

    @torch.no_grad()
    def naive() -> None:
        norm.weight.copy_(soft_threshold(norm.weight, 0.01 * STRENGTH))

    descend(norm, optimizer, naive)
    curvature, centre = a_bowl()
    reached = (norm.weight == 0).sum()
    assert reached * 3 < (minimizer(curvature, centre) == 0).sum()


def group_minimizer(channels: int) -> tuple[Tensor, Tensor]:
    """Minimize ½a(γ−c)² + ½b(β−d)² + λ√(γ²+β²) a pair by bisecting on the pair's norm."""
    a, c = a_bowl(channels)
    b, d = a.flip(0), 0.3 * c.flip(0)
    found = []
    for ai, ci, bi, di in zip(a.tolist(), c.tolist(), b.tolist(), d.tolist(), strict=True):
        if math.hypot(ai * ci, bi * di) <= STRENGTH:
            found.append((0.0, 0.0))
            continue
        low, high = 0.0, math.hypot(ci, di)
        for _ in range(200):
            r = (low + high) / 2
            outer = math.hypot(ai * ci / (ai * r + STRENGTH), bi * di / (bi * r + STRENGTH)) > 1
            low, high = (r, high) if outer else (low, r)
        found.append((ai * ci * low / (ai * low + STRENGTH), bi * di * low / (bi * low + STRENGTH)))
    pairs = torch.tensor(found, dtype=torch.float64)
    return pairs[:, 0], pairs[:, 1]


@pytest.mark.parametrize("name", ["plain", "momentum", "nesterov", "adam", "adam, large eps"])
def test_group_comes_to_rest_at_the_minimizer(name: str) -> None:
    norm = a_norm()
    optimizer = OPTIMIZERS[name](norm.parameters())
    reg = ScaleRegularizer(norm, optimizer, strength=STRENGTH, group=True)
    descend(norm, optimizer, reg.step, 500)
    gamma, beta = group_minimizer(CHANNELS)
    torch.testing.assert_close(norm.weight.detach(), gamma, rtol=0, atol=1e-8)
    torch.testing.assert_close(norm.bias.detach(), beta, rtol=0, atol=1e-8)
    dead = (gamma == 0) & (beta == 0)
    assert torch.equal((norm.weight == 0) & (norm.bias == 0), dead)
    assert 0.1 < reg.sparsity() == dead.double().mean() < 0.9


def test_group_with_other_rates_for_the_shifts() -> None:
    norm = a_norm()
    groups = [{"params": [norm.weight]}, {"params": [norm.bias], "lr": 0.7}]
    optimizer = SGD(groups, 0.3)
    reg = ScaleRegularizer(norm, optimizer, strength=STRENGTH, group=True)
    descend(norm, optimizer, reg.step)
    gamma, beta = group_minimizer(CHANNELS)
    torch.testing.assert_close(norm.weight.detach(), gamma, rtol=0, atol=1e-8)
    torch.testing.assert_close(norm.bias.detach(), beta, rtol=0, atol=1e-8)


numbers = st.floats(-100, 100, width=64)
lengths = st.floats(1e-4, 1e3)


@given(st.lists(numbers, min_size=1, max_size=8), st.floats(0, 50))
def test_soft_threshold(values: list[float], bound: float) -> None:
    got = soft_threshold(torch.tensor(values, dtype=torch.float64), bound)
    for one, value in zip(got.tolist(), values, strict=True):
        assert one == pytest.approx(math.copysign(max(abs(value) - bound, 0), value), abs=1e-12)
        assert one or math.copysign(1, one) == 1


@given(st.lists(numbers, min_size=2, max_size=5), lengths, st.floats(1e-3, 10))
def test_group_of_one_step_length_is_the_closed_form(
    values: list[float], length: float, strength: float
) -> None:
    norm = math.sqrt(sum(value**2 for value in values))
    factor = max(1 - length * strength / norm, 0.0) if norm else 0.0
    x = torch.tensor([values], dtype=torch.float64)
    got = group_soft_threshold(
        x, torch.full_like(x, length), torch.tensor([[strength]], dtype=x.dtype)
    )
    torch.testing.assert_close(got, x * factor, rtol=1e-9, atol=1e-9 * max(norm, 1))


@given(st.lists(st.tuples(numbers, lengths), min_size=2, max_size=5), st.floats(1e-3, 10))
def test_group_in_a_metric_by_bisection(pairs: list[tuple[float, float]], strength: float) -> None:
    x, a = (torch.tensor([part], dtype=torch.float64) for part in zip(*pairs, strict=True))
    got = group_soft_threshold(x, a, torch.tensor([[strength]], dtype=torch.float64))
    low, high = 0.0, math.hypot(*x[0].tolist())
    for _ in range(300):
        r = (low + high) / 2
        outer = math.hypot(*(v / (r + strength * t) for v, t in pairs)) > 1
        low, high = (r, high) if outer else (low, r)
    wanted = x * (low / (low + strength * a)) if high else x
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8 * max(1.0, float(x.abs().max())))


def test_what_does_not_move_stays_in_a_group() -> None:
    x, a = torch.tensor([[3.0, 0.5, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    got = group_soft_threshold(x, a, torch.tensor([[2.0]]))
    assert got[0, 0] == 3
    assert 0 < got[0, 1] < 0.5
    # only what moves is minimized over: (y − ½)²/2 + 2·√(9 + y²)
    y = float(got[0, 1])
    assert y - 0.5 + 2 * y / math.sqrt(9 + y * y) == pytest.approx(0, abs=1e-6)


def test_length_of_a_first_adam_step_is_bias_corrected() -> None:
    norm = a_norm(4)
    optimizer = Adam(norm.parameters(), 0.02, betas=(0.5, 0.9), eps=1e-3)
    gradient = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    for factor in (1.0, 3.0):
        norm.weight.grad, norm.bias.grad = gradient * factor, torch.zeros_like(gradient)
        optimizer.step()
    second = (0.1 * 0.9 + 0.1 * 9) * gradient.square() / (1 - 0.9**2)
    wanted = 0.02 / (second.sqrt() + 1e-3)
    torch.testing.assert_close(step_length(optimizer, norm.weight), wanted, rtol=1e-12, atol=0)


def test_adam_spares_a_scale_above_a_branch_that_begins_at_zero() -> None:
    """Its first gradients are 0, and lr·λ/(√v̂ + ε) is 10⁴ times its size."""
    first, last = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model = nn.Sequential(first, nn.Linear(3, 3), last)
    nn.init.zeros_(last.weight)
    optimizer = Adam(model.parameters(), 1e-3)
    reg = ScaleRegularizer(model, optimizer, strength=0.1)
    for step in range(3):
        optimizer.zero_grad()
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        (model(x) - x).square().mean().backward()
        optimizer.step()
        reg.step()
    assert first.weight.min() > 1 - 3 * 6e-3


def test_unknown_optimizer_is_named() -> None:
    norm = a_norm()
    with pytest.raises(InputError, match=r"RMSprop is not known.*SGD, Adam or AdamW.*subgradient"):
        ScaleRegularizer(norm, RMSprop(norm.parameters()))


def test_a_class_derived_from_a_known_one_is_not_trusted() -> None:
    class Odd(SGD):
        pass

    norm = a_norm()
    with pytest.raises(InputError, match="Odd is not known"):
        ScaleRegularizer(norm, Odd(norm.parameters(), 0.1))


def test_momentum_of_one_is_refused() -> None:
    norm = a_norm()
    with pytest.raises(InputError, match=r"momentum 1\.0: must be below 1"):
        ScaleRegularizer(norm, SGD(norm.parameters(), 0.1, 1.0))
