from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt.online.views import random_view, scale_of
from normapps.errors import InputError

SCALE = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int = 6, channels: int = 3) -> Tensor:
    smooth = torch.rand(count, channels, 4, 5, generator=_generator(1))
    return nn.functional.interpolate(smooth, (16, 20), mode="bilinear")


def _scaled(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in SCALE)
    return (images - mean) / std


def test_one_seed_one_view_and_a_view_of_its_own_for_each_picture() -> None:
    x = _images(1).repeat(4, 1, 1, 1)
    view = random_view(x, _generator(), scale=None)
    assert view.shape == x.shape
    assert torch.equal(view, random_view(x, _generator()))
    assert not torch.equal(view, random_view(x, _generator(1)))
    assert len({each.sum().item() for each in view}) == 4


def test_views_of_scaled_pictures_are_the_scaled_views() -> None:
    images = _images()
    one = ((0.0,) * 3, (1.0,) * 3)
    expected = _scaled(random_view(images, _generator(), scale=one))
    torch.testing.assert_close(
        random_view(_scaled(images), _generator(), scale=SCALE), expected, atol=2e-5, rtol=0
    )


def test_values_stay_in_range() -> None:
    images = (10 * (_images() - 0.5)).clamp(0, 1)
    view = random_view(images, _generator(), scale=((0.0,) * 3, (1.0,) * 3))
    assert view.min() >= 0
    assert view.max() <= 1


def test_without_a_scale_the_batch_gives_the_range() -> None:
    x = 30 * _images() - 7
    view = random_view(x, _generator())
    assert view.min() >= x.min() - 1e-4
    assert view.max() <= x.max() + 1e-4
    assert (view - x).abs().mean() > 0.5
    grey = torch.full((2, 3, 8, 8), 4.0)
    assert random_view(grey, _generator()).isfinite().all()


def test_strength_weakens_and_none_is_the_same() -> None:
    x = _images()
    # a mirror is as strong at every strength: compare with the nearer of both
    near = [
        torch.minimum((view - x).abs().mean((1, 2, 3)), (view.flip(3) - x).abs().mean((1, 2, 3)))
        for view in (random_view(x, _generator(), strength=s) for s in (1.0, 0.02))
    ]
    assert near[1].max() < 0.02 < near[0].mean()
    assert random_view(x, _generator(), strength=0) is x


def test_about_half_are_mirrored() -> None:
    x = torch.linspace(0, 1, 20).expand(200, 3, 16, 20)
    view = random_view(x, _generator(), strength=0.01)
    mirrored = view[..., 0].mean((1, 2)) > view[..., -1].mean((1, 2))
    assert 70 < int(mirrored.sum()) < 130


def test_turned_pictures_keep_their_shape() -> None:
    """In a picture that is not square, turning must not shear: a disc stays one."""
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(80.0), indexing="ij")
    far = (rows - 19.5) ** 2 + (columns - 39.5) ** 2
    disc = (1.2 - far / 100).clamp(0, 1).expand(8, 1, 40, 80)
    view = random_view(disc, _generator(), scale=((0.0,), (1.0,)))
    for picture in view[:, 0]:
        weight = torch.where(picture > 0.2, picture, 0)
        weight = weight / weight.sum()
        y, x = (float((weight * axis).sum()) for axis in (rows, columns))
        moments = [(rows - y) ** 2, (columns - x) ** 2, (rows - y) * (columns - x)]
        down, across, skew = (float((weight * each).sum()) for each in moments)
        assert down / across == pytest.approx(1, abs=0.02)
        assert skew / across == pytest.approx(0, abs=0.02)
        assert math.hypot(y - 19.5, x - 39.5) <= 1.12 * math.hypot(40 / 8, 80 / 8)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_have_no_hue(channels: int) -> None:
    assert random_view(_images(2, channels), _generator()).shape == (2, channels, 16, 20)


def test_the_scale_is_what_is_given_or_what_the_model_says() -> None:
    model = nn.Linear(2, 2)
    assert scale_of(model) is None
    model.pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}  # type: ignore[assignment]
    assert scale_of(model) == ((0.5,), (0.25,))
    assert scale_of(model, [0.1], [0.2]) == ((0.1,), (0.2,))
    with pytest.raises(InputError, match="give mean and std, or neither"):
        scale_of(model, [0.1])


def test_no_pictures_and_another_number_of_channels() -> None:
    with pytest.raises(InputError, match="strength=0"):
        random_view(torch.zeros(3, 5), _generator())
    with pytest.raises(InputError, match="one number a channel"):
        random_view(_images(2, 1), _generator(), scale=SCALE)
