"""Rendering of regions and tiles: values, equality, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from normapps.errors import InputError
from normapps.models.adain_tiny import AdainTiny, moments
from normapps.norm import INSTANCE, Moments, transport
from normapps.style import render
from normapps.style.detail import mix_detail
from normapps.style.render import TinyRenderer
from normapps.style.rendering import Levels, Region
from normapps.style.stylize_options import METHODS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def renderer() -> TinyRenderer:
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=8, hidden=4).eval().requires_grad_(False)
    torch.nn.init.normal_(network.modulation.heads.weight, std=0.1)
    return TinyRenderer(network, CPU)


@pytest.fixture
def photo(photos: dict[str, np.ndarray]) -> Tensor:
    """A photograph of odd size: (1, 3, 149, 203) uint8."""
    pixels = np.array(Image.fromarray(photos["coffee"]).resize((203, 149)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


@pytest.fixture
def styles(renderer: TinyRenderer, photos: dict[str, np.ndarray]) -> list[Levels]:
    return [
        renderer.measure(torch.from_numpy(photos[name][:256, :256]).permute(2, 0, 1)[None])
        for name in ("rocket", "chelsea")
    ]


def _masks(height: int, width: int) -> list[Tensor]:
    """A soft edge, and a disc inside it that leaves part of the picture to nobody: uint8."""
    ramp = ((torch.arange(width) - 40) * 5).clamp(0, 255).expand(height, width)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    disc = ((rows - 60) ** 2 + (columns - 30) ** 2 < 28**2) * 180
    return [each.to(torch.uint8)[None, None] for each in (ramp, disc)]


def _regions(styles: list[Levels], photo: Tensor) -> list[Region]:
    return [Region(*pair) for pair in zip(styles, _masks(*photo.shape[2:]), strict=True)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_tiles_equal_the_whole_under_masks(
    renderer: TinyRenderer, photo: Tensor, styles: list[Levels], method: str, alpha: float
) -> None:
    regions, image = _regions(styles, photo), photo.float() / 255
    whole, parts = (
        each.render(image, regions, alpha=alpha, method=method)
        for each in (renderer, replace(renderer, side=60))
    )
    assert whole.std() > 0.02
    assert (whole - parts).abs().max() < 1e-4  # four hundred times less than a level of 255
    assert not torch.allclose(whole, renderer.render(image, regions[:1], method=method), atol=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_tiles_equal_the_whole_by_every_map(
    renderer: TinyRenderer, photo: Tensor, styles: list[Levels], method: str
) -> None:
    image = photo.float() / 255
    whole, parts = (
        each.render(image, [Region(styles[0])], method=method)
        for each in (renderer, replace(renderer, side=60))
    )
    assert (whole - parts).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(144, 200), (139, 193)])
def test_regions_have_moments_of_their_own(
    renderer: TinyRenderer, photo: Tensor, styles: list[Levels], size: tuple[int, int]
) -> None:
    """Against the definition: weighted moments a region, with little of the whole's, one piece.

    What is padded counts for nothing.
    """
    photo = photo[..., : size[0], : size[1]].float() / 255
    pads = (0, -size[1] % 8, 0, -size[0] % 8)
    image = F.pad(photo, pads, mode="reflect")
    true = F.pad(torch.ones(1, 1, *size).double(), pads)
    first, second = (F.pad(mask.float(), pads, mode="reflect") for mask in _masks(*size))
    total = (first.double() + second) / 255
    full = total >= 1 - 4.2 / 255
    maps = torch.cat([first, second], 1) / 255 / torch.where(full, total, 1)
    maps = torch.cat([maps, torch.where(full, 0, 1 - total)], 1)
    network = renderer.network
    with torch.inference_mode():
        features = network.encode(image)
        shares = [F.avg_pool2d(maps, stride) for stride in (4, 8)]
        weights = [
            share * F.avg_pool2d(true, stride) for share, stride in zip(shares, (4, 8), strict=True)
        ]
        levels = [_own(*each) for each in zip(features, weights, strict=True)]
        own = list(zip(*levels, strict=True))
        wanted = [(style[0], style[1]) for style in (*styles, own[2])]
        fine, coarse = (share.float() for share in shares)
        want = network.decode_regions(features, wanted, own, (fine, coarse))
    got = renderer.render(photo, _regions(styles, photo))
    assert (got - want.clamp(0, 1)[..., : size[0], : size[1]]).abs().max() < 1e-4


def _own(x: Tensor, shares: Tensor) -> list[Moments]:
    """Weighted mean and variance, in float64, moved a little towards the whole picture's."""
    samples, weights = x[0].double().flatten(1), shares[0].flatten(1)
    channels, out = len(samples), []
    for weight in weights:
        borrowed = (channels / (weight.sum() + channels)) ** 2
        density = (1 - borrowed) * weight / weight.sum() + borrowed * weights.sum(0) / weights.sum()
        mean = (samples * density).sum(1)
        var = ((samples - mean[:, None]) ** 2 * density).sum(1)
        out.append(Moments(torch.ones(1), mean[None].float(), var[None].float()))
    return out


def test_a_mask_of_everything_is_no_mask(
    renderer: TinyRenderer, photo: Tensor, styles: list[Levels]
) -> None:
    white = torch.full((1, 1, *photo.shape[2:]), 255, dtype=torch.uint8)
    want = renderer.render(photo, [Region(styles[0])])
    assert torch.equal(renderer.render(photo, [Region(styles[0], white)]), want)
    nothing = Region(styles[1], torch.zeros_like(white))
    assert torch.equal(renderer.render(photo, [Region(styles[0], white), nothing]), want)


def test_the_order_of_regions_does_not_matter(
    renderer: TinyRenderer, photo: Tensor, styles: list[Levels]
) -> None:
    regions, image = _regions(styles, photo), photo.float() / 255
    there, back = (renderer.render(image, each) for each in (regions, regions[::-1]))
    assert (there - back).abs().max() < 1e-5


def test_no_seam_where_a_soft_mask_begins(renderer: TinyRenderer, styles: list[Levels]) -> None:
    """On an even texture the brightness of columns moves from one style to the other step by step.

    Two pictures pasted along the same hard edge jump at once.
    """
    torch.manual_seed(1)
    image = 0.4 + 0.2 * torch.rand(1, 3, 64, 320)
    ramp = ((torch.arange(320.0) - 96) / 128).clamp(0, 1).expand(1, 1, 64, 320)
    drawn = renderer.render(image, [Region(styles[0], ramp), Region(styles[1], 1 - ramp)])
    columns = drawn.mean((0, 1, 2)).unfold(0, 8, 8).mean(1)[2:-2]
    change, steps = (columns[0] - columns[-1]).abs(), columns.diff().abs()
    assert change > 0.02
    assert steps.max() < 0.35 * change


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_regions_in_half_precision_are_close(
    renderer: TinyRenderer, photo: Tensor, styles: list[Levels], dtype: torch.dtype
) -> None:
    """A flat region's features are divided by almost nothing elsewhere; nothing may overflow."""
    image = photo.float() / 255
    image[..., 100:] = 0.5
    flat = torch.zeros(1, 1, *photo.shape[2:])
    flat[..., 120:] = 1
    regions = [Region(styles[0], flat), Region(styles[1], 1 - flat)]
    half = TinyRenderer(AdainTiny(8, 8, 4).eval(), CPU)
    half.network.load_state_dict(renderer.network.state_dict())
    half.network.to(dtype)
    got, want = (each.render(image, regions) for each in (half, renderer))
    assert bool(got.isfinite().all())
    assert (got - want).abs().mean() < 0.02


def test_the_result_lies_in_memory_as_the_picture_does(
    renderer: TinyRenderer, photo: Tensor, styles: list[Levels]
) -> None:
    """So that turning it into rows of pixels again copies nothing."""
    drawn = renderer.render(photo, [Region(styles[0])])
    assert drawn.permute(0, 2, 3, 1).is_contiguous()
    plain = renderer.render(photo.contiguous(), [Region(styles[0])])
    assert plain.is_contiguous()
    assert torch.equal(plain, drawn)


class _Largest(TorchDispatchMode):
    """The most elements that a floating tensor had that was made under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("masked", [False, True])
def test_no_floating_copy_of_the_whole_is_made(
    renderer: TinyRenderer, styles: list[Levels], monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    monkeypatch.setattr(render, "RECEPTIVE_FIELD", 16)
    monkeypatch.setattr(render, "_KEPT", 0)
    torch.manual_seed(0)
    image = (255 * torch.rand(1, 3, 515, 518)).to(torch.uint8)
    regions = _regions(styles, image) if masked else [Region(styles[0])]
    with _Largest() as largest:
        replace(renderer, side=64).render(image, regions)
    assert 0 < largest.numel < 515 * 518 / 2


def test_a_photo_is_painted_in_its_styles_colours(
    renderer: TinyRenderer, photo: Tensor, styles: list[Levels]
) -> None:
    """The transport of the whole, cut off at 0 and 1; what no mask covers keeps its own."""
    image = photo.float() / 255
    colors = [Moments.of(x, INSTANCE, full=True) for x in (image.sqrt(), 1 - image.flip(1))]
    ramp, disc = (mask / 255 for mask in _masks(*photo.shape[2:]))
    for masks in ([None], [ramp], [ramp, disc]):
        parts = list(zip(styles, masks, colors, strict=False))
        shares = [torch.ones_like(ramp) if mask is None else mask for mask in masks]
        shares = [share / sum(shares).clamp_min(1) for share in shares]
        moved = (1 - sum(shares)) * image
        for share, (_, mask, given) in zip(shares, parts, strict=True):
            own = Moments.of(image, INSTANCE, full=True, weight=mask)
            moved = moved + share * transport(image, own, given, "ot", 1e-3).clamp(0, 1)
        want = renderer.render(moved, [Region(*part[:2]) for part in parts])
        got = replace(renderer, side=64).render(image, [Region(*part) for part in parts])
        assert torch.allclose(got, want, atol=2e-3)
        plain = renderer.render(image, [Region(*part[:2]) for part in parts])
        assert (got - plain).abs().mean() > 0.01
    seen: list[int] = []
    renderer.render(
        image, [Region(styles[0], None, colors[0])], steady=lambda i, m: seen.append(i) or m
    )
    assert seen == [0, 1, 2]


def test_detail_is_taken_from_what_is_painted(
    renderer: TinyRenderer, photo: Tensor, styles: list[Levels]
) -> None:
    image, region = photo.float() / 255, [Region(styles[0])]
    plain = renderer.render(image, region)
    want = mix_detail(plain, image, 0.6).clamp(0, 1)
    for side in (None, 64):
        got = replace(renderer, side=side).render(image, region, detail=0.6)
        # what pads the picture to whole cells counts at its right and lower edge
        assert torch.allclose(got[..., :-2, :-2], want[..., :-2, :-2], atol=1e-4)
    assert (plain - want).abs().mean() > 0.005


def test_steady_moments_stand_for_the_contents(
    renderer: TinyRenderer, photo: Tensor, styles: list[Levels]
) -> None:
    seen: list[tuple[int, int]] = []

    def same(level: int, measured: Moments) -> Moments:
        seen.append((level, measured.mean.shape[1]))
        return measured

    def of_another(level: int, measured: Moments) -> Moments:
        return styles[1][level - 1].diagonal()

    image, region = photo.float() / 255, [Region(styles[0])]
    assert torch.equal(renderer.render(image, region, steady=same), renderer.render(image, region))
    assert seen == [(1, 8), (2, 8)]
    with torch.inference_mode():
        padded = F.pad(image, (0, 5, 0, 3), mode="reflect")
        features, known = renderer.network.encode(padded), (styles[1][0], styles[1][1])
        want = renderer.network.decode(features, (styles[0][0], styles[0][1]), known)
    got = renderer.render(image, region, steady=of_another)
    assert (got - want[..., :149, :203].clamp(0, 1)).abs().max() < 1e-4
    with pytest.raises(InputError, match="leave out the masks"):
        renderer.render(photo, _regions(styles, photo), steady=same)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: {"regions": r, "method": "woc"}, "unknown method 'woc'"),
        (lambda r: {"regions": [replace(r[0], mask=None), r[1]]}, "mask none: must be"),
    ],
)
def test_what_cannot_be_rendered_says_why(
    renderer: TinyRenderer,
    photo: Tensor,
    styles: list[Levels],
    change: Callable[[list[Region]], dict[str, Any]],
    match: str,
) -> None:
    with pytest.raises(InputError, match=match):
        renderer.render(photo, **change(_regions(styles, photo)))


def test_moments_of_one_piece_and_of_tiles_agree(renderer: TinyRenderer, photo: Tensor) -> None:
    with torch.inference_mode():
        image = photo[..., :144, :200]
        want = moments(renderer.network.encode(image), full=True)
    for got, level in zip(replace(renderer, side=64).measure(image), want, strict=True):
        assert got.cov is not None
        assert level.cov is not None
        assert torch.allclose(got.mean, level.mean, atol=1e-4)
        assert torch.allclose(got.cov, level.cov, atol=1e-4)
