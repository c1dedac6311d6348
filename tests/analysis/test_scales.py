"""The scales of channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normapps.analysis.scales import scales
from normapps.errors import InputError


def test_shares_and_ranges() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(2), nn.BatchNorm2d(3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.005, -0.02, 0.5, -2.0]))
        model[1].weight.copy_(torch.tensor([-0.009, 1.0]))
        model[2].weight.zero_()
    found = scales(model, tau=0.01)
    assert [(row.layer, row.channels, row.small) for row in found.rows] == [
        ("0", 4, 0.25),
        ("1", 2, 0.5),
    ]
    assert found.rows[0].smallest == pytest.approx(0.005)
    assert found.rows[0].largest == pytest.approx(2)
    # both channels below τ of six: the layer that starts at 0 on purpose does not count
    assert found.small == pytest.approx(2 / 6)
    assert found.untouched == ("2",)
    assert found.values == pytest.approx((0.005, 0.02, 0.5, 2.0, 0.009, 1.0))


def test_a_layer_in_two_places_counts_once() -> None:
    layer = nn.BatchNorm2d(4)
    assert len(scales(nn.Sequential(layer, nn.ReLU(), layer)).values) == 4


def test_only_zeros() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    nn.init.zeros_(model[0].weight)
    found = scales(model)
    assert found.rows == ()
    assert found.untouched == ("0",)


def test_no_scale() -> None:
    with pytest.raises(InputError, match="no norm layer has a scale"):
        scales(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)))
