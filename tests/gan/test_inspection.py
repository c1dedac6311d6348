"""Norms of a discriminator's layers: SVD, a convolution written out as a matrix, stale vectors."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normapps.gan.inspection import Row, inspect_network, inspect_run
from normapps.gan.normalization import normalize_discriminator_
from normapps.gan.sample_options import InspectOptions
from normapps.models.folder import build

sys.path.insert(0, str(Path(__file__).parent))
from gan_runs import make_run


def _network(**changes: Any) -> Any:
    arguments = {"size": 28, "channels": 1, "width": 4, "num_classes": 3} | changes
    return build("sngan-discriminator", arguments, seed=0)


def _by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.layer: row for row in rows}


def _norm_of_convolution(weight: Tensor, size: int) -> float:
    """The largest singular value of the convolution, its matrix column by column."""
    weight = weight.detach().double()
    basis = torch.eye(weight.shape[1] * size**2, dtype=torch.float64)
    images = basis.reshape(-1, weight.shape[1], size, size)
    out = F.conv2d(images, weight, padding=weight.shape[-1] // 2).flatten(1)
    return float(torch.linalg.matrix_norm(out, 2))


def test_every_layer_has_its_norms() -> None:
    network = normalize_discriminator_(_network(), "sn", size=28)
    rows = _by_name(inspect_network(network))
    assert list(rows)[:3] == ["blocks.0.conv1", "blocks.0.conv2", "blocks.0.shortcut"]
    assert [rows[name].size for name in ("blocks.0.conv2", "blocks.1.conv1", "blocks.3.conv2")] == [
        28,
        14,
        7,
    ]
    for name in ("blocks.2.conv1", "blocks.3.conv2"):
        weight, row = network.get_submodule(name).parametrizations.weight.original, rows[name]
        matrix = float(torch.linalg.matrix_norm(weight.detach().double().flatten(1), 2))
        convolution = _norm_of_convolution(weight, 7)
        assert row.reshaped == pytest.approx(matrix, rel=1e-6)
        assert row.exact == pytest.approx(matrix, rel=1e-4)
        assert row.estimate == pytest.approx(matrix, rel=1e-3)
        assert row.convolution == pytest.approx(convolution, rel=1e-3)
        assert row.effective == pytest.approx(convolution / matrix, rel=1e-3)
        assert row.convolution <= row.bound * (1 + 1e-6)
        assert row.sigma == "reshape"
        assert not row.is_stale
    assert rows["linear"].size == 0
    assert rows["embedding"].effective == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("kind", ["none", "ws", "gn"])
def test_other_discriminators_have_norms_but_no_estimate(kind: str) -> None:
    network = normalize_discriminator_(_network(), kind, size=28)
    rows = _by_name(inspect_network(network))
    name = "network.blocks.3.conv2" if kind == "gn" else "blocks.3.conv2"
    row = rows[name]
    convolution = _norm_of_convolution(network.get_submodule(name).weight, 7)
    assert row.convolution == row.effective == pytest.approx(convolution, rel=1e-3)
    assert row.sigma == ""
    assert math.isnan(row.estimate)
    assert not row.is_stale


def test_vectors_that_a_changed_weight_has_left_are_stale() -> None:
    network = normalize_discriminator_(_network(), "sn", size=28).eval()
    network.blocks[1].conv1.parametrizations.weight[0]._u.copy_(F.normalize(torch.ones(4), dim=0))
    rows = inspect_network(network)
    assert [row.layer for row in rows if row.is_stale] == ["blocks.1.conv1"]
    row = _by_name(rows)["blocks.1.conv1"]
    assert row.estimate < 0.98 * row.exact
    # inference measures such a weight anew
    assert row.effective == pytest.approx(row.convolution / row.exact, rel=1e-3)


@pytest.mark.parametrize(("share", "is_stale"), [(0.95, False), (0.85, True)])
def test_vectors_that_lag_as_in_training_are_not_stale(share: float, is_stale: bool) -> None:
    network = normalize_discriminator_(_network(), "sn", size=28).eval()
    layer = network.blocks[1].conv1.parametrizations.weight
    left, _, right = torch.linalg.svd(layer.original.detach().flatten(1))
    # uᵀWv is `share` of the norm
    layer[0]._u.copy_(share * left[:, 0] + math.sqrt(1 - share**2) * left[:, 1])
    layer[0]._v.copy_(right[0])
    row = _by_name(inspect_network(network))["blocks.1.conv1"]
    assert row.estimate == pytest.approx(share * row.exact, rel=1e-4)
    assert row.is_stale is is_stale


def test_inspecting_changes_nothing() -> None:
    network = normalize_discriminator_(_network(), "sn", size=28).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    inspect_network(network)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert network.training
    assert not any(each._forward_pre_hooks for each in network.modules())


@pytest.mark.parametrize("sigma", ["conv", "bound"])
def test_a_run_shows_its_checkpoint(tmp_path: Path, sigma: str) -> None:
    run = make_run(tmp_path / "run", sigma=sigma)
    told: list[tuple[str, int]] = []
    rows = inspect_run(run, InspectOptions(generator=True), lambda *each: told.append(each))
    assert told == [(row.layer, len(rows)) for row in rows]
    row = _by_name(rows)["blocks.0.conv2"]
    assert row.sigma == sigma
    assert row.exact == pytest.approx(row.convolution if sigma == "conv" else row.bound, rel=1e-3)
    generator = [each for each in rows if each.layer.startswith("generator.")]
    assert {each.sigma for each in generator} == {""}
    assert _by_name(rows)["generator.blocks.1.conv1"].size == 14
