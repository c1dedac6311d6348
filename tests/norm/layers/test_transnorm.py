"""TransNorm against the paper's formulas, and the constants of its gain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.convert.converter import convert_norm
from normapps.norm.layers.domain import DomainNorm
from normapps.norm.layers.transnorm import TransNorm

C = 5
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _x(domains: list[int], seed: int = 0) -> Tensor:
    """Channels whose domains differ the more, the later they come."""
    shift = torch.tensor(domains, dtype=torch.float64).view(-1, 1, 1, 1)
    return _randn(len(domains), C, 3, 4, seed=seed) + shift * torch.arange(C).view(1, -1, 1, 1)


def _layer(num_domains: int = 2) -> TransNorm:
    made = TransNorm(C, num_domains, dtype=torch.float64)
    with torch.no_grad():
        for seed, each in enumerate((made.weight, made.bias)):
            each.copy_(_randn(C, seed=seed + 20) + 1)
        made.running_mean.copy_(_randn(num_domains, C, seed=30) * 2)
        made.running_var.copy_(_randn(num_domains, C, seed=31).exp())
    return made


def _bank(layer: TransNorm) -> DomainNorm:
    """The same layer without a gain."""
    options = {"share_affine": True, "affine": layer.affine, "dtype": torch.float64}
    bank = DomainNorm(C, layer.num_domains, **options)
    bank.load_state_dict(layer.state_dict())
    return bank.train(layer.training)


def _gain(means: Tensor, variances: Tensor, eps: float = 1e-5) -> Tensor:
    """The paper's steps for two domains, channel by channel: (1, C, 1, 1)."""
    closeness = []
    for c in range(C):
        ratios = [float(means[k, c]) / (float(variances[k, c]) + eps) ** 0.5 for k in range(2)]
        closeness.append(1 / (1 + abs(ratios[0] - ratios[1])))
    alpha = [C * each / sum(closeness) for each in closeness]
    return torch.tensor([1 + each for each in alpha], dtype=torch.float64).view(1, C, 1, 1)


def test_a_batch_of_two_domains() -> None:
    domains = torch.tensor([0, 1, 1, 0, 1])
    layer, x = _layer(), _x(domains.tolist())
    parts = [x[domains == k] for k in range(2)]
    means = torch.stack([part.mean((0, 2, 3)) for part in parts])
    variances = torch.stack([part.var((0, 2, 3), unbiased=False) for part in parts])
    expected = _bank(layer)(x, domains) * _gain(means, variances)
    torch.testing.assert_close(layer(x, domains), expected, **EXACT)


def test_at_inference_and_with_an_absent_domain() -> None:
    layer, x = _layer(), _x([1, 1, 1])
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    expected = _bank(layer.eval())(x, 1) * _gain(mean, var)
    torch.testing.assert_close(layer(x, 1), expected, **EXACT)
    torch.testing.assert_close(layer(x, torch.tensor([1, 1, 1])), expected, **EXACT)
    means = torch.stack([mean[0], x.mean((0, 2, 3))])
    variances = torch.stack([var[0], x.var((0, 2, 3), unbiased=False)])
    bank = _bank(layer.train())
    found = layer(x, 1)
    torch.testing.assert_close(found, bank(x, 1) * _gain(means, variances), **EXACT)
    for name, each in bank.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), each, **EXACT)


@pytest.mark.parametrize("num_domains", [1, 2, 3])
def test_equal_domains_get_a_gain_of_2_exactly(num_domains: int) -> None:
    layer = _layer(num_domains)
    layer.running_mean.copy_(layer.running_mean[:1].expand(num_domains, C))
    layer.running_var.copy_(layer.running_var[:1].expand(num_domains, C))
    x = _x([0, 0])
    assert torch.equal(layer.gain(layer.population()), torch.full((C,), 2.0).double())
    expected = 2 * _bank(layer.eval())(x, 0)
    torch.testing.assert_close(layer(x, 0), expected, **EXACT)


def test_the_mean_gain_is_2_and_the_channels_that_agree_get_more() -> None:
    domains = torch.tensor([0, 1, 0, 1])
    layer, x = _layer(), _x([0, 1, 0, 1])
    ratio = layer(x, domains) / _bank(layer)(x, domains)
    gain = ratio.mean((0, 2, 3))
    torch.testing.assert_close(gain.mean(), torch.tensor(2.0).double())
    assert (gain[:-1] > gain[1:]).all()
    assert (gain > 1).all()


def test_of_three_domains_the_mean_distance_of_the_pairs_counts() -> None:
    layer = _layer(3)
    ratio = layer.running_mean / (layer.running_var + layer.eps).sqrt()
    pairs = [(ratio[a] - ratio[b]).abs() for a, b in ((0, 1), (0, 2), (1, 2))]
    closeness = 1 / (1 + sum(pairs) / 3)
    expected = 1 + C * closeness / closeness.sum()
    torch.testing.assert_close(layer.gain(layer.population()), expected, **EXACT)


def test_the_gain_is_a_constant_to_the_gradient() -> None:
    domains = torch.tensor([0, 1, 1, 0])
    layer, target = _layer(), _randn(4, C, 3, 4, seed=8)
    grads = []
    for constant in (False, True):
        x = _x([0, 1, 1, 0]).requires_grad_()
        if constant:
            gain = layer(x, domains).detach() / _bank(layer)(x, domains).detach()
            y = _bank(layer)(x, domains) * gain
        else:
            y = layer(x, domains)
        (y * target).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-7, atol=1e-7)


def test_without_a_scale_there_is_a_gain_but_no_branch() -> None:
    layer, x = TransNorm(C, 2, affine=False, dtype=torch.float64).eval(), _x([0, 0])
    layer.running_mean[0] += 1
    number, tensor = layer(x, 0), layer(x, torch.tensor([0, 0]))
    torch.testing.assert_close(number, tensor, **EXACT)
    gain = layer.gain(layer.population()).view(1, C, 1, 1)
    torch.testing.assert_close(number, _bank(layer)(x, 0) * gain, **EXACT)
    with pytest.raises(InputError, match=r"TransNorm without a scale \(affine=False\)"):
        layer.branch(0)
    assert layer.branch(0, settled=False).weight is None


def test_without_a_bias() -> None:
    layer, x = TransNorm(C, 2, bias=False, dtype=torch.float64).eval(), _x([0, 0])
    branch = layer.branch(0)
    assert branch.bias is None
    assert torch.equal(branch(x), layer(x, 0))


def test_convert_in_and_out() -> None:
    plain = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C)).double()
    plain(_randn(4, 3, 5, 5))
    x = _randn(2, 3, 5, 5, seed=1)
    expected = plain.eval()(x)
    model = convert_norm(plain, "transnorm", num_domains=2)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model[1].weight.shape == (C,)
    torch.testing.assert_close(model[1](model[0](x), 1), 2 * expected, **EXACT)
    model[1].weight.data /= 2
    model[1].bias.data /= 2
    torch.testing.assert_close(model[1](model[0](x), 0), expected, **EXACT)
