"""The shipped architecture: its budget, its invariances, its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from normapps.models.adain_tiny import RECEPTIVE_FIELD, AdainTiny, moments


@pytest.fixture(scope="module")
def network() -> AdainTiny:
    torch.manual_seed(0)
    return AdainTiny().eval()


def test_it_keeps_to_its_budget(network: AdainTiny) -> None:
    assert sum(p.numel() for p in network.parameters()) <= 600_000
    image = torch.rand(1, 3, 256, 256)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = network.encode(image)
        network.decode(features, moments(features))
    assert counter.get_total_flops() / 2 / 256**2 <= 16_000


def test_features_are_at_a_quarter_and_an_eighth(network: AdainTiny) -> None:
    fine, coarse = network.encode(torch.rand(2, 3, 32, 48))
    assert fine.shape == (2, 48, 8, 12)
    assert coarse.shape == (2, 72, 4, 6)
    assert network.decode((fine, coarse), moments((fine, coarse))).shape == (2, 3, 32, 48)


def test_no_cell_looks_further_than_it_says(network: AdainTiny) -> None:
    """The gradient of one cell, with moments held fixed, is 0 beyond the receptive field."""
    start = RECEPTIVE_FIELD + 32
    image = torch.rand(1, 3, 2 * start + 8, 2 * start + 8, requires_grad=True)
    features = network.encode(image)
    fixed = moments([x.detach() for x in features])
    cell = network.decode(features, fixed, fixed)[..., start : start + 8, start : start + 8]
    cell.square().sum().backward()
    assert image.grad is not None
    for seen in image.grad.abs().sum((0, 1)).nonzero(as_tuple=True):
        reach = max(start - int(seen.min()), int(seen.max()) - (start + 7))
        assert RECEPTIVE_FIELD - 8 < reach <= RECEPTIVE_FIELD


def test_it_starts_without_a_lattice(network: AdainTiny) -> None:
    """ICNR: before training, a flat picture stays flat."""
    flat = torch.full((1, 3, 32, 32), 0.3)
    features = network.encode(flat)
    out = network.decode(features, moments(features))
    assert out.std((2, 3)).max() < 1e-6


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=8, hidden=4)
    torch.nn.init.normal_(network.modulation.heads.weight)
    stylized, same = network(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))
    assert stylized.shape == (2, 3, 32, 32)
    assert same.shape == (1, 3, 32, 32)
    (stylized.square().sum() + same.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_half_the_precision_runs_under_autocast(network: AdainTiny) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        features = network.encode(torch.rand(1, 3, 32, 32))
        assert features[0].dtype == torch.bfloat16
        assert moments(features)[0].mean.dtype == torch.float32
        assert network.decode(features, moments(features)).isfinite().all()
