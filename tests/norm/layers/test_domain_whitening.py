"""Domain-specific whitening against a loop over domains and groups in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.convert.converter import convert_norm
from normapps.norm.layers.domain import DomainNorm
from normapps.norm.layers.domain_whitening import DomainWhitening
from normapps.norm.layers.whitening import CholeskyNorm

C, D, K = 8, 4, 3
EXACT = {"rtol": 1e-8, "atol": 1e-8}


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _x(domains: list[int], seed: int = 0, channels: int = C) -> Tensor:
    """Correlated channels, in each domain differently."""
    where = torch.tensor(domains).clamp_min(0)
    turn = torch.eye(channels) + 0.5 * _randn(K, channels, channels, seed=50)
    x = _randn(len(domains), channels, 3, 4, seed=seed) + where.view(-1, 1, 1, 1)
    return torch.einsum("ndc,nc...->nd...", turn.double()[where], x)


def _layer(**options: object) -> DomainWhitening:
    made = DomainWhitening(C, K, dtype=torch.float64, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for seed, each in enumerate((made.weight, made.bias)):
            each.copy_(_randn(C, seed=seed + 20) + 1)
        made.running_mean.copy_(_randn(K, C, seed=30))
        root = _randn(*made.running_cov.shape, seed=31)
        made.running_cov.copy_(root @ root.mT + 0.1 * torch.eye(made.group_size))
    return made


def _moments(x: Tensor, size: int = D) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariances (C/d, d, d) of samples, by their definition."""
    flat = x.movedim(1, 0).flatten(1)
    mean = flat.mean(1)
    groups = (flat - mean[:, None]).view(-1, size, flat.shape[1])
    return mean, torch.stack([g @ g.t() / flat.shape[1] for g in groups])


def _whitened(x: Tensor, mean: Tensor, cov: Tensor, layer: DomainWhitening) -> Tensor:
    y, d = torch.empty_like(x), layer.group_size
    for g, sigma in enumerate(cov):
        part = slice(g * d, (g + 1) * d)
        shrunk = (1 - layer.eps) * sigma + layer.eps * torch.eye(d, dtype=x.dtype)
        matrix = torch.linalg.inv(torch.linalg.cholesky(shrunk))
        centred = x[:, part] - mean[part].view(1, -1, 1, 1)
        y[:, part] = torch.einsum("dc,nc...->nd...", matrix, centred)
    return y * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("eps", [1e-3, 0.2])
def test_a_batch_of_several_domains(eps: float) -> None:
    domains = torch.tensor([0, 2, 1, 2, 0, 0])
    layer, x = _layer(eps=eps), _x(domains.tolist())
    before = layer.running_mean.clone(), layer.running_cov.clone()
    y = layer(x, domains)
    for domain in range(K):
        mine = x[domains == domain]
        mean, cov = _moments(mine)
        torch.testing.assert_close(y[domains == domain], _whitened(mine, mean, cov, layer), **EXACT)
        running = 0.9 * before[0][domain] + 0.1 * mean, 0.9 * before[1][domain] + 0.1 * cov
        torch.testing.assert_close(layer.running_mean[domain], running[0], **EXACT)
        torch.testing.assert_close(layer.running_cov[domain], running[1], **EXACT)


def test_inference() -> None:
    domains = torch.tensor([0, 2, 1, 2])
    layer, x = _layer().eval(), _x(domains.tolist())
    y = layer(x, domains)
    for n, domain in enumerate(domains.tolist()):
        moments = layer.running_mean[domain], layer.running_cov[domain]
        expected = _whitened(x[n : n + 1], *moments, layer)
        torch.testing.assert_close(y[n : n + 1], expected, **EXACT)
        torch.testing.assert_close(layer(x[n : n + 1], domain), expected, **EXACT)


def test_what_comes_out_is_white_in_each_domain() -> None:
    domains = torch.tensor([0, 1, 0, 1, 0, 1])
    layer, x = DomainWhitening(C, 2, eps=0, dtype=torch.float64), _x(domains.tolist())
    y = layer(x, domains)
    for domain in range(2):
        mean, cov = _moments(y[domains == domain])
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-6)
        torch.testing.assert_close(cov, torch.eye(D).double().expand(2, D, D), rtol=0, atol=1e-6)


def test_groups_of_one_channel_are_a_bank_of_shared_scales() -> None:
    """Biased running variances, as of whitening, set in both."""
    layer, domains = _layer(group_size=1, eps=1e-12), torch.tensor([0, 2, 1, 2, -1])
    bank = DomainNorm(C, K, eps=1e-12, share_affine=True, dtype=torch.float64)
    state = layer.state_dict()
    state["running_var"] = state.pop("running_cov").view(K, C)
    bank.load_state_dict(state)
    x = _x([0, 2, 1, 2, 0])
    for condition in (domains, 1, -1):
        found = layer.eval()(x, condition)
        torch.testing.assert_close(found, bank.eval()(x, condition), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        layer.train()(x, domains), bank.train()(x, domains), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(layer.running_mean, bank.running_mean)


def test_unknown_domains_get_the_full_moments_of_the_even_mixture() -> None:
    layer, x = _layer().eval(), _x([0, 1])
    mean = layer.running_mean.mean(0)
    gaps = (layer.running_mean - mean).view(K, 2, D)
    cov = (layer.running_cov + torch.einsum("kgi,kgj->kgij", gaps, gaps)).mean(0)
    torch.testing.assert_close(layer(x, -1), _whitened(x, mean, cov, layer), **EXACT)


def test_soft_membership_by_its_definition() -> None:
    x, weights = _x([0, 1, 2, 0]), _randn(4, K, seed=3).softmax(1)
    layer = _layer()
    found = layer(x, weights)
    flat = x.flatten(2)
    means, covs = [], []
    for k in range(K):
        share = (weights[:, k] / weights[:, k].sum() / 12).view(-1, 1, 1)
        means.append((share * flat).sum((0, 2)))
        gaps = (flat - means[k].view(1, -1, 1)).view(4, 2, D, 12)
        covs.append(torch.einsum("nabc,ngac,ngbc->gab", share.unsqueeze(1), gaps, gaps))
    mean, cov = torch.stack(means), torch.stack(covs)
    for n in range(4):
        centre = weights[n] @ mean
        gaps = (mean - centre).view(K, 2, D)
        spread = torch.einsum("k,kgij->gij", weights[n], cov)
        spread = spread + torch.einsum("k,kgi,kgj->gij", weights[n], gaps, gaps)
        expected = _whitened(x[n : n + 1], centre, spread, layer)
        torch.testing.assert_close(found[n : n + 1], expected, **EXACT)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_gradcheck(training: bool, soft: bool) -> None:
    layer = _layer().train(training)
    x = _x([0, 1, 0], channels=C)[..., :1].requires_grad_()
    given = _randn(3, K, seed=5).abs() + 0.1 if soft else torch.tensor([0, 0, -1])
    values = [layer.weight, layer.bias, *([given.requires_grad_()] if soft else [])]

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        state = {"weight": values[0], "bias": values[1]}
        state |= {name: each.clone() for name, each in layer.named_buffers()}
        condition = values[2] if soft else given
        y: Tensor = torch.func.functional_call(layer, state, (x, condition))
        return y

    assert torch.autograd.gradcheck(forward, (x, *values), atol=1e-4)


def test_a_domain_of_too_few_values_is_whitened_by_its_population() -> None:
    """Four values a channel have no covariance of full rank in groups of four."""
    layer, domains = _layer(), torch.tensor([0, 1])
    x = _x([0, 1])[..., :2, :2]
    kept = layer.running_cov.clone()
    y = layer(x, domains)
    expected = _whitened(x[:1], layer.running_mean[0], kept[0], layer)
    torch.testing.assert_close(y[:1], expected, **EXACT)
    assert torch.equal(layer.running_cov, kept)
    assert layer.num_batches_tracked.tolist() == [0, 0, 0]
    assert not torch.equal(layer(_x([0, 1]), domains)[:1, :, :2, :2], expected)


def test_running_moments_stay_precise_in_a_half_network() -> None:
    layer, x = _layer().to(torch.bfloat16), _x([0, 1, 2])
    assert layer.running_cov.dtype == torch.float32
    assert layer.weight.dtype == torch.bfloat16
    assert layer(x.bfloat16(), torch.arange(3)).dtype == torch.bfloat16
    assert DomainWhitening(C, K, dtype=torch.float16).running_mean.dtype == torch.float32


def test_the_size_of_the_groups() -> None:
    sizes = [DomainWhitening(c, 2, group_size=size).group_size for c, size in ((6, 4), (8, None))]
    assert sizes == [3, 8]
    with pytest.raises(InputError, match="a group size of 0"):
        DomainWhitening(C, 2, group_size=0)
    with pytest.raises(InputError, match=r"eps 1\.5"):
        DomainWhitening(C, 2, eps=1.5)


@pytest.mark.parametrize("old", [nn.BatchNorm2d, DomainNorm, CholeskyNorm])
def test_converted_from(old: type[nn.Module]) -> None:
    """A variance becomes the diagonal of every domain, a bank's rows stay apart, Σ stays Σ."""
    options = {"num_domains": K} if old is DomainNorm else {}
    options |= {"group_size": D} if old is CholeskyNorm else {}
    given = old(C, **options).double()
    for name, each in given.named_buffers():
        if each.is_floating_point():
            each.copy_(_randn(*each.shape, seed=3).abs() + 1 if name[-3:] != "cov" else _cov())
    new = convert_norm(nn.Sequential(given), "domain_whitening", match="all", num_domains=K)[0]
    assert torch.equal(new.running_mean, given.running_mean.expand(K, C))
    if old is CholeskyNorm:
        assert torch.equal(new.running_cov, given.running_cov.expand(K, 2, D, D))
    else:
        expected = given.running_var.expand(K, C).reshape(K, 2, D).diag_embed()
        assert torch.equal(new.running_cov, expected)
    if old is DomainNorm:
        back = convert_norm(nn.Sequential(new), "domain", match="all", num_domains=K)[0]
        assert torch.equal(back.running_var, given.running_var)


def _cov() -> Tensor:
    root = _randn(2, D, D, seed=9)
    return root @ root.mT
