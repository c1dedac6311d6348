"""A network tried before the work: its failure is one line, its state stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.models.preprocessing import Preprocessing
from normapps.models.trying import try_out

PICTURES = Preprocessing(size=(6, 9), resize=(6, 9), mean=(0.5,) * 3, std=(0.5,) * 3, origin="here")


class Square(nn.Module):
    """Takes square pictures only."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != x.shape[3]:
            raise AssertionError("Input\nis not square. " + "x" * 500)
        return x


def test_what_a_network_returns_of_two_grey_pictures() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)).double().train()
    found = try_out(model, PICTURES, "mine")
    assert found.shape == (2, 4, 6, 9)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert model[0].training
    assert model[0].num_batches_tracked == 0
    # a norm of the batch has two values a channel even where a picture has one
    whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3, track_running_stats=False))
    assert try_out(whole, PICTURES, "mine").shape == (2, 3, 1, 1)


def test_a_failure_is_one_line() -> None:
    with pytest.raises(InputError) as caught:
        try_out(Square(), PICTURES, "mine")
    line = str(caught.value)
    assert line.startswith("mine: fails on pictures of 9×6 (AssertionError: Input is not square. x")
    assert line.endswith("…); give the --size that it takes, or another model")
    assert len(line) < 300
    assert isinstance(caught.value.__cause__, AssertionError)
