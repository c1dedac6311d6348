from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.slim.recalibration import recalibrate_


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)),
    ).eval()


def pictures() -> Tensor:
    return 1 + 2 * torch.randn(40, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def test_the_layers_get_the_statistics_of_the_pictures() -> None:
    model, x = network(), pictures()
    recalibrate_(model, [x])
    for layer, last in ((1, 1), (4, 4)):
        # by hand, in float64: everything before normalizes with its own batch, as is measured
        hidden = x.double()
        for part in copy.deepcopy(model).double()[:last]:
            if isinstance(part, nn.BatchNorm2d):
                mean, var = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), correction=0)
                scaled = (hidden - mean.view(-1, 1, 1)) / (var + part.eps).sqrt().view(-1, 1, 1)
                hidden = scaled * part.weight.view(-1, 1, 1) + part.bias.view(-1, 1, 1)
            else:
                hidden = part(hidden)
        norm = model[layer]
        assert isinstance(norm, nn.BatchNorm2d)
        torch.testing.assert_close(norm.running_mean, hidden.mean((0, 2, 3)).float())
        torch.testing.assert_close(norm.running_var, hidden.var((0, 2, 3)).float())


def test_it_says_how_far_the_statistics_moved() -> None:
    model, x = network(), pictures()
    recalibrate_(model, [x])
    again = recalibrate_(model, x.split(40), mode="fixed")
    assert max(again.moved.values()) < 1e-4
    assert again.pictures == 40
    with torch.no_grad():
        norm = model[4]
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        norm.running_var.mul_(4)  # ½(4 + ¼) − 1 nats, the mean being as it was
    moved = recalibrate_(model, [(x, torch.zeros(40))])
    assert list(moved.moved) == ["4", "1"]
    assert moved.moved["4"] == pytest.approx(1.125, rel=1e-3)
    said = moved.describe()
    assert "2 norm layers were measured on 40 pictures" in said
    assert "most in '4' (1.1)" in said


def test_layers_that_no_picture_reaches_stay_and_are_told() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Unused()
    done = recalibrate_(model, [pictures()])
    assert list(done.moved) == ["used"]
    assert done.describe().endswith("1 layers were not reached.")
    assert torch.equal(model.unused.running_mean, torch.zeros(3))


def test_undo_and_the_context() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with recalibrate_(model, [pictures()]):
        assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_a_limit_counts_pictures_and_nothing_is_an_error() -> None:
    model = network()
    assert recalibrate_(model, pictures().split(8), limit=20).pictures == 20
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError):
        recalibrate_(model, [])
    with pytest.raises(InputError, match="one-pas"):
        recalibrate_(model, [pictures()], mode="one-pas")
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
