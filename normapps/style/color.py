"""Colours: a photo's kept under a painting's strokes, or a painting's given to the photo alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.color import LUMA
from ..errors import InputError
from ..norm import INSTANCE, Moments, merge, transport, transport_matrix
from .regions import Shares
from .rendering import Region, Steady, as_dtype

MODES = ("none", "luma", "transport")

_RIDGE = 1e-3
"""Keeps the noise of a grey photo, whose chroma hardly varies, from getting a painting's range."""

_BAND = 1 << 19
"""Pixels that are computed on at once."""


def preserve_color(output: Tensor, content: Tensor, mode: str) -> Tensor:
    """Give a stylized image colours of its content.

    Bands of rows are computed on, so that memory does not grow with the picture but for the result.

    Args:
        output, content: (N, 3, H, W) sRGB, uint8 or float in [0, 1].
        mode: `none`; `luma` keeps the content's chroma (BT.601) under the output's brightness;
            `transport` moves the output's colour mean and covariance to the content's by the
            optimal map, so that new tones stay possible. (Gatys et al. 2016 recolour the style
            image before stylizing; recolouring the result serves stored styles and blends too.)

    Returns:
        (N, 3, H, W) of the dtype of `output`, float in [0, 1].
    """
    if mode == "none":
        return output
    if mode not in MODES:
        raise InputError(f"preserve_color '{mode}': choose one of {', '.join(MODES)}")
    moved = mode == "transport"
    own, wanted = (measure_colors(x) if moved else None for x in (output, content))
    out = torch.empty_like(output)
    for band in bands(output):
        drawn, photo = (rows_of(x, band, output) for x in (output, content))
        if own is None or wanted is None:
            colored = _with_chroma(drawn, photo)
        else:
            colored = transport(drawn, own, wanted, "ot", 1e-4)
        out[..., band, :] = as_dtype(colored.clamp(0, 1), output.dtype)
    return out


def measure_colors(
    image: Tensor, mask: Tensor | None = None, device: torch.device | None = None
) -> Moments:
    """Return the full moments of a picture's RGB values in [0, 1], taken by bands.

    Args:
        image: (1, 3, H, W) uint8, or float in [0, 1].
        mask: (1, 1, H, W) weights of the pixels, uint8 or float in [0, 1]; None: all alike.
        device: where to compute; the picture's own by default.
    """
    device = device or image.device
    return merge(
        Moments.of(
            rows_of(image, band, image).to(device),
            INSTANCE,
            full=True,
            weight=None if mask is None else rows_of(mask, band, image).to(device),
        )
        for band in bands(image)
    )


def move_colors(
    image: Tensor,
    regions: Sequence[tuple[Moments, Tensor | None]],
    alpha: float = 1.0,
    steady: Steady | None = None,
) -> Tensor:
    """Give a photo a painting's colours and change nothing else of it.

    One affine map of colours a region: the optimal transport from the region's mean and covariance
    of RGB to the painting's (Pitié & Kokaram 2007, the Monge–Kantorovitch map), with a ridge. It is
    taken in sRGB as it is stored: in linear light shadows lose their drawing, and Oklab showed no
    gain (`docs/photo-mode.md`). Memory does not grow with the picture, but for the result.

    Args:
        image: (1, 3, H, W) uint8, or float in [0, 1].
        regions: full moments of the RGB values in [0, 1] that each region is to get, and its mask,
            (1, 1, H, W) uint8 or float in [0, 1], None for the whole picture. Where masks overlap,
            they share in proportion; what none covers stays as it is.
        alpha: 0 returns the picture, 1 has the painting's colours; between lies the geodesic.
        steady: called with each region's number and the moments of its colours; what it returns
            stands for them (see `rendering.Steady`).

    Returns:
        (1, 3, H, W) of the dtype and device of `image`, float in [0, 1] (see `into_gamut`).
    """
    own = [measure_colors(image, mask) for _, mask in regions]
    if steady is not None:
        own = [steady(i, measured) for i, measured in enumerate(own)]
    wanted = [colors.to(image.device) for colors, _ in regions]
    pairs = list(zip(own, wanted, strict=True))
    out = torch.empty_like(image)
    for band in bands(image):
        photo = rows_of(image, band, image)
        masks = [None if mask is None else rows_of(mask, band, image) for _, mask in regions]
        parts = [into_gamut(transport(photo, *pair, "ot", _RIDGE, alpha)) for pair in pairs]
        out[..., band, :] = as_dtype(blend_regions(parts, masks, photo), image.dtype)
    return out


@dataclass(frozen=True)
class _ColorMap:
    """The optimal transport of colours as matrix·x + shift.

    The mean is part of the shift: with a ridge as wide as ours nothing is lost by that, and a pass
    over the photo is saved.

    Attributes:
        matrix, shift: (N, 3, 3) and (N, 3, 1), one for each picture of a batch.
    """

    matrix: Tensor
    shift: Tensor

    @classmethod
    def between(cls, own: Moments, wanted: Moments, method: str, alpha: float = 1.0) -> _ColorMap:
        matrix = transport_matrix(own, wanted, method, _RIDGE)
        matrix = torch.lerp(torch.eye(3).to(matrix), matrix, alpha)
        mean = torch.lerp(own.mean, wanted.mean.to(own.mean), alpha)[..., None]
        return cls(matrix, mean - matrix @ own.mean[..., None])

    def apply(self, photos: Tensor) -> Tensor:
        """Return (N, 3, H, W) in new colours, cut off at 0 and 1; fastest plane after plane."""
        moved = torch.baddbmm(self.shift, self.matrix, photos.flatten(2))
        return moved.view_as(photos).clamp_(0, 1)


@dataclass(frozen=True)
class ColorMoves:
    """What gives a photo that is to be painted the colours of styles, tile by tile.

    As `move_colors`, but values outside [0, 1] are cut off: a hue that this turns is painted over,
    and looked after it would take as long as all the rest.

    Attributes:
        maps: one a region.
    """

    maps: Sequence[_ColorMap]

    @classmethod
    def of(
        cls,
        image: Tensor,
        regions: Sequence[Region],
        alpha: float,
        steady: Steady | None,
        device: torch.device,
    ) -> ColorMoves | None:
        """Measure a picture; None where a region has no colours to give.

        Args:
            image: (1, 3, H, W) uint8, or float in [0, 1].
            regions: of the picture.
            alpha: 0 changes nothing, 1 gives the styles' colours.
            steady: see `move_colors`.
            device: where to compute.
        """
        # eigenvalues would let the host wait for a CUDA device
        method, maps = "newton" if device.type == "cuda" else "ot", []
        for i, region in enumerate(regions):
            if region.colors is None:
                return None
            own = measure_colors(image, region.mask, device)
            own = own if steady is None else steady(i, own)
            maps.append(_ColorMap.between(own, region.colors.to(device), method, alpha))
        return cls(maps)

    def apply(self, photo: Tensor, shares: Shares) -> Tensor:
        """Return a part of the photo, (1, 3, h, w) float in [0, 1], in its new colours.

        Args:
            photo: the part, fastest plane after plane.
            shares: of the regions in it; one more than there are maps keeps its colours.
        """
        maps = (self.maps[i] if i < len(self.maps) else None for i in shares.regions)
        parts = [photo if each is None else each.apply(photo) for each in maps]
        if shares.maps is None:
            return parts[0]
        weights = shares.maps.split(1, 1)
        return torch.stack([x * w for x, w in zip(parts, weights, strict=True)]).sum(0)


def pair_colors(photos: Tensor, paintings: Tensor, method: str = "ot") -> Tensor:
    """Give each photo of a batch the colours of the painting of its number, as `ColorMoves` does.

    Args:
        photos: (N, 3, H, W) float in [0, 1].
        paintings: (N, 3, H', W') likewise, or one for all.
        method: `ot`, or `newton` for runtimes without eigenvalues (see `norm.transport`).

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    own, wanted = (Moments.of(x, INSTANCE, full=True) for x in (photos, paintings))
    return _ColorMap.between(own, wanted, method).apply(photos)


def into_gamut(image: Tensor) -> Tensor:
    """Bring colours into [0, 1], which those that lie there do not notice.

    Half way between cutting off each channel, which keeps a colour strong but turns its hue, and
    shrinking its chroma at the same luma, which keeps the hue but pales it.

    Args:
        image: (N, 3, H, W), any values.
    """
    luma = _luma(image)
    pale = _shrunk(luma.clamp(0, 1), image - luma)
    return torch.lerp(image.clamp(0, 1), pale, 0.5).clamp(0, 1)


def blend_regions(parts: Sequence[Tensor], masks: Sequence[Tensor | None], photo: Tensor) -> Tensor:
    """Blend what regions became by their masks; the photo where there is none."""
    if masks[0] is None:
        return parts[0]
    known = [mask for mask in masks if mask is not None]
    total = torch.stack(known).sum(0)
    blended = torch.stack([x * mask for x, mask in zip(parts, known, strict=True)]).sum(0)
    return torch.where(total > 0, blended / total.clamp_min(1e-6), photo)


def bands(image: Tensor) -> Iterator[slice]:
    """Yield the rows of a picture in bands that are computed on at once."""
    height, width = image.shape[2:]
    rows = max(1, _BAND // width)
    return (slice(top, min(top + rows, height)) for top in range(0, height, rows))


def rows_of(x: Tensor, band: slice, like: Tensor) -> Tensor:
    """Return rows of a picture or mask in [0, 1], float32, or float64 if the picture is.

    Plane after plane, as colours are computed on several times faster than pixel after pixel.
    """
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    return as_dtype(x[..., band, :].to(like.device).contiguous(), dtype)


def _with_chroma(output: Tensor, content: Tensor) -> Tensor:
    """Shift each pixel of the content along grey until it has the output's luma."""
    return _shrunk(_luma(output), content - _luma(content))


def _shrunk(luma: Tensor, chroma: Tensor) -> Tensor:
    """Add chroma to luma; where that leaves the gamut, just so much of it that it stays inside."""
    room = torch.where(chroma > 0, 1 - luma, luma) / chroma.abs().clamp_min(1e-6)
    return luma + chroma * room.amin(1, keepdim=True).clamp(max=1)


def _luma(image: Tensor) -> Tensor:
    weights = image.new_tensor(LUMA).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)
