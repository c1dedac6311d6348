"""Memorized and diminishing batch norm against their formulas in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import create_norm
from normapps.norm.layers.memorized import double_forward

C, EPS, MEMORY, DECAY, POWER = 3, 1e-3, 3, 0.8, 0.7


def _layer(name: str) -> Any:
    options: dict[str, Any] = {"memory": MEMORY, "decay": DECAY}
    if name == "diminishing":
        options = {"power": POWER}
    return create_norm(name, C, eps=EPS, layout="2d", **options).double()


def _batches(sizes: tuple[int, ...] = (4, 2, 1, 5, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(n, C, 3, 2, generator=generator, dtype=torch.float64) * (i + 1) + i
        for i, n in enumerate(sizes)
    ]


def _standard(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return (x - mean[:, None, None]) / (var + EPS).sqrt()[:, None, None]


def _memorized(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Moments of the values of the last batches, each decay^age: nothing is merged."""
    recent = batches[::-1][:MEMORY]
    rows = [batch.movedim(1, 0).flatten(1) for batch in recent]
    weight = torch.cat([torch.full((r.shape[1],), DECAY**a) for a, r in enumerate(rows)]).double()
    values, share = torch.cat(rows, 1), weight / weight.sum()
    mean = (values * share).sum(1)
    return mean, ((values - mean[:, None]) ** 2 * share).sum(1)


def _diminished(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    mean, var = torch.zeros(C).double(), torch.ones(C).double()
    for t, batch in enumerate(batches, 1):
        alpha = t**-POWER
        mean = (1 - alpha) * mean + alpha * batch.mean((0, 2, 3))
        var = (1 - alpha) * var + alpha * batch.var((0, 2, 3), correction=0)
    return mean, var


both = pytest.mark.parametrize(
    ("name", "moments"), [("memorized", _memorized), ("diminishing", _diminished)]
)
Formula = Callable[[list[Tensor]], tuple[Tensor, Tensor]]


@both
def test_training_is_the_formula_with_the_batchs_gradient(name: str, moments: Formula) -> None:
    layer, seen = _layer(name), []
    for x in _batches():
        given, exact = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = layer(given)
        mean, var = moments([*seen, exact])
        expected = _standard(exact, mean, var)
        torch.testing.assert_close(y, expected)
        slope = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape).square()
        y.backward(slope)
        expected.backward(slope)
        torch.testing.assert_close(given.grad, exact.grad)
        seen.append(x)
    torch.testing.assert_close(layer.running_mean, mean.detach())
    torch.testing.assert_close(layer.running_var, var.detach())
    torch.testing.assert_close(layer.eval()(x), y.detach())  # inference computes the same
    assert int(layer.num_batches_tracked) == 5


@both
def test_a_run_goes_on_from_its_state_dict(name: str, moments: Formula) -> None:
    first, second = _layer(name), _layer(name)
    *before, last = _batches()
    for x in before:
        first(x)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(last), second(last))
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_a_power_of_1_averages_all_batches_and_of_0_is_batch_norm() -> None:
    batches = _batches()
    average = create_norm("diminishing", C, layout="2d").double()
    alone = create_norm("diminishing", C, layout="2d", power=0).double()
    torchs = nn.BatchNorm2d(C).double()
    for x in batches:
        average(x)
        torch.testing.assert_close(alone(x), torchs(x))
    means = torch.stack([x.mean((0, 2, 3)) for x in batches])
    torch.testing.assert_close(average.running_mean, means.mean(0))


def test_the_second_pass_takes_the_place_of_the_first() -> None:
    layer, (first, second, moved, *_) = _layer("memorized"), _batches()
    network = nn.Sequential(layer)
    network(first)
    network(second)
    with double_forward(network):
        y = network(moved)
    assert not y.requires_grad
    assert int(layer.num_batches_tracked) == 2
    mean, var = _memorized([first, moved])
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, var)
    assert not layer.replaces
    with (
        pytest.raises(InputError, match="no memorized norm in the model"),
        double_forward(nn.ReLU()),
    ):
        pass


def test_options_that_make_no_sense_are_refused() -> None:
    for name, option in (("memorized", {"memory": 0}), ("memorized", {"decay": 0.0})):
        with pytest.raises(InputError, match="must be a"):
            create_norm(name, C, **option)
    with pytest.raises(InputError, match=r"power 1.5: must be in 0…1"):
        create_norm("diminishing", C, power=1.5)
