"""The losses against their formulas, the penalties against gradients worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.gan.losses import LOSSES, Adversarial, gradient_penalty, r1
from normapps.models.sngan import sngan_discriminator

LOGITS = st.lists(st.floats(-30, 30), min_size=1, max_size=6)


def _expected(name: str, real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    if name == "hinge":
        hinged = np.mean(np.maximum(0, 1 - real)) + np.mean(np.maximum(0, 1 + fake))
        return float(hinged), float(-np.mean(fake))
    if name == "wasserstein":
        return float(np.mean(fake) - np.mean(real)), float(-np.mean(fake))
    # −E log σ(D(x)) − E log(1 − σ(D(G(z)))), and −E log σ(D(G(z)))
    real_term = np.logaddexp(0, -real).mean()
    return float(real_term + np.logaddexp(0, fake).mean()), float(np.logaddexp(0, -fake).mean())


@pytest.mark.parametrize("name", LOSSES)
@given(real=LOGITS, fake=LOGITS)
def test_every_loss_is_its_formula(name: str, real: list[float], fake: list[float]) -> None:
    ours = Adversarial(name)
    tensors = [torch.tensor(each, dtype=torch.float64) for each in (real, fake)]
    d_loss, g_loss = _expected(name, np.array(real), np.array(fake))
    assert float(ours.discriminator(*tensors)) == pytest.approx(d_loss, rel=1e-6, abs=1e-7)
    assert float(ours.generator(tensors[1])) == pytest.approx(g_loss, rel=1e-6, abs=1e-7)


def test_the_generator_of_the_non_saturating_loss_keeps_a_gradient() -> None:
    logits = torch.tensor([-20.0], requires_grad=True)
    Adversarial("non-saturating").generator(logits).backward()
    assert logits.grad is not None
    assert float(logits.grad) == pytest.approx(-1)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(InputError, match="unknown loss 'hing'; did you mean 'hinge'"):
        Adversarial("hing")


class _Linear(nn.Module):
    """f(x) = ⟨w, x⟩, with a shift a class."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        logits = (x * self.weight).flatten(1).sum(1)
        return logits if y is None else logits * (y + 1)


def test_the_penalty_of_a_linear_critic_is_that_of_its_weight() -> None:
    torch.manual_seed(0)
    d = _Linear(2, 3, 3)
    real, fake = torch.randn(2, 4, 2, 3, 3, dtype=torch.float64)
    norm = d.weight.detach().norm()
    penalty = gradient_penalty(d, real, fake.requires_grad_())
    assert penalty.item() == pytest.approx(float((norm - 1) ** 2))
    penalty.backward()
    torch.testing.assert_close(d.weight.grad, 2 * (norm - 1) / norm * d.weight.detach())
    assert fake.grad is None
    labels = torch.tensor([0, 1, 2, 0])  # the slope is then 1, 2, 3, 1 times the weight
    by_class = ((labels + 1) * norm - 1).square().mean()
    assert gradient_penalty(d, real, fake, labels).item() == pytest.approx(float(by_class))


def test_the_penalty_is_taken_between_real_and_fake_at_the_places_drawn() -> None:
    def half_square(x: Tensor) -> Tensor:
        return x.square().flatten(1).sum(1) / 2  # its gradient is x

    real, fake = torch.randn(2, 5, 2, 3, 3, dtype=torch.float64)
    share = torch.rand(5, generator=torch.Generator().manual_seed(3)).double()[:, None, None, None]
    norm = (real + share * (fake - real)).flatten(1).norm(dim=1)
    got = gradient_penalty(half_square, real, fake, generator=torch.Generator().manual_seed(3))
    assert got.item() == pytest.approx(float((norm - 1).square().mean()))


def test_r1_is_half_the_squared_gradient_at_real_pictures() -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)

    def scaled_square(x: Tensor) -> Tensor:
        return scale * x.square().flatten(1).sum(1) / 2

    penalty = r1(scaled_square, x)
    squares = x.flatten(1).square().sum(1).mean()
    assert penalty.item() == pytest.approx(float(9 * squares / 2))
    penalty.backward()
    torch.testing.assert_close(scale.grad, 3 * squares)
    assert not x.requires_grad


def test_a_flat_critic_has_a_finite_gradient() -> None:
    weight = torch.zeros(1, requires_grad=True)
    pictures = torch.randn(3, 1, 2, 2)
    penalty = gradient_penalty(lambda x: (weight * x).flatten(1).sum(1), pictures, -pictures)
    assert penalty.item() == 1
    penalty.backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite())


@pytest.mark.parametrize("penalty", ["gp", "r1"])
def test_penalties_are_computed_in_float32_under_autocast(penalty: str) -> None:
    torch.manual_seed(0)
    d = sngan_discriminator(28, 1, width=8)
    real, fake = torch.rand(2, 3, 1, 28, 28)

    def value() -> Tensor:
        if penalty == "r1":
            return r1(d, real)
        return gradient_penalty(d, real, fake, None, torch.Generator().manual_seed(0))

    with torch.autocast("cpu", torch.bfloat16):
        got = value()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, value(), rtol=1e-6, atol=1e-7)


def test_penalties_accept_half_precision_and_no_grad() -> None:
    d = _Linear(1, 2, 2)
    d.weight.data = d.weight.data.float()
    real = torch.randn(3, 1, 2, 2)
    with torch.no_grad():
        got = r1(d, real.bfloat16())
    torch.testing.assert_close(got, d.weight.detach().square().sum() / 2)
