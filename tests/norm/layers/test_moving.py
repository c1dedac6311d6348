"""Moving average batch norm against its formulas in float64, every batch kept as a value."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from normapps.errors import InputError
from normapps.norm import create_norm

C, EPS, MEMORY, WARMUP, RENORM, CLIP, MOMENTUM = 3, 1e-3, 3, 2, 4, 1.65, 0.2
OPTIONS: dict[str, Any] = {"eps": EPS, "memory": MEMORY, "warmup": WARMUP, "clip": CLIP}
OPTIONS |= {"renorm_after": RENORM, "momentum": MOMENTUM, "layout": "2d"}


def _layer(**options: Any) -> Any:
    layer = create_norm("moving", C, **{**OPTIONS, **options}).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.5, -1.0]))
        layer.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return layer


def _batches(number: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(number):
        shape = (2 + i % 3, C, 3, 2)
        x, grad = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        made.append((x * (1 + 0.5 * i) + i, grad))
    return made


class Reference:
    """MABN's forward and backward pass, without a ring."""

    def __init__(self, layer: Any) -> None:
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()
        self.squares: list[Tensor] = []
        self.slopes: list[Tensor] = []
        self.square = torch.ones(C).double()  # the population's: mean 0, variance 1
        self.gains: list[Tensor] = []

    def __call__(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the gradient of x."""
        self.squares.append(x.square().mean((0, 2, 3)))
        step = len(self.squares)
        chi = self._average(self.squares)
        gain = ((chi + EPS) / (self.square + EPS)).sqrt().clamp(1 / CLIP, CLIP)
        gain = gain if step > RENORM else torch.ones(C).double()
        self.gains.append(gain)
        self.square = (1 - MOMENTUM) * self.square + MOMENTUM * self.squares[-1]
        root = (chi + EPS).sqrt()[:, None, None]
        z = x / root
        y = z * (gain * self.weight)[:, None, None] + self.bias[:, None, None]
        of_z = grad * (gain * self.weight)[:, None, None]
        self.slopes.append((of_z * z).mean((0, 2, 3)))
        return y, (of_z - z * self._average(self.slopes)[:, None, None]) / root

    def _average(self, values: list[Tensor]) -> Tensor:
        if len(values) <= WARMUP:
            return values[-1]
        return torch.stack(values[-MEMORY:]).mean(0)


def test_both_passes_are_the_papers() -> None:
    layer = _layer()
    reference = Reference(layer)
    for x, grad in _batches(8):
        given = x.clone().requires_grad_()
        y = layer(given)
        layer.weight.grad = None
        y.backward(grad)
        expected, gradient = reference(x, grad)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(given.grad, gradient)
        normed = (expected - reference.bias[:, None, None]) / reference.weight[:, None, None]
        torch.testing.assert_close(layer.weight.grad, (grad * normed).sum((0, 2, 3)))
    torch.testing.assert_close(layer.running_var + layer.running_mean**2, reference.square)
    late = torch.stack(reference.gains[RENORM:])
    assert (late == CLIP).any()
    assert ((late > 1) & (late < CLIP)).any()
    x = _batches(1)[0][0]
    root = (reference.square + EPS).sqrt()[:, None, None]
    expected = x / root * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer.eval()(x), expected)


def test_of_one_batch_it_is_the_gradient_of_the_forward_pass() -> None:
    """Also after warm-up, where the memory holds the present batch alone."""
    layer = _layer(memory=1, renorm_after=99)
    for x, grad in _batches(4):
        given, exact = (x.clone().requires_grad_() for _ in range(2))
        layer(given).backward(grad)
        root = (exact.square().mean((0, 2, 3), keepdim=True) + EPS).sqrt()
        (exact / root * layer.weight.detach()[:, None, None]).backward(grad)
        torch.testing.assert_close(given.grad, exact.grad)


def test_a_run_goes_on_from_its_state_dict() -> None:
    first, second = _layer(), _layer()
    *before, last = _batches(6)
    for x, grad in before:
        first(x.requires_grad_()).backward(grad)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert (second.recent_slope != 0).all()
    found = []
    for layer in (first, second):
        x = last[0].clone().requires_grad_()
        y = layer(x)
        y.backward(last[1])
        found.append((y.detach(), x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_one_layer_in_two_places() -> None:
    layer, ((x, grad),) = _layer(), _batches(1)
    given = x.clone().requires_grad_()
    layer(layer(given)).backward(grad)
    assert int(layer.steps) == 2
    assert (layer.recent_slope[:2] != 0).all()
    assert torch.isfinite(given.grad).all()


def test_a_gradient_that_overflowed_is_forgotten() -> None:
    layer = _layer()
    for x, grad in _batches(6):
        layer(x.requires_grad_()).backward(grad)
    known, ((x, grad),) = layer.recent_slope.clone(), _batches(1)
    layer(x.requires_grad_()).backward(grad * torch.inf)
    assert not torch.isfinite(x.grad).all()
    assert torch.equal(layer.recent_slope, known)
    given = x.detach().requires_grad_()
    layer(given).backward(grad)
    assert torch.isfinite(given.grad).all()
    assert (layer.recent_slope != known).any(1).tolist() == [False, True, False]


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="memory 0: must be at least 1"):
        _layer(memory=0)
    with pytest.raises(InputError, match=r"clip 0.5: must be at least 1"):
        _layer(clip=0.5)
