"""What the sparse training is for: as many zeros as the plan of the cut takes channels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from normapps.compress.options import CompressOptions
from normapps.compress.sparsity import Zeros, penalty_of, zeros_of
from normapps.errors import InputError
from normapps.models.load import OpenedModel
from normapps.models.preprocessing import Preprocessing


class Depthwise(nn.Sequential):
    """An inverted bottleneck: its multiplications are about linear in its inner channels."""

    def __init__(self) -> None:
        inner: list[nn.Module] = []
        for layer in (nn.Conv2d(2, 40, 1), nn.Conv2d(40, 40, 3, padding=1, groups=40)):
            inner += [layer, nn.BatchNorm2d(40), nn.ReLU()]
        super().__init__(*inner, nn.Conv2d(40, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def opened(scales: torch.Tensor) -> OpenedModel:
    model = Depthwise().eval()
    for norm in (model[1], model[4]):
        assert isinstance(norm, nn.BatchNorm2d)
        norm.weight.data.copy_(scales)
    shape = Preprocessing(size=(8, 8), resize=(8, 8), channels=2, mean=(0.5,) * 2, std=(0.5,) * 2)
    return OpenedModel(model, shape, {}, False, "depthwise", "weights")


@pytest.mark.parametrize("share", [0.8, 0.6, 0.4])
def test_of_depthwise_layers_as_many_channels_go_as_multiplications(share: float) -> None:
    """√share, which is right for plain convolutions, would be far too little here."""
    found = penalty_of(CompressOptions(target_flops=share), opened(torch.rand(40) + 0.1), 4)
    assert found == {"target_sparsity": pytest.approx(1 - share, abs=1 / 40)}


def test_scales_that_were_never_trained_are_no_obstacle() -> None:
    found = penalty_of(CompressOptions(target_flops=0.6), opened(torch.ones(40)), 4)
    assert found == {"target_sparsity": pytest.approx(0.4, abs=1 / 40)}


def test_what_is_given_counts() -> None:
    net = opened(torch.rand(40) + 0.1)
    assert penalty_of(CompressOptions(target_sparsity=0.2), net, 4) == {"target_sparsity": 0.2}
    assert penalty_of(CompressOptions(strength=1e-3), net, 4) == {"strength": 1e-3}
    assert penalty_of(CompressOptions(ratio=0.25), net, 4) == {"target_sparsity": 0.25}
    assert penalty_of(CompressOptions(target_flops=1.0), net, 4) == {"target_sparsity": 0.01}
    with pytest.raises(InputError, match=r"--target-flops 0\.01: cannot be met; the nearest is"):
        penalty_of(CompressOptions(target_flops=0.01), net, 4)


def test_what_a_training_came_to_is_read_from_its_folder(tmp_path: Path) -> None:
    assert zeros_of(tmp_path) is None
    (tmp_path / "report.json").write_text(json.dumps({"sparsity": {"after": {"zeros": 0.25}}}))
    (tmp_path / "options.json").write_text(json.dumps({"target_sparsity": 0.3}))
    assert zeros_of(tmp_path) == Zeros(0.3, 0.25)
    (tmp_path / "options.json").write_text(json.dumps({"target_sparsity": None}))
    assert zeros_of(tmp_path) is None
