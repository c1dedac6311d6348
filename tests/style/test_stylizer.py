"""The stylizer on pictures of every kind and size, and that tiles equal the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from normapps import Stylizer
from normapps.data.images import Picture, fit
from normapps.errors import InputError
from normapps.models.adain_tiny import AdainTiny, moments
from normapps.models.folder import save_model
from normapps.norm import INSTANCE, Moments, transport
from normapps.style import render
from normapps.style.detail import mix_detail
from normapps.style.masks import Mask
from normapps.style.styles import Style, load_style
from normapps.style.stylize_options import DETAIL
from normapps.style.stylizer import resolve_style


@pytest.fixture(scope="module")
def stylizer() -> Stylizer:
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=8, hidden=4)
    torch.nn.init.normal_(network.modulation.heads.weight, std=0.1)
    return Stylizer(network, "weights")


@pytest.fixture
def photo(photos: dict[str, np.ndarray]) -> Tensor:
    """A photograph of odd size: (3, 149, 203) float."""
    pixels = np.array(Image.fromarray(photos["coffee"]).resize((203, 149)))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


@pytest.fixture
def painting(photos: dict[str, np.ndarray]) -> Image.Image:
    return Image.fromarray(photos["rocket"])


@pytest.mark.parametrize("side", [32, 64, 136])
def test_tiles_equal_the_whole(
    stylizer: Stylizer, photo: Tensor, painting: Image.Image, side: int
) -> None:
    style = stylizer.style(painting, size=128)
    tiled = Stylizer(stylizer.renderer.network, "weights")
    tiled.renderer = replace(stylizer.renderer, side=side)
    whole, parts = (s(photo, style, alpha=0.7) for s in (stylizer, tiled))
    assert (whole - parts).abs().max() < 1e-5


def test_features_computed_twice_equal_those_kept(
    stylizer: Stylizer, photo: Tensor, painting: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = stylizer.style(painting, size=128)
    kept = stylizer(photo, style)
    monkeypatch.setattr(render, "_KEPT", 0)
    assert torch.equal(stylizer(photo, style), kept)


def _lent(image: Tensor, style: Style, alpha: float = 1.0) -> Tensor:
    """The photo in the painting's colours, cut off at 0 and 1."""
    own = Moments.of(image, INSTANCE, full=True)
    return transport(image, own, style.colors, "ot", 1e-3, alpha).clamp(0, 1)


def test_one_pass_is_the_network(stylizer: Stylizer, painting: Image.Image) -> None:
    image, style = torch.rand(1, 3, 48, 64), stylizer.style(painting, size=64)
    network = stylizer.renderer.network
    shown = _lent(image, style)
    with torch.inference_mode():
        drawn = network.decode(network.encode(shown), (style.levels[0], style.levels[1]))
        want = mix_detail(drawn.clamp(0, 1), shown, DETAIL)
    assert torch.allclose(stylizer(image, style), want.clamp(0, 1), atol=1e-5)
    assert torch.allclose(stylizer(image, style, detail=0), drawn.clamp(0, 1), atol=1e-5)
    assert not torch.allclose(want, drawn, atol=0.01)


def test_moments_are_those_of_the_true_region(stylizer: Stylizer) -> None:
    """A picture of whole cells, padded, has the moments of its own cells only."""
    image = torch.rand(1, 3, 64, 8)
    got = stylizer.renderer.measure(image)
    with torch.inference_mode():
        padded = torch.cat([image, image.flip(3)[..., 1:], image[..., 1:2]], 3)
        features = stylizer.renderer.network.encode(padded)
        inner = [features[0][..., :2], features[1][..., :1]]
    for level, want in zip(got, moments(inner), strict=True):
        assert torch.allclose(level.mean, want.mean, atol=1e-5)
        assert torch.allclose(level.var, want.var, atol=1e-5)


def test_strength_0_returns_the_photo(
    stylizer: Stylizer, photo: Tensor, painting: Image.Image
) -> None:
    style = stylizer.style(painting)
    assert torch.allclose(stylizer(photo, style, alpha=0), photo, atol=1e-5)
    pixels = (photo * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(stylizer(Picture(pixels), style, alpha=0.0).pixels, pixels)


def test_strength_mixes_moments_and_adds_back_what_is_lost(
    stylizer: Stylizer, painting: Image.Image
) -> None:
    """Against D(mixed moments) + (1−α)(x − D(own moments)) of the photo in mixed colours."""
    image, style = torch.rand(1, 3, 48, 64), stylizer.style(painting, size=64)
    network = stylizer.renderer.network
    image = _lent(photo := image, style, 0.3)
    with torch.inference_mode():
        features = network.encode(image)
        own = moments(features)
        mixed = [
            replace(
                o, mean=0.3 * s.mean + 0.7 * o.mean, var=(0.3 * s.var**0.5 + 0.7 * o.var**0.5) ** 2
            )
            for s, o in zip(style.levels, own, strict=True)
        ]
        drawn = network.decode(features, (mixed[0], mixed[1]))
        want = drawn + 0.7 * (image - network.decode(features, own))
    got = stylizer(photo, style, alpha=0.3, detail=0)
    assert torch.allclose(got, want.clamp(0, 1), atol=1e-5)


def test_alpha_moves_from_the_content_to_the_style(
    stylizer: Stylizer, photo: Tensor, painting: Image.Image
) -> None:
    style = stylizer.style(painting)
    nothing, half, full = (stylizer(photo, style, alpha=a) for a in (0.0, 0.5, 1.0))
    assert 0 < (half - nothing).norm() < (full - nothing).norm()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 17), (8, 8), (33, 31), (64, 48)])
def test_any_size_comes_back(
    stylizer: Stylizer, painting: Image.Image, size: tuple[int, int]
) -> None:
    out = stylizer(Image.new("RGB", size, "teal"), stylizer.style(painting, size=64))
    assert out.size == size


def test_what_goes_in_comes_out(stylizer: Stylizer, painting: Image.Image) -> None:
    style = stylizer.style(painting, size=64)
    alpha = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
    picture = Picture(np.full((20, 30, 3), 90, np.uint8), alpha=alpha)
    out = stylizer(picture, style)
    assert isinstance(out, Picture)
    assert np.array_equal(out.alpha, alpha)
    image = Image.fromarray(np.dstack([picture.pixels, alpha]))
    drawn = stylizer(image, style)
    assert (drawn.mode, drawn.size) == ("RGBA", (30, 20))
    assert np.array_equal(np.array(drawn)[..., 3], alpha)
    for shape in ((3, 20, 30), (1, 3, 20, 30)):
        tensor = stylizer(torch.rand(shape), style)
        assert tensor.shape == shape
        assert 0 <= tensor.min() <= tensor.max() <= 1


def test_pictures_and_tensors_agree(
    stylizer: Stylizer, photo: Tensor, painting: Image.Image
) -> None:
    style = stylizer.style(painting, size=64)
    pixels = (photo * 255).round().byte().permute(1, 2, 0).numpy()
    drawn = torch.from_numpy(stylizer(Picture(pixels), style).pixels).permute(2, 0, 1) / 255
    assert (drawn - stylizer(photo, style)).abs().max() <= 0.51 / 255


@pytest.mark.parametrize("size", [20, 300])
def test_size_is_the_long_side(stylizer: Stylizer, painting: Image.Image, size: int) -> None:
    style = stylizer.style(painting, size=64)
    assert stylizer(Image.new("RGB", (100, 50)), style, size=size).size == (size, size // 2)
    assert stylizer(torch.rand(3, 50, 100), style, size=size).shape == (3, size // 2, size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(
    stylizer: Stylizer, photo: Tensor, painting: Image.Image, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=8, hidden=4)
    network.load_state_dict(stylizer.renderer.network.state_dict())
    half = Stylizer(network, "weights", dtype=dtype)
    style = stylizer.style(painting, size=64)
    assert (half(photo, style) - stylizer(photo, style)).abs().mean() < 0.01


def test_colours_can_be_kept(stylizer: Stylizer, photo: Tensor, painting: Image.Image) -> None:
    style = stylizer.style(painting)
    kept = stylizer(photo, style, preserve_color="transport")
    own, want = (Moments.of(x[None].clamp(0.02, 0.98), INSTANCE) for x in (kept, photo))
    assert (own.mean - want.mean).abs().max() < 0.05
    assert torch.equal(stylizer(photo, style, preserve_color="none"), stylizer(photo, style))


def test_masks_give_styles_their_places(
    stylizer: Stylizer, photo: Tensor, painting: Image.Image
) -> None:
    """A masked style is drawn there, the rest gets the other, what nothing covers is kept."""
    first, second = (stylizer.style(painting.rotate(angle), size=96) for angle in (0, 90))
    left = np.zeros((149, 203), np.uint8)
    left[:, :100] = 255
    mask, pixels = Mask(left), (photo * 255).round().byte().permute(1, 2, 0).numpy()
    kept = stylizer(Picture(pixels), [(first, mask)]).pixels
    assert np.array_equal(kept[:, 100:], pixels[:, 100:])
    assert np.abs(kept[:, :100].astype(int) - pixels[:, :100]).mean() > 1
    both = stylizer(Picture(pixels), [(first, mask), (second, None)]).pixels
    assert np.abs(both[:, 100:].astype(int) - pixels[:, 100:]).mean() > 1
    assert np.abs(both[:, :90].astype(int) - kept[:, :90]).mean() < 5
    assert torch.equal(stylizer(photo, [(first, None)]), stylizer(photo, first))
    small = stylizer(Picture(pixels), [(first, mask)], size=102, preserve_color="transport")
    assert np.array_equal(small.pixels[:, 55:], fit(pixels, 102)[:, 55:])


def test_masks_that_do_not_fit_are_named(stylizer: Stylizer, photo: Tensor) -> None:
    style, mask = stylizer.style(photo), Mask(np.ones((4, 4), np.uint8), name="m.png")
    with pytest.raises(InputError, match=r"m\.png: is 4×4, the picture 203×149"):
        stylizer(photo, [(style, mask)])
    with pytest.raises(InputError, match="no style given"):
        stylizer(photo, [])
    with pytest.raises(InputError, match="encoded by other weights"):
        stylizer(photo, [(style, None), (replace(style, model="other"), mask)])


def test_tiles_of_a_side_change_nothing(photo: Tensor, painting: Image.Image) -> None:
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=8, hidden=4)
    whole, tiled = (Stylizer(network, "weights", tile=side) for side in (None, 70))
    style = whole.style(painting, size=96)
    assert torch.allclose(whole(photo, style), tiled(photo, style), atol=1e-4)
    widths: list[int] = []
    network.stem.register_forward_hook(lambda _, given, out: widths.append(4 * given[0].shape[3]))
    tiled(photo, style)
    assert widths[0] == 72 + 96  # rounded up to the stride, and the margin of one side


def test_bad_arguments_name_themselves(stylizer: Stylizer, painting: Image.Image) -> None:
    style = stylizer.style(painting, size=64)
    with pytest.raises(InputError, match=r"alpha 1\.5: must be between 0 and 1"):
        stylizer(painting, style, alpha=1.5)
    with pytest.raises(InputError, match=r"detail -0\.1: must be between 0 and 1"):
        stylizer(painting, style, detail=-0.1)
    with pytest.raises(InputError, match="encoded by other weights"):
        stylizer(painting, replace(style, model="other"))
    with pytest.raises(InputError, match=r"shape \(2, 3, 8, 8\)"):
        stylizer(torch.rand(2, 3, 8, 8), style)
    with pytest.raises(InputError, match=r"torch\.uint8"):
        stylizer(torch.zeros(3, 8, 8, dtype=torch.uint8), style)
    with pytest.raises(InputError, match="size 0"):
        stylizer(painting, style, size=0)
    with pytest.raises(InputError, match="preserve_color 'hue'"):
        stylizer(painting, style, preserve_color="hue")


def test_out_of_memory_falls_back_to_tiles(
    stylizer: Stylizer, photo: Tensor, painting: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    style, encode = stylizer.style(painting), AdainTiny.encode
    whole = stylizer(photo, style)

    def encode_small(self: AdainTiny, image: Tensor) -> tuple[Tensor, Tensor]:
        if image.shape[2] * image.shape[3] > 150 * 200:
            raise torch.OutOfMemoryError
        return encode(self, image)

    monkeypatch.setattr(AdainTiny, "encode", encode_small)
    monkeypatch.setattr(render, "_SIDE", 64)
    monkeypatch.setattr(render, "_LEAST_SIDE", 16)
    monkeypatch.setattr(render, "RECEPTIVE_FIELD", 16)
    assert stylizer(photo, style).shape == whole.shape
    monkeypatch.setattr(render, "_LEAST_SIDE", 65)
    with pytest.raises(InputError, match="out of memory"):
        stylizer(photo, style)


def test_load_takes_a_model_folder(tmp_path: Path, painting: Image.Image) -> None:
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    torch.manual_seed(1)
    save_model(tmp_path / "m", AdainTiny(**arguments), builder="adain-tiny", arguments=arguments)
    stylizer = Stylizer.load(tmp_path / "m", device="cpu")
    painting.save(tmp_path / "p.png")
    style = resolve_style(stylizer, str(tmp_path / "p.png"), 64)
    style.save(tmp_path / "p.style")
    again = resolve_style(stylizer, str(tmp_path / "p.style"))
    assert (again.name, again.model) == ("p", stylizer.fingerprint)
    assert torch.equal(stylizer(torch.ones(3, 9, 9), again), stylizer(torch.ones(3, 9, 9), style))
    assert (tmp_path / "p.style").stat().st_size <= 16_000
    with pytest.raises(InputError, match="has no presets; give --style a painting"):
        resolve_style(stylizer, "preset:nothing")
    assert load_style(tmp_path / "p.style").levels[0].partition == INSTANCE
