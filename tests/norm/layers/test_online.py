"""Online normalization against its equations, one sample after the other, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import create_norm

C, A, B, EPS = 3, 0.2, 0.3, 1e-3


def _layer(**options: Any) -> Any:
    chosen = {"rate": A, "rate_backward": B, "guard": "none", "eps": EPS, **options}
    layer = create_norm("online", C, layout="2d", **chosen).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.5, -1.0]))
        layer.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return layer


def _batches(
    sizes: tuple[int, ...] = (4, 1, 5), spread: float = 2.0
) -> list[tuple[Tensor, Tensor]]:
    """Inputs and the gradients of the outputs."""
    generator = torch.Generator().manual_seed(1)
    made = torch.randn(2, sum(sizes), C, 3, 2, generator=generator, dtype=torch.float64)
    return list(zip((made[0] * spread + 1).split(sizes), made[1].split(sizes), strict=True))


class Reference:
    """The paper's two processes, sample by sample."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight.detach(), bias.detach()
        self.mean, self.var = torch.zeros(C).double(), torch.ones(C).double()
        self.along, self.level = torch.zeros(C).double(), torch.zeros(C).double()

    def __call__(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs and the gradients of (N, C, H, W)."""
        outputs, kept = [], []
        for sample in x:
            std = (self.var + EPS).sqrt()
            y = (sample - self.mean[:, None, None]) / std[:, None, None]
            kept.append((y, std))
            outputs.append(y * self.weight[:, None, None] + self.bias[:, None, None])
            mean, var = sample.mean((1, 2)), sample.var((1, 2), correction=0)
            self.var = (1 - A) * self.var + A * var + A * (1 - A) * (mean - self.mean) ** 2
            self.mean = (1 - A) * self.mean + A * mean
        gradients = []
        for (y, std), of_output in zip(kept, grad, strict=True):
            step = torch.minimum(torch.tensor(B).double(), 1 / (y**2).mean((1, 2)))
            h = of_output * self.weight[:, None, None] - (step * self.along)[:, None, None] * y
            self.along = self.along + (h * y).mean((1, 2))
            of_x = h / std[:, None, None] - B * self.level[:, None, None]
            self.level = self.level + of_x.mean((1, 2))
            gradients.append(of_x)
        return torch.stack(outputs), torch.stack(gradients)


@pytest.mark.parametrize("spread", [1.0, 9.0])  # the second where the paper's first control is cut
def test_both_directions_are_the_papers_sample_by_sample(spread: float) -> None:
    layer = _layer()
    reference = Reference(layer.weight, layer.bias)
    for x, grad in _batches(spread=spread):
        given = x.clone().requires_grad_()
        y = layer(given)
        y.backward(grad)
        expected, gradient = reference(x, grad)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(given.grad, gradient)
    torch.testing.assert_close(layer.running_mean, reference.mean)
    torch.testing.assert_close(layer.running_var, reference.var)
    torch.testing.assert_close(layer.control, torch.stack([reference.along, reference.level]))
    assert (layer.control.abs() > 1e-3).all()


def test_a_batch_is_its_samples_in_their_order() -> None:
    whole, single = _layer(guard="scaling"), _layer(guard="scaling")
    ((x, grad),) = _batches((6,))
    together, apart = (x.clone().requires_grad_() for _ in range(2))
    y = whole(together)
    y.backward(grad)
    for i in range(len(x)):
        one = single(apart[i : i + 1])
        torch.testing.assert_close(one, y[i : i + 1])
        one.backward(grad[i : i + 1])
    torch.testing.assert_close(apart.grad, together.grad)
    for key, value in whole.named_buffers():
        if key != "num_batches_tracked":
            torch.testing.assert_close(dict(single.named_buffers())[key], value)


def test_scale_and_shift_have_their_own_gradient() -> None:
    layer, ((x, grad),) = _layer(), _batches((4,))
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    y = layer(x)
    y.backward(grad)
    standard = (y.detach() - layer.bias[:, None, None]) / layer.weight[:, None, None]
    torch.testing.assert_close(layer.bias.grad, grad.sum((0, 2, 3)))
    torch.testing.assert_close(layer.weight.grad, (grad * standard).sum((0, 2, 3)))
    first = (x[0] - mean[:, None, None]) / (var + EPS).sqrt()[:, None, None]
    torch.testing.assert_close(standard[0], first)


def test_the_gradient_is_orthogonal_on_average() -> None:
    """What batch norm's gradient is in each batch, this is in the long run."""
    layer = _layer(rate=0.01, rate_backward=0.01, eps=1e-8)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, C, 4, 1, generator=generator, dtype=torch.float64) + 2
    given = x.requires_grad_()
    y = layer(given)
    y.backward(y.detach() * 3 + 1 + torch.randn(x.shape, generator=generator))
    late = given.grad[1000:]
    assert late.mean((0, 2, 3)).abs().max() < 0.05  # 1 and 3 without the controls
    assert (late * y.detach()[1000:]).mean((0, 2, 3)).abs().max() < 0.1


def test_far_from_the_running_moments_the_controls_stay_finite() -> None:
    layer = _layer(rate=0.001, rate_backward=0.01)
    for x, grad in _batches((50, 50), spread=1e4):
        layer(x.requires_grad_()).backward(grad)
    assert torch.isfinite(layer.control).all()
    assert layer.control.abs().max() < 10  # the paper's own would be above 1e100


def test_a_gradient_that_overflowed_is_forgotten() -> None:
    layer, ((x, grad), *_) = _layer(), _batches()
    layer(x.requires_grad_()).backward(grad)
    known = layer.control.clone()
    scaled = grad.clone()
    scaled[0, 0] = torch.inf
    layer(x).backward(scaled)
    assert torch.equal(layer.control[:, 0], known[:, 0])
    assert (layer.control[:, 1:] != known[:, 1:]).all()
    given = x.detach().requires_grad_()
    layer(given).backward(grad)
    assert torch.isfinite(given.grad).all()


def test_guards() -> None:
    ((x, _),) = _batches((4,), spread=30)
    bare = _layer().eval()(x)
    scaled = _layer(guard="scaling").eval()(x)
    rms = (bare.square().mean((1, 2, 3), keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(scaled, bare / rms)
    torch.testing.assert_close(_layer(guard="clamp").eval()(x), bare.clamp(-5, 5))
    with pytest.raises(InputError, match="unknown guard 'scalling'; did you mean 'scaling'"):
        _layer(guard="scalling")
    with pytest.raises(InputError, match=r"rate_backward 1.0: must be between 0 and 1"):
        _layer(rate_backward=1.0)


def test_a_run_goes_on_from_its_state_dict() -> None:
    first, second = _layer(), _layer()
    before, after = _batches((4, 4))
    first(before[0].requires_grad_()).backward(before[1])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.control.abs().max() > 0
    gradients = []
    for layer in (first, second):
        x = after[0].clone().requires_grad_()
        layer(x).backward(after[1])
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_one_layer_in_two_places_and_a_forward_pass_alone() -> None:
    layer, ((x, grad),) = _layer(), _batches((4,))
    given = x.clone().requires_grad_()
    with torch.no_grad():
        layer(x)
    assert layer.control.abs().max() == 0
    layer(layer(given)).backward(grad)
    assert torch.isfinite(given.grad).all()


def test_small_steps_are_not_lost_in_half_precision() -> None:
    layer = create_norm("online", C).to(torch.bfloat16)
    x = torch.full((64, C), 0.02, dtype=torch.bfloat16)
    for _ in range(20):
        layer(x)
    assert layer.weight.dtype == torch.bfloat16
    expected = 0.02 * (1 - 0.999 ** (64 * 20))
    torch.testing.assert_close(layer.running_mean, torch.full((C,), expected), rtol=1e-2, atol=0)


def test_a_stack_learns_from_batches_of_one() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), create_norm("online", 8), nn.Tanh()) for _ in range(2)]
    network = nn.Sequential(*layers, nn.Linear(8, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    inputs = torch.randn(300, 8)
    losses = []
    for x in inputs:
        loss = (network(x[None]) - x[:3].sum().sign()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-100:]) < 0.7 * sum(losses[:100])
