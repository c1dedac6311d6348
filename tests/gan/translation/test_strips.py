"""In strips a picture is the same as in one piece, of any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normapps.gan.translation import strips
from normapps.gan.translation.strips import pad, translate
from normapps.models.translator import AdalinGenerator, adalin_generator


@pytest.fixture(scope="module")
def generator() -> AdalinGenerator:
    torch.manual_seed(0)
    network = adalin_generator(3, 4, 1, skip=False).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.requires_grad_(False)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, height, width, generator=drawn, dtype=torch.float64) * 2 - 1


# of smaller ones the reflection makes periods, whose flat features enlarge every rounding
@settings(max_examples=25)
@given(
    height=st.integers(10, 70),
    width=st.integers(10, 40),
    rows=st.sampled_from([4, 8, 20, 64]),
    seed=st.integers(0, 1000),
)
def test_strips_equal_the_whole(
    generator: AdalinGenerator, height: int, width: int, rows: int, seed: int
) -> None:
    x = picture(height, width, seed)
    whole = translate(generator, x, 0)
    assert whole.shape == x.shape
    torch.testing.assert_close(translate(generator, x, rows), whole, rtol=0, atol=1e-8)


def test_strips_on_their_own_would_be_another_picture(generator: AdalinGenerator) -> None:
    """What the test above asks for is not what any cutting gives."""
    x = picture(64, 32)
    x[:, :, 32:] *= 0.1
    halves = torch.cat([translate(generator, each, 0) for each in x.chunk(2, 2)], 2)
    assert (halves - translate(generator, x, 0)).abs().max() > 0.05


def test_large_pictures_are_taken_in_strips(
    generator: AdalinGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    hook = generator.get_submodule("encoder.0.conv").register_forward_pre_hook(
        lambda _, given: sizes.append(given[0].shape[2])
    )
    x = picture(64, 32)
    translate(generator, x)
    assert sizes == [64]
    monkeypatch.setattr(strips, "WHOLE", 1000)
    monkeypatch.setattr(strips, "STRIP", 256)
    translate(generator, x)
    hook.remove()
    assert max(sizes[1:]) == 8 + 2 * 8


def test_a_picture_that_fits_is_not_padded() -> None:
    x = picture(16, 20)
    assert pad(x) is x


def test_padding_reflects_below_and_to_the_right() -> None:
    x = torch.arange(1.0, 19.0).repeat(18, 1)[None, None]
    padded = pad(x)
    assert padded.shape == (1, 1, 20, 20)
    assert padded[0, 0, 0, 16:].tolist() == [17, 18, 17, 16]
    one = pad(torch.full((1, 3, 1, 1), 0.5))
    assert one.shape == (1, 3, 16, 16)
    assert (one == 0.5).all()
    short = pad(torch.arange(3.0).repeat(16, 1)[None, None])[0, 0, 0]
    assert short.tolist() == [0, 1, 2, 1] * 4


def test_what_comes_out_is_within_the_range() -> None:
    network = adalin_generator(3, 4, 1).eval().requires_grad_(False)
    torch.nn.init.constant_(network.get_parameter("image.bias"), 0.7)
    out = translate(network, picture(16, 16).float())
    assert out.max() == 1
    assert out.min() >= -0.3 - 1e-6
