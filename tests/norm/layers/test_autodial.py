"""AutoDIAL against the paper's formulas, term by term in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.convert.converter import convert_norm, convert_norm_
from normapps.norm.layers.autodial import AutoDIAL
from normapps.norm.layers.domain import DomainNorm

C = 5
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _x(domains: list[int], seed: int = 0) -> Tensor:
    shift = torch.tensor(domains, dtype=torch.float64).view(-1, 1, 1, 1)
    return _randn(len(domains), C, 3, 4, seed=seed) * (shift + 1) + 2 * shift


def _layer(alpha: float = 0.7, num_domains: int = 2) -> AutoDIAL:
    made = AutoDIAL(C, num_domains, alpha=alpha, dtype=torch.float64)
    with torch.no_grad():
        for seed, each in enumerate((made.weight, made.bias)):
            each.copy_(_randn(C, seed=seed + 20) + 1)
        made.running_mean.copy_(_randn(num_domains, C, seed=30) * 2)
        made.running_var.copy_(_randn(num_domains, C, seed=31).exp())
    return made


def _normalized(x: Tensor, mean: Tensor, var: Tensor, layer: AutoDIAL) -> Tensor:
    """By moments (C,), then γ and β."""
    shape = (1, C, 1, 1)
    y = (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()
    return y * layer.weight.view(shape) + layer.bias.view(shape)


def _paper(source: Tensor, target: Tensor, alpha: float, layer: AutoDIAL) -> tuple[Tensor, Tensor]:
    """Eq. 1-3: the mixture's samples, counted with weights, one by one."""
    flat = [each.movedim(1, 0).flatten(1) for each in (source, target)]
    found = []
    for x, share in ((source, alpha), (target, 1 - alpha)):
        shares = zip((share, 1 - share), flat, strict=True)
        weights = torch.cat([torch.ones_like(part[0]) * w / len(part[0]) for w, part in shares])
        values = torch.cat(flat, 1)
        mean = (values * weights).sum(1)
        var = ((values - mean[:, None]).square() * weights).sum(1)
        found.append(_normalized(x, mean, var, layer))
    return found[0], found[1]


@pytest.mark.parametrize("alpha", [0.5, 0.7, 1.0])
def test_a_batch_of_two_domains(alpha: float) -> None:
    """The mixed moments are those of a sample that is of the domain with probability α."""
    domains = torch.tensor([0, 1, 1, 0, 1])
    layer, x = _layer(alpha), _x(domains.tolist())
    source, target = _paper(x[domains == 0], x[domains == 1], alpha, layer)
    y = layer(x, domains)
    torch.testing.assert_close(y[domains == 0], source, **EXACT)
    torch.testing.assert_close(y[domains == 1], target, **EXACT)


def test_the_formulas_of_the_design() -> None:
    """Also where the population stands for a domain that is absent, and at inference."""
    layer, x = _layer(0.8), _x([1, 1, 1])
    mean, var = layer.running_mean.clone(), layer.running_var.clone()

    def expected(own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
        mixed = 0.8 * own[0] + 0.2 * other[0]
        spread = 0.8 * own[1] + 0.2 * other[1] + 0.8 * 0.2 * (own[0] - other[0]).square()
        return _normalized(x, mixed, spread, layer)

    batch = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    source, target = (mean[0], var[0]), (mean[1], var[1])
    torch.testing.assert_close(layer.eval()(x, 1), expected(target, source), **EXACT)
    torch.testing.assert_close(layer.train()(x, 1), expected(batch, source), **EXACT)
    torch.testing.assert_close(layer.running_mean[1], 0.9 * mean[1] + 0.1 * batch[0], **EXACT)
    unbiased = x.var((0, 2, 3))
    torch.testing.assert_close(layer.running_var[1], 0.9 * var[1] + 0.1 * unbiased, **EXACT)
    assert torch.equal(layer.running_mean[0], mean[0])


def test_three_domains_are_mixed_with_the_even_mixture_of_the_others() -> None:
    layer, x = _layer(0.6, 3).eval(), _x([0, 1, 2])
    mean, var = layer.running_mean, layer.running_var
    for domain, others in enumerate(((1, 2), (0, 2), (0, 1))):
        weights = torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64)[:, None]
        rows = [domain, *others]
        centre = (weights * mean[rows]).sum(0)
        spread = (weights * (var[rows] + (mean[rows] - centre).square())).sum(0)
        torch.testing.assert_close(layer(x, domain), _normalized(x, centre, spread, layer), **EXACT)


def test_with_alpha_1_it_is_a_bank_of_shared_scales() -> None:
    layer, domains = _layer(1.0, 3), torch.tensor([0, 2, 1, 2, -1])
    bank = DomainNorm(C, 3, share_affine=True, dtype=torch.float64)
    bank.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "alpha"})
    for step in range(3):
        x = _x([0, 2, 1, 2, 0], seed=step)
        torch.testing.assert_close(layer(x, domains), bank(x, domains), **EXACT)
        torch.testing.assert_close(layer(x, 1), bank(x, 1), **EXACT)
    for name, each in bank.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), each, **EXACT)
    assert torch.equal(layer.eval()(x, 2), bank.eval()(x, 2))


def test_with_alpha_a_half_two_domains_are_one() -> None:
    """Of equally many samples: plain batch norm of the whole batch."""
    layer, x = _layer(0.5), _x([0, 1, 1, 0])
    y = layer(x, torch.tensor([0, 1, 1, 0]))
    expected = nn.functional.batch_norm(x, None, None, layer.weight, layer.bias, True)
    torch.testing.assert_close(y, expected, **EXACT)


def test_one_domain_is_a_batch_norm() -> None:
    layer, x = _layer(0.6, 1), _x([0, 0, 0])
    expected = nn.functional.batch_norm(x, None, None, layer.weight, layer.bias, True)
    torch.testing.assert_close(layer(x, 0), expected, **EXACT)


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0])
def test_the_gradient_of_alpha_is_there_at_both_ends(alpha: float) -> None:
    """Against a difference within the interval: one-sided at its ends."""
    domains, x, step = torch.tensor([0, 1, 1, 0]), _x([0, 1, 1, 0]), 1e-6
    target = _randn(4, C, 3, 4, seed=8)

    def loss(value: float) -> Tensor:
        return (_layer(value)(x, domains) * target).sum()

    layer = _layer(alpha)
    (layer(x, domains) * target).sum().backward()
    inner = -step if alpha == 1 else step
    slope = (loss(alpha + inner) - loss(alpha)) / inner
    assert layer.alpha.grad is not None
    torch.testing.assert_close(layer.alpha.grad, slope, rtol=1e-4, atol=1e-4)
    assert layer.alpha.grad.abs() > 0.1


@pytest.mark.parametrize(("value", "counts_as"), [(1.2, 1.0), (0.3, 0.5)])
def test_what_has_overshot_counts_as_the_end_and_is_led_back(
    value: float, counts_as: float
) -> None:
    domains, x = torch.tensor([0, 1, 1, 0]), _x([0, 1, 1, 0])
    over, end = _layer(), _layer(counts_as)
    with torch.no_grad():
        over.alpha.fill_(value)
    assert torch.equal(over.share, end.share)
    torch.testing.assert_close(over(x, domains), end(x, domains), rtol=0, atol=0)
    grads = []
    for sign in (1, -1):
        over.alpha.grad = None
        (sign * over(x, domains) * _randn(4, C, 3, 4, seed=8)).sum().backward()
        assert over.alpha.grad is not None
        grads.append(float(over.alpha.grad))
    back = [grad for grad in grads if grad != 0]
    assert len(back) == 1
    assert (back[0] > 0) == (value > 1)  # a step against the gradient leads inside


def test_convert_in_and_out() -> None:
    plain = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C), nn.ReLU()).double()
    plain(_randn(4, 3, 5, 5))
    keys = list(plain.state_dict())
    x = _randn(2, 3, 5, 5, seed=1)
    expected = plain.eval()(x)
    model = convert_norm(plain, "autodial", num_domains=2, alpha=0.6)
    assert sorted(model.state_dict()) == sorted([*keys, "1.alpha"])
    assert torch.equal(model[1].running_var, plain[1].running_var.expand(2, C))
    torch.testing.assert_close(model[2](model[1](model[0](x), 1)), expected, **EXACT)
    with convert_norm_(plain, "autodial", num_domains=2) as conversion:
        assert type(plain[1]) is AutoDIAL
        assert conversion.report[0].note == ""
    assert type(plain[1]) is nn.BatchNorm2d
    assert torch.equal(plain(x), expected)


@pytest.mark.parametrize("alpha", [0.4, 1.1, -1.0])
def test_an_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(InputError, match=f"alpha {alpha}: must be within 0.5 and 1"):
        AutoDIAL(C, 2, alpha=alpha)
