"""The shipped architecture: its budget, its invariances, its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from normapps.models.adain_tiny import RECEPTIVE_FIELD, AdainTiny, moments, numbers_of
from normapps.norm import transfer


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


def _double(network: AdainTiny) -> AdainTiny:
    torch.manual_seed(1)
    torch.nn.init.normal_(network.modulation.heads.weight, std=0.1)
    return network.double()


@pytest.mark.parametrize("method", ["adain", "ot"])
def test_regions_blend_features_and_modulation(method: str) -> None:
    """Against the sums written out: each style's features and modulation times its share."""
    network = _double(AdainTiny(8, 8, 4)).eval()
    image = torch.rand(1, 3, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        features = network.encode(image)
        styles = [moments(network.encode(x), full=True) for x in (image.sqrt(), 1 - image)]
        parts = [moments([x[..., :3] for x in features], full=True), moments(features, full=True)]
        first = torch.rand(1, 1, 12, 16, dtype=torch.float64)
        shares = torch.cat([first, 1 - first], 1)
        coarse_shares = torch.nn.functional.avg_pool2d(shares, 2)
        got = network.decode_regions(features, styles, parts, (shares, coarse_shares), method)
        moved, scales = [], []
        for level, share in enumerate((shares, coarse_shares)):
            each = [
                transfer(features[level], style[level], method, part[level]) * share[:, i : i + 1]
                for i, (style, part) in enumerate(zip(styles, parts, strict=True))
            ]
            moved.append(each[0] + each[1])
        films = [network.modulation(numbers_of(style)) for style in styles]
        for block, share in enumerate((coarse_shares, coarse_shares, shares, shares)):
            scales.append(
                tuple(
                    a[..., None, None] * share[:, :1] + b[..., None, None] * share[:, 1:]
                    for a, b in zip(films[0][block], films[1][block], strict=True)
                )
            )
        want = network.finish(moved[0], moved[1], scales)
    assert (got - want).abs().max() < 1e-5  # features are blended in float32


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_regions_of_one_style_are_that_style(share: float) -> None:
    network = _double(AdainTiny(8, 8, 4)).eval()
    with torch.no_grad():
        features = network.encode(torch.rand(1, 3, 32, 32))
        style, own = moments(network.encode(torch.rand(1, 3, 32, 32))), moments(features)
        maps = [
            torch.tensor([share, 1 - share]).view(1, 2, 1, 1).expand(1, 2, n, n) for n in (8, 4)
        ]
        got = network.decode_regions(features, [style] * 2, [own] * 2, (maps[0], maps[1]))
        assert (got - network.decode(features, style, own)).abs().max() < 1e-5
