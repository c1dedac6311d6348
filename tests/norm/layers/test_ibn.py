"""IBN-a: the first channels are instance norm's, the others batch norm's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.layers.ibn import IBN


def _layer(features: int, seed: int = 0, ratio: float = 0.5) -> tuple[IBN, nn.BatchNorm1d]:
    """A layer and a batch norm of the same state, parameters away from their start."""
    torch.manual_seed(seed)
    theirs = nn.BatchNorm1d(features).double()
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    layer = IBN(features, ratio).double()
    layer.load_state_dict(theirs.state_dict())  # strictly: the keys and shapes are batch norm's
    return layer, theirs


def _input(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, shape[1] + 1).reshape(-1, *[1] * (len(shape) - 2))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + scale


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 4),
    features=st.integers(1, 7),
    ratio=st.floats(0, 1),
    space=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_each_part_is_its_own_norm(
    samples: int, features: int, ratio: float, space: list[int], seed: int
) -> None:
    layer, theirs = _layer(features, seed, ratio)
    x = _input(samples, features, *space, seed=seed)
    k = layer.instance_features
    assert k == int(features * ratio)
    flat = x.flatten(2)
    for training in (True, False):
        layer.train(training)
        theirs.train(training)
        batch = theirs(flat)
        instance = F.instance_norm(flat, weight=theirs.weight, bias=theirs.bias)
        found = layer(x).flatten(2)
        torch.testing.assert_close(found[:, :k], instance[:, :k])
        torch.testing.assert_close(found[:, k:], batch[:, k:])
    for key, value in theirs.state_dict().items():  # the instance channels' population, too
        torch.testing.assert_close(layer.state_dict()[key], value)


def test_half_of_the_channels_by_default() -> None:
    assert IBN(64).instance_features == 32
    assert IBN(7).instance_features == 3
    assert "ratio=0.5" in repr(IBN(7))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_outside_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match=f"IBN ratio {ratio}: must be between 0 and 1"):
        IBN(4, ratio)


def test_one_position_has_no_instance_but_may_have_a_batch() -> None:
    with pytest.raises(InputError, match=r"IBN got \(4, 6\): 1 element"):
        IBN(6).double()(_input(4, 6))
    with pytest.raises(InputError, match=r"IBN got \(1, 6\) in training: 1 sample"):
        IBN(6, ratio=0).double()(_input(1, 6))
    torch.testing.assert_close(
        IBN(6, ratio=0).double()(_input(4, 6)), nn.BatchNorm1d(6).double()(_input(4, 6))
    )
