"""Normalizing a discriminator: norms of about 1, one power iteration a step, the other kinds."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.gan.gradient_norm import GradientNormalized
from normapps.gan.normalization import normalize_discriminator_
from normapps.models.sngan import SnganDiscriminator, sngan_discriminator
from normapps.norm.weight import inspect


def _discriminator(classes: int = 0) -> SnganDiscriminator:
    torch.manual_seed(0)
    return sngan_discriminator(28, 1, width=8, num_classes=classes)


def _layers(d: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Conv2d, nn.Linear, nn.Embedding)
    return {path: each for path, each in d.named_modules() if isinstance(each, kinds)}


def _convolution_norm(weight: Tensor, side: int) -> float:
    """Largest gain of a zero-padded convolution, by power iteration on its own adjoint."""
    weight, padding = weight.detach().double(), weight.shape[2] // 2
    x = torch.randn(1, weight.shape[1], side, side, dtype=torch.float64)
    for _ in range(300):
        y = F.conv2d(x / x.norm(), weight, padding=padding)
        x = F.conv_transpose2d(y, weight, padding=padding)
    return float(y.norm())


UNTOUCHED = ("blocks.0.shortcut", "linear", "embedding")
"""Layers that weight standardization leaves: no convolution, or rows of one element."""
SIDES = {"blocks.0": 28, "blocks.1": 14, "blocks.2": 7, "blocks.3": 7}


def _side(path: str) -> int:
    side = SIDES[path.rsplit(".", 1)[0]]
    # the shortcut of a block that pools comes after the pooling
    return side // 2 if path.endswith("shortcut") else side


def test_the_reshaped_kernels_have_norm_one() -> None:
    d = normalize_discriminator_(_discriminator(3), "sn")
    found = _layers(d)
    assert len(found) == 4 * 2 + 2 + 2  # two convolutions a block, two shortcuts, two at the end
    for path, layer in found.items():
        values = torch.linalg.svdvals(layer.weight.detach().flatten(1).double())  # type: ignore[operator]
        assert float(values[0]) == pytest.approx(1, abs=1e-4), path


def test_the_convolutions_have_norm_one_on_the_input_that_they_get() -> None:
    d = normalize_discriminator_(_discriminator(), "sn", sigma="conv")
    for path, layer in _layers(d).items():
        if isinstance(layer, nn.Conv2d):
            norm = _convolution_norm(layer.weight, _side(path))
            assert norm == pytest.approx(1, abs=2e-3), path


def test_the_bound_keeps_the_convolutions_at_or_below_one() -> None:
    d = normalize_discriminator_(_discriminator(), "sn", sigma="bound")
    norms = [
        _convolution_norm(layer.weight, _side(path))
        for path, layer in _layers(d).items()
        if isinstance(layer, nn.Conv2d)
    ]
    assert max(norms) <= 1 + 1e-3
    assert min(norms) > 0.3  # it is a bound, but no empty one


def _pair(d: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    prefix = f"{path}.parametrizations.weight.0."
    u, v = d.get_buffer(f"{prefix}_u"), d.get_buffer(f"{prefix}_v")
    return u.flatten().clone(), v.flatten().clone()


def test_the_vectors_advance_once_an_optimizer_step_however_often_the_weights_are_read() -> None:
    d = normalize_discriminator_(_discriminator(), "sn")
    optimizer = torch.optim.Adam(d.parameters(), 2e-3, betas=(0.0, 0.9))
    for _ in range(2):  # the first change measures anew, from then on each is one iteration
        optimizer.zero_grad()
        d(torch.rand(4, 1, 28, 28)).mean().backward()
        before = {path: _pair(d, path) for path in _layers(d)}
        optimizer.step()
    d(torch.rand(2, 1, 28, 28))
    with torch.no_grad():
        d(torch.rand(2, 1, 28, 28))
    d(torch.rand(2, 1, 28, 28)).mean().backward()
    for path, (u, v) in before.items():
        weight = d.get_parameter(f"{path}.parametrizations.weight.original").detach().flatten(1)
        new_u = F.normalize(weight @ v, dim=0)
        new_v = F.normalize(weight.T @ new_u, dim=0)
        got_u, got_v = _pair(d, path)
        torch.testing.assert_close(got_u, new_u, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got_v, new_v, rtol=1e-4, atol=1e-5)
        if len(v) > 1 and len(u) > 1:
            assert float((got_v - v).abs().max()) > 1e-4, path  # it did move


def test_the_initial_weights_are_those_of_before() -> None:
    plain = _discriminator(2).state_dict()
    d = normalize_discriminator_(_discriminator(2), "sn")
    for path in _layers(d):
        kept = d.get_parameter(f"{path}.parametrizations.weight.original")
        assert torch.equal(kept, plain[f"{path}.weight"])
    assert {report.layer for report in inspect(d)} == set(_layers(d))


def test_standardized_rows_have_no_mean_and_the_length_of_the_gain() -> None:
    d = normalize_discriminator_(_discriminator(3), "ws")
    plain = _discriminator(3)
    for path, layer in _layers(d).items():
        rows = layer.get_parameter("weight") if path in UNTOUCHED else layer.weight
        rows = rows.detach().double().flatten(1)  # type: ignore[operator]
        if path in UNTOUCHED:
            assert torch.equal(rows, plain.get_parameter(f"{path}.weight").double().flatten(1))
            continue
        gain = math.sqrt(2) if ".conv" in path else 1
        length = gain * math.sqrt((rows.shape[1] - 1) / rows.shape[1])  # of unbiased deviation 1
        torch.testing.assert_close(rows.mean(1), torch.zeros_like(rows[:, 0]), atol=1e-6, rtol=0)
        lengths = torch.full_like(rows[:, 0], length)
        torch.testing.assert_close(rows.norm(dim=1), lengths, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["sn", "gn", "ws", "none"])
@pytest.mark.parametrize("classes", [0, 3])
def test_every_kind_judges_pictures_and_trains(kind: str, classes: int) -> None:
    d = normalize_discriminator_(_discriminator(classes), kind)
    real, fake = torch.rand(2, 8, 1, 28, 28)
    real, y = real - 1, torch.arange(8) % 3 if classes else None
    optimizer = torch.optim.Adam(d.parameters(), 2e-3, betas=(0.0, 0.9))
    for _ in range(8):
        optimizer.zero_grad()
        (d(fake, y).mean() - d(real, y).mean()).backward()
        optimizer.step()
    assert all(bool(each.isfinite().all()) for each in d.parameters())
    assert (d(real, y).mean() - d(fake, y).mean()).item() > 0


def test_gradient_normalization_wraps_and_none_leaves_alone() -> None:
    d = _discriminator()
    wrapped = normalize_discriminator_(d, "gn")
    assert isinstance(wrapped, GradientNormalized)
    assert wrapped.network is d
    assert normalize_discriminator_(d, "none") is d
    assert set(d.state_dict()) == set(_discriminator().state_dict())


def test_the_convolution_norm_of_another_network_needs_a_size() -> None:
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
    with pytest.raises(InputError, match="give the size of the pictures"):
        normalize_discriminator_(other, "sn", sigma="conv")
    d = normalize_discriminator_(other, "sn", sigma="conv", size=8)
    assert [report.layer for report in inspect(d)] == ["0", "2"]
    assert d.training


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("spectral", {}, "unknown discriminator norm 'spectral'"),
        ("sn", {"sigma": "convolution"}, "unknown sigma 'convolution'"),
    ],
)
def test_unknown_names_are_refused(kind: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        normalize_discriminator_(_discriminator(), kind, **options)  # type: ignore[arg-type]


def test_it_is_done_once() -> None:
    d = normalize_discriminator_(_discriminator(), "sn")
    with pytest.raises(InputError, match="parametrized by SpectralNorm already"):
        normalize_discriminator_(d, "sn")
    with pytest.raises(InputError, match="no convolution to standardize"):
        normalize_discriminator_(nn.Linear(2, 2), "ws")
