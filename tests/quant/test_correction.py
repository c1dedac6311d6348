from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rounding_networks import badly_scaled, damage_of, pictures
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.moments import Moments
from normapps.norm.partition import BATCH
from normapps.quant.correction import correct_bias_
from normapps.quant.fake import fake_quantize_


def rounded(weight: Tensor, axis: int | None) -> Tensor:
    """The grid's formula again: s = max|w|/127, half to even; one for all with axis None."""
    w = weight.double()
    others = [each for each in range(w.dim()) if axis is None or each != axis]
    scale = w.abs().amax(others, keepdim=True) / 127
    return (w / scale).round() * scale


def relu_mean(mean: Tensor, var: Tensor) -> Tensor:
    found = []
    for beta, square in zip(mean.flatten().tolist(), var.flatten().tolist(), strict=True):
        s = math.sqrt(square)
        big = (1 + math.erf(beta / s / math.sqrt(2))) / 2
        found.append(beta * big + s * math.exp(-(beta**2) / square / 2) / math.sqrt(2 * math.pi))
    return torch.tensor(found, dtype=torch.float64)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    "conv": (
        lambda: nn.Conv2d(8, 6, 3, padding=1),
        lambda x, w: F.conv2d(x, w, padding=1),
    ),
    "strided, dilated, without a bias": (
        lambda: nn.Conv2d(8, 6, 3, 2, 2, dilation=2, bias=False),
        lambda x, w: F.conv2d(x, w, stride=2, padding=2, dilation=2),
    ),
    "grouped": (
        lambda: nn.Conv2d(8, 6, 3, groups=2),
        lambda x, w: F.conv2d(x, w, groups=2),
    ),
    "depthwise": (
        lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8),
        lambda x, w: F.conv2d(x, w, padding=2, groups=8),
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(8, 6, 3, 2, 1, groups=2),
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, groups=2),
    ),
}


def known_moments(channels: int) -> Moments:
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn((1, channels), generator=generator)
    var = (0.2 + torch.rand((1, channels), generator=generator)).square()
    return Moments(torch.zeros(1), mean, var, None, BATCH)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_analytic_correction_is_the_error_of_the_mean(kind: str, per_channel: bool) -> None:
    torch.manual_seed(0)
    make, forward = LAYERS[kind]
    layer, known = make(), known_moments(8)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), layer)
    weight = layer.get_parameter("weight").detach().clone()
    old = torch.zeros(1) if layer.bias is None else layer.get_parameter("bias").detach().clone()
    done = correct_bias_(model, torch.zeros(1, 3, 9, 9), {"0": known}, per_channel=per_channel)
    axis = 1 if "transposed" in kind else 0
    error = rounded(weight, axis if per_channel else None) - weight.double()
    means = relu_mean(known.mean, known.var).view(1, 8, 1, 1).expand(1, 8, 9, 9)
    added = forward(means, error).mean((0, 2, 3))
    assert float(added.abs().max()) > 1e-4
    wanted = old.double() - added
    torch.testing.assert_close(layer.bias.double(), wanted, rtol=0, atol=2e-7)
    assert torch.equal(layer.get_parameter("weight"), weight)
    assert [(each.layer, each.how) for each in done.layers] == [("2", "closed form")]
    torch.testing.assert_close(done.layers[0].shift, added, rtol=0, atol=1e-7)
    assert [name for name, _ in done.skipped] == ["0"]


def test_a_linear_layer_of_tokens() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    known = known_moments(4)
    before = model[2].get_parameter("bias").detach().clone()
    weight = model[2].get_parameter("weight").detach()
    correct_bias_(model, torch.zeros(1, 7, 3), {"0": known}, bits=4)
    scale = weight.double().abs().amax(1, keepdim=True) / 7
    error = (weight.double() / scale).round() * scale - weight.double()
    wanted = before.double() - error @ relu_mean(known.mean, known.var)
    torch.testing.assert_close(model[2].get_parameter("bias").double(), wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("way", ["analytic", "pictures"])
def test_a_correction_shrinks_the_shift_and_the_error(way: str, per_channel: bool) -> None:
    model, statistics = badly_scaled()
    shift, error = damage_of(model, per_channel)
    batches = None if way == "analytic" else pictures(96, 5).split(32)
    inputs = torch.zeros(1, 3, 12, 12)
    done = correct_bias_(model, inputs, statistics, per_channel=per_channel, batches=batches)
    corrected_shift, corrected_error = damage_of(model, per_channel)
    assert corrected_shift < (0.6 if way == "analytic" else 0.25) * shift
    assert corrected_error < 0.8 * error
    assert all(each.how == "pictures" for each in done.layers) == (way == "pictures")


def test_means_over_the_same_pictures_agree_behind_the_correction() -> None:
    model, statistics = badly_scaled()
    x = pictures(48, 2)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        wanted = reference(x).double().mean(0)
    correct_bias_(model, x, statistics, per_channel=False, batches=[x])
    with fake_quantize_(model, per_channel=False), torch.no_grad():
        found = model(x).double().mean(0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_inputs_may_be_rounded_too() -> None:
    model, statistics = badly_scaled()
    x = pictures(48, 2)
    ranges = {"head": (0.0, float(x.abs().max())), "stem.0": (-1.0, 1.0)}
    with torch.no_grad():
        wanted = model(x).double().mean(0)
    correct_bias_(model, x, statistics, batches=[x], activations=ranges)
    with fake_quantize_(model, activations=ranges), torch.no_grad():
        found = model(x).double().mean(0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_small_batches_come_to_nearly_the_same_as_one() -> None:
    shifts = []
    for size in (96, 8):
        model, statistics = badly_scaled()
        batches = pictures(96, 5).split(size)
        done = correct_bias_(model, batches[0], statistics, per_channel=False, batches=batches)
        shifts.append(torch.cat([each.shift for each in done.layers]))
    gap = (shifts[0] - shifts[1]).norm() / shifts[0].norm()
    assert 0 < gap < 0.1


@pytest.mark.parametrize("way", ["analytic", "pictures"])
def test_everything_is_taken_back_to_the_bit(way: str) -> None:
    model, statistics = badly_scaled()
    model.train()
    before = copy.deepcopy(model)
    batches = None if way == "analytic" else [pictures(8, 5)]
    with correct_bias_(model, pictures(1, 0), statistics, batches=batches):
        assert "head.bias" in model.state_dict()
        assert not torch.equal(model.state_dict()["head.bias"], torch.zeros(5))
    after = model.state_dict()
    assert after.keys() == before.state_dict().keys()
    assert all(torch.equal(after[name], value) for name, value in before.state_dict().items())
    assert all(module.training for module in model.modules())


def test_excluded_layers_stay_float() -> None:
    model, statistics = badly_scaled()
    for batches in (None, [pictures(8, 5)]):
        with correct_bias_(
            model, pictures(1, 0), statistics, batches=batches, exclude=["up.*", "head"]
        ) as done:
            names = [each.layer for each in done.layers]
            assert names[-2:] == ["depth.0", "group.0"]
            assert "up.0" not in dict(done.skipped)


def test_what_cannot_be_corrected_is_said_and_nothing_changes() -> None:
    model, statistics = badly_scaled()
    before = copy.deepcopy(model.state_dict())
    x = pictures(4, 0)
    with pytest.raises(InputError, match="no statistics: no batch norm"):
        correct_bias_(model, x, {})
    with pytest.raises(InputError, match="no batches to compare"):
        correct_bias_(model, x, statistics, batches=[])
    with pytest.raises(InputError, match=r"layer 'stem\.0': activations are not finite"):
        correct_bias_(model, x, statistics, batches=[x, torch.full_like(x, math.nan)])
    with pytest.raises(InputError, match="unknown layer in --exclude"):
        correct_bias_(model, x, statistics, exclude=["heat"])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    model.get_parameter("head.weight").data[0, 0] = math.nan
    with pytest.raises(InputError, match="layer 'head': its weight is not finite"):
        correct_bias_(model, x, statistics)
