"""Domain models of AutoDIAL, TransNorm and domain-specific whitening: out, in and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401  the guard before timm
from normapps.errors import InputError
from normapps.models.folder import load_model, save_model
from normapps.norm.convert.converter import convert_norm
from normapps.norm.domain import KINDS, DomainModel
from normapps.norm.layers.whitening import CholeskyNorm
from normapps.norm.population.measuring import measure
from normapps.norm.population.statistics import Population

COUPLED = KINDS[1:3]
every_kind = pytest.mark.parametrize("kind", KINDS[1:])
coupled_kinds = pytest.mark.parametrize("kind", COUPLED)
MIXED = torch.tensor([0, 1, 1, 0, 0, 1])


class Tiny(nn.Module):
    """Two convolutions with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(self.stem(x)).mean((2, 3)))
        return logits


def _timm() -> nn.Module:
    import timm

    return timm.create_model("test_resnet", num_classes=3)


def _images(seed: int = 0, channels: int = 2, size: int = 8) -> Tensor:
    """Six pictures, those of domain 1 brighter and of more contrast."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, channels, size, size, generator=generator)
    return x * (1 + MIXED.view(-1, 1, 1, 1)) + 2 * MIXED.view(-1, 1, 1, 1)


def _trained(kind: str, plain: nn.Module | None = None, **options: Any) -> DomainModel:
    """A model whose domains differ, after a few steps on mixed batches and batches of one."""
    torch.manual_seed(0)
    model = DomainModel(Tiny() if plain is None else plain, 2, kind=kind, **options)
    channels, size = (2, 8) if plain is None else (3, 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(3):
        optimizer.zero_grad()
        x = _images(step, channels, size)
        (model(x, MIXED) + model(x * 2, 1)).square().mean().backward()
        optimizer.step()
    return model.eval()


@every_kind
def test_an_exported_network_has_the_logits_of_its_domain(kind: str) -> None:
    """To the bit, by the original's classes and keys, or by our whitening layer."""
    model, x = _trained(kind, _timm()), _images(5, 3, 64)
    plain = _timm()
    for domain in (0, 1):
        network = model.export(domain)
        assert torch.equal(network(x), model(x, domain))
        if kind != "domain_whitening":
            assert [type(a) for a in network.modules()] == [type(a) for a in plain.modules()]
            plain.load_state_dict(network.state_dict(), strict=True)
            assert torch.equal(plain.eval()(x), model(x, domain))
    assert not torch.allclose(model(x, 0), model(x, 1))
    mixed = model(x, MIXED)
    expected = torch.where(MIXED[:, None] == 1, model(x, 1), model(x, 0))
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)


def test_whitening_goes_through_a_model_folder(tmp_path: Path) -> None:
    model, x = _trained("domain_whitening", _timm(), group_size=8, eps=0.01), _images(5, 3, 64)
    network = model.export(1)
    assert {type(layer) for layer in network.modules()} >= {CholeskyNorm}
    base = {"builder": "timm", "arguments": {"name": "test_resnet", "num_classes": 3}}
    arguments = {"base": base, "steps": model.steps()}
    save_model(tmp_path / "out", network, builder="converted", arguments=arguments)
    assert torch.equal(load_model(tmp_path / "out")(x), model(x, 1))
    assert all(_trained(kind).steps() == [] for kind in COUPLED)


@every_kind
def test_a_network_of_our_layers_is_exported_too(kind: str) -> None:
    model = DomainModel(convert_norm(Tiny(), "batch"), 2, kind=kind).eval()
    x = _images()
    assert torch.equal(model.export(1)(x), model(x, 1))


@coupled_kinds
def test_without_a_scale(kind: str) -> None:
    plain = Tiny()
    plain.stem[1] = nn.BatchNorm2d(4, affine=False)
    model, x = DomainModel(plain, 2, kind=kind), _images()
    model(x, MIXED)
    model.eval()
    if kind == "transnorm":
        with pytest.raises(InputError, match=r"TransNorm without a scale \(affine=False\)"):
            model.export(0)
        return
    network = model.export(0)
    assert torch.equal(network(x), model(x, 0))
    plain.load_state_dict(network.state_dict(), strict=True)


@every_kind
def test_the_state_of_a_domain_goes_into_another_model(kind: str) -> None:
    model, x = _trained(kind), _images(7)
    other = DomainModel(Tiny(), 2, kind=kind).eval()
    other.load_state_dict(model.state_dict())
    before = other(x, 0), other(x, 1)
    state = {name: value.clone() for name, value in model.state_of(1).items()}
    for name in ("stem.1", "block.1"):
        state[f"{name}.running_mean"] += 1
    other.load_domain(1, state)
    assert not torch.equal(other(x, 1), before[1])
    other.load_domain(1, model.state_of(1))
    assert torch.equal(other(x, 1), before[1])
    assert torch.equal(other(x, 0), before[0])


@every_kind
def test_populations_go_in_and_come_out(kind: str) -> None:
    """What `population` returns is the domain's own: loading it changes nothing."""
    model, x = _trained(kind), _images(7)
    before = model(x, 0), model(x, 1)
    model.load_domain(1, model.population(1))
    assert all(torch.equal(model(x, d), before[d]) for d in (0, 1))
    own = model.population(1).layers["stem.1"]
    torch.testing.assert_close(own.mean.flatten(), model.model.stem[1].running_mean[1])
    found = measure(model.export(1), [x[MIXED == 1]])
    model.load_domain(1, found)
    expected = found.layers["stem.1"]
    features = model.model.stem[0](x[MIXED == 1])
    torch.testing.assert_close(expected.mean.float().flatten(), features.mean((0, 2, 3)))
    held = model.state_of(1)
    torch.testing.assert_close(held["stem.1.running_mean"], expected.mean.float().flatten())
    if kind == "domain_whitening":
        assert expected.cov is not None
        torch.testing.assert_close(held["stem.1.running_cov"], expected.cov.float())
    else:
        unbiased = features.var((0, 2, 3))
        torch.testing.assert_close(held["stem.1.running_var"], unbiased, rtol=1e-4, atol=1e-5)


@every_kind
def test_what_a_population_did_not_reach_stays(kind: str) -> None:
    model = _trained(kind)
    found = model.population(0)
    lacking = {name: value for name, value in found.layers.items() if name != "block.1"}
    part = Population(lacking, found.fingerprint, unreached=("block.1",))
    lacking["stem.1"].mean.add_(1)
    kept = {name: each.clone() for name, each in model.named_buffers()}
    model.load_domain(0, part)
    kept["model.stem.1.running_mean"][0] += 1
    for name, each in model.named_buffers():
        torch.testing.assert_close(each, kept[name], msg=name)


@pytest.mark.parametrize("kind", ["autodial", "domain_whitening"])
def test_a_network_whose_statistics_are_not_a_domains_own_is_refused(kind: str) -> None:
    model = _trained(kind)
    kept = {name: each.clone() for name, each in model.named_buffers()}
    for source in (model.export(1), model.export(1).state_dict()):
        with pytest.raises(InputError, match="takes what state_of returned, or a population"):
            model.load_domain(0, source)
    for name, each in model.named_buffers():
        assert torch.equal(each, kept[name]), name


def test_transnorm_takes_an_exported_networks_statistics() -> None:
    model, x = _trained("transnorm"), _images()
    other = _trained("transnorm")
    other.load_domain(0, other.export(1))
    model.load_domain(0, model.state_of(1))
    assert torch.equal(model(x, 0), other(x, 0))


@coupled_kinds
def test_one_domain_more_would_change_the_others(kind: str) -> None:
    model = _trained(kind)
    kept = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(InputError, match=r"normalizes each domain by the others' .* with 3 domain"):
        model.add_domain(1)
    assert model.num_domains == 2
    for name, each in model.state_dict().items():
        assert torch.equal(each, kept[name]), name


def test_whitening_takes_one_domain_more() -> None:
    model, x = _trained("domain_whitening"), _images()
    before = model(x, 1)
    assert model.add_domain(1) == 2
    assert torch.equal(model(x, 2), before)
    assert torch.equal(model(x, 1), before)


def test_what_a_domain_costs() -> None:
    everything = sum(each.numel() for each in Tiny().parameters())
    costs = {"autodial": (0, 2 * (4 + 4 + 1), everything + 2)}  # and an α a layer
    costs |= {"transnorm": (0, 2 * (4 + 4 + 1), everything)}
    costs |= {"domain_whitening": (0, 2 * (4 + 16 + 1), everything)}
    for kind, cost in costs.items():
        model = DomainModel(Tiny(), 2, kind=kind)
        assert model.cost() == cost
        assert model.parameters_of(1) == {}


def test_starts() -> None:
    """AutoDIAL starts as the network was; TransNorm's gains start as 2."""
    x = _images()
    plain = _trained("autodial").export(0)
    expected = plain(x)
    assert torch.equal(DomainModel(plain, 2, kind="autodial").eval()(x, 1), expected)
    doubled = DomainModel(plain, 2, kind="transnorm").export(1).stem[1]
    assert torch.equal(doubled.weight, 2 * plain.stem[1].weight)
    assert torch.equal(doubled.bias, 2 * plain.stem[1].bias)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "autodail"}, "unknown kind of domain model 'autodail'; did you mean 'autodial'"),
        ({"kind": "transnorm", "alpha": 1.0}, "unknown option of norm 'transnorm' 'alpha'"),
        ({"kind": "autodial", "alpha": 0.2}, r"stem.1: alpha 0.2: must be within 0.5 and 1"),
        ({"kind": "domain_whitening", "eps": 2.0}, r"eps 2.0: the share of the identity"),
    ],
)
def test_a_model_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DomainModel(Tiny(), 2, **options)
