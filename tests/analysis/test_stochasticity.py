"""The disturbance by other inputs of a batch against its definition and the reference at d = 16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_networks import normalized, pictures
from torch import Tensor, nn

from normapps.analysis.stochasticity import OUTPUT, disturbance, stochasticity
from normapps.errors import InputError
from normapps.norm.registry import create_norm


def test_the_definition() -> None:
    outputs = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    delta, share = disturbance(outputs)
    values = outputs.double().numpy().reshape(7, -1)
    middle = values.mean(0)
    wanted = np.mean([np.linalg.norm(each - middle) for each in values])
    assert delta == pytest.approx(wanted, rel=1e-12)
    assert share == pytest.approx(wanted / np.linalg.norm(middle), rel=1e-12)


@pytest.fixture(scope="module")
def correlated() -> Tensor:
    """Gaussian vectors of 16 dimensions, of condition number 200."""
    generator = torch.Generator().manual_seed(3)
    q = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    scale = torch.logspace(0, np.log10(200) / 2, 16)
    return torch.randn(1500, 16, generator=generator) @ (q * scale).T


def _delta(name: str, x: Tensor, size: int, **options: object) -> float:
    layer = create_norm(name, 16, layout="1d", affine=False, **options)
    rows = stochasticity(layer, x, (size,), draws=24, inputs=6)
    return next(row.disturbance for row in rows if row.layer == OUTPUT)


def test_the_order_of_the_reference(correlated: Tensor) -> None:
    # METHODS: BN .59, IterNorm (T = 5) .69, ZCA 1.17, Cholesky 1.44 at B = 64
    batch = _delta("batch", correlated, 64)
    newton = _delta("iternorm", correlated, 64, group_size=16)
    zca = _delta("zca", correlated, 64, group_size=16)
    cholesky = _delta("cholesky", correlated, 64, group_size=16)
    assert batch == pytest.approx(0.59, rel=0.15)
    assert newton == pytest.approx(0.69, rel=0.15)
    assert zca == pytest.approx(1.17, rel=0.15)
    assert batch < newton < zca < cholesky


def test_it_falls_with_the_batch_size(correlated: Tensor) -> None:
    deltas = [_delta("batch", correlated, size) for size in (8, 32, 128)]
    assert deltas == sorted(deltas, reverse=True)
    # the error of a mean falls with the root
    assert deltas[0] / deltas[2] == pytest.approx(4, rel=0.3)


def test_layers_and_output() -> None:
    model = normalized(nn.BatchNorm2d(8)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = stochasticity(model, pictures(12), (2, 8), draws=3)
    assert [(row.layer, row.batch_size) for row in rows] == [
        (OUTPUT, 2),
        ("1", 2),
        (OUTPUT, 8),
        ("1", 8),
    ]
    assert all(row.share > 0 for row in rows)
    assert rows == stochasticity(model, pictures(12), (2, 8), draws=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_statistics_of_the_batch_there_is_none() -> None:
    with pytest.raises(InputError, match="nothing is stochastic"):
        stochasticity(normalized(nn.GroupNorm(2, 8)), pictures(8), (2,))


@pytest.mark.parametrize("size", [1, 9])
def test_sizes_must_fit(size: int) -> None:
    with pytest.raises(InputError, match="2 to 8"):
        stochasticity(normalized(nn.BatchNorm2d(8)), pictures(8), (size,))
