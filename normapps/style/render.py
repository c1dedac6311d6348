"""Rendering one picture of any size with a network and styles.

Two passes: the content's moments over all tiles, merged (Chan), then the tiles drawn with the
moments of the whole, so that tiled and untiled are the same picture. Of several regions each has
moments of its own (see `style.regions`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError, unknown
from ..models.adain_tiny import RECEPTIVE_FIELD, STRIDE, STRIDES, AdainTiny, moments
from ..models.adain_tiny import Levels as TwoLevels
from ..norm import part_way
from .color import ColorMoves
from .detail import mix_detail
from .regions import Layout, Shares, reduced, settle
from .rendering import Levels, Region, Steady, as_dtype
from .stylize_options import DETAIL, METHODS
from .tiles import Padded, Tile, coverage, tiles

Result = TypeVar("Result")
Features = tuple[Tensor, Tensor]

_LEAST = 2 * STRIDE
_WHOLE = 2_000_000
"""Pixels up to which a picture is rendered in one piece."""
_SIDE, _LEAST_SIDE = 1024, 128
_STEP = 16
"""Sides are multiples of the largest stride of any network."""
_KEPT = 32_000_000
"""Pixels up to which all features stay in memory between the passes; beyond, computed twice."""


@dataclass(frozen=True)
class TinyRenderer:
    """`AdainTiny` on a device: the `Renderer` of our own network.

    Attributes:
        network: in evaluation mode and any precision; moments are float32 at least.
        device: where the network lies.
        side: of the tiles in pixels, rounded up to a multiple of 8; None tiles large pictures only.
    """

    network: AdainTiny
    device: torch.device
    side: int | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the maps that it draws with."""
        return METHODS

    @property
    def detail(self) -> float:
        """The share that suits the shipped network."""
        return DETAIL

    def measure(self, image: Tensor) -> Levels:
        """Return the full moments of a picture's features at both levels; see `Renderer`."""
        whole = Layout((), False)
        return smaller(
            self._tile_side(image),
            lambda side: _measure(self, _Work.of(image, whole, side), full=True)[0],
        )

    def render(
        self,
        image: Tensor,
        regions: Sequence[Region],
        *,
        alpha: float = 1.0,
        method: str = "adain",
        steady: Steady | None = None,
        detail: float = 0.0,
    ) -> Tensor:
        """Draw a picture with the moments of styles; see `Renderer`.

        The photo that is drawn has the colours of each region's style already (`Region.colors`).

        Of what the network cannot reconstruct of the picture, 1−alpha is added back, so that
        strength 0 returns the picture itself; strengths below 1 draw every tile twice for it.
        """
        if method not in self.methods:
            raise unknown("method", method, self.methods)
        layout = Layout.of([region.mask for region in regions], image, STRIDE, _LEAST)
        if steady and layout.count > 1:
            raise InputError("a video is painted with one style everywhere; leave out the masks")
        photo = image if self._tile_side(image) else self._staged(image)
        moves = ColorMoves.of(photo, regions, alpha, steady, self.device)
        job = _Job([region.style for region in regions], alpha, method, steady, detail)
        out = torch.empty_like(image)  # in the layout of its memory
        return smaller(
            self._tile_side(image),
            lambda side: _render(self, _Work.of(photo, layout, side, moves), job, out),
        )

    def _staged(self, image: Tensor) -> Tensor:
        """A picture as all its passes want it: float32 in [0, 1], plane after plane."""
        return as_dtype(image.to(self.device).contiguous(), torch.float32)

    def _tile_side(self, image: Tensor) -> int:
        if self.side is not None:
            return -(-self.side // STRIDE) * STRIDE
        return _SIDE if image.shape[2] * image.shape[3] > _WHOLE else 0


@dataclass(frozen=True)
class _Job:
    """What is wanted of a picture; see `Renderer.render`."""

    styles: Sequence[Levels]
    alpha: float
    method: str
    steady: Steady | None
    detail: float


@dataclass(frozen=True)
class _Work:
    """A picture under its masks, cut into tiles; features that fit are kept between the passes."""

    image: Tensor
    padded: Padded
    layout: Layout
    side: int
    moves: ColorMoves | None = None
    shown: dict[Tile, Tensor] = field(default_factory=dict)
    kept: dict[Tile, Features] = field(default_factory=dict)

    @classmethod
    def of(cls, image: Tensor, layout: Layout, side: int, moves: ColorMoves | None = None) -> _Work:
        return cls(image, Padded(image, STRIDE, _LEAST), layout, side, moves)

    def tiles(self) -> Iterator[Tile]:
        height, width = self.padded.shape
        return tiles(height, width, self.side or max(height, width), RECEPTIVE_FIELD)

    def features(self, renderer: TinyRenderer, tile: Tile) -> Features:
        if tile in self.kept:
            return self.kept.pop(tile)
        return renderer.network.encode(self.photo(renderer, tile))

    def photo(self, renderer: TinyRenderer, tile: Tile) -> Tensor:
        """The outer part of a tile on the device, in the colours that the network is to paint."""
        if tile in self.shown:
            return self.shown.pop(tile)
        cut = self.padded.cut(tile).to(renderer.device)
        if self.moves is None:
            return cut
        shares = self.layout.cut(tile, renderer.device)
        photo = self.moves.apply(as_dtype(cut.contiguous(), torch.float32), shares)
        if not self.side:  # one piece, which is drawn next
            self.shown[tile] = photo
        return photo

    def keep(self, tile: Tile, features: Features) -> None:
        if self.image.shape[2] * self.image.shape[3] <= _KEPT:
            self.kept[tile] = features

    def coverage(self, tile: Tile, stride: int, device: torch.device) -> Tensor | None:
        """Shares of cells that lie in the true picture; None where all do."""
        height, width = self.image.shape[2:]
        if self.padded.shape == (height, width):
            return None
        return coverage((height, width), tile.inner, stride).to(device)


def _render(renderer: TinyRenderer, work: _Work, job: _Job, out: Tensor) -> Tensor:
    """Draw tile after tile into `out`, (1, 3, H, W) uint8 or float in [0, 1], and return it."""
    own = _own(renderer, work, job)
    wanted = _wanted(own, job, renderer.device)
    height, width = out.shape[2:]
    for tile in work.tiles():
        features, shares = work.features(renderer, tile), work.layout.cut(tile, renderer.device)
        drawn = _decode(renderer, features, wanted, own, shares, job.method)
        photo = as_dtype(work.photo(renderer, tile), torch.float32)
        if job.alpha < 1:
            same = _decode(renderer, features, own, own, shares, "adain")
            drawn = drawn + (1 - job.alpha) * (photo - same)
        drawn = tile.crop(mix_detail(drawn.clamp_(0, 1), photo, job.detail))
        top, bottom, left, right = tile.inner
        place = out[..., top:bottom, left:right]
        place.copy_(as_dtype(drawn.clamp_(0, 1), out.dtype)[..., : height - top, : width - left])
    return out


def _own(renderer: TinyRenderer, work: _Work, job: _Job) -> list[TwoLevels]:
    """The content's moments in each region, as the job has them."""
    own = _measure(renderer, work, full=job.method != "adain", keep=True)
    if job.steady is None:
        return own
    fine, coarse = own[0]
    return [(job.steady(1, fine), job.steady(2, coarse))]


def _wanted(own: Sequence[TwoLevels], job: _Job, device: torch.device) -> list[TwoLevels]:
    """The moments to give to each region; what no mask covers keeps its own."""
    wanted = []
    for part, style in zip(own, job.styles, strict=False):
        # a few kilobytes, staged at once: the host need not wait for the device
        fine, coarse = (level.to(device, non_blocking=True) for level in style)
        if job.alpha < 1:
            fine = part_way(part[0], fine, job.alpha, job.method)
            coarse = part_way(part[1], coarse, job.alpha, job.method)
        wanted.append((fine, coarse))
    return [*wanted, *own[len(wanted) :]]


def _measure(
    renderer: TinyRenderer, work: _Work, *, full: bool, keep: bool = False
) -> list[TwoLevels]:
    """Merge the moments of each region over all tiles' true parts, tile by tile.

    One at a time: small tensors kept of every tile would each hold a hole in the heap open.
    """
    known: dict[int, TwoLevels] = {}
    for tile in work.tiles():
        features = work.features(renderer, tile)
        inner = [tile.crop(x, stride) for x, stride in zip(features, STRIDES, strict=True)]
        shares = work.layout.cut(tile, renderer.device)
        covered = [work.coverage(tile, stride, renderer.device) for stride in STRIDES]
        for region, weights in _weights(tile, shares, covered):
            here = moments(inner, weights, full)
            known[region] = _merged(known[region], here) if region in known else here
        if keep:
            work.keep(tile, features)
    if work.layout.count == 1:
        return [known[0]]
    regions = [known.get(i) for i in range(work.layout.count)]
    fine, coarse = (settle([part and part[i] for part in regions]) for i in (0, 1))
    return list(zip(fine, coarse, strict=True))


def _merged(first: TwoLevels, second: TwoLevels) -> TwoLevels:
    return first[0].merge(second[0]), first[1].merge(second[1])


def _weights(
    tile: Tile, shares: Shares, covered: Sequence[Tensor | None]
) -> Iterator[tuple[int, list[Tensor | None]]]:
    """The weights of a tile's inner cells at both levels, for each region in it."""
    if shares.maps is None:
        yield shares.regions[0], list(covered)
        return
    levels = [tile.crop(reduced(shares.maps, stride), stride) for stride in STRIDES]
    for i, region in enumerate(shares.regions):
        yield (
            region,
            [
                level[:, i : i + 1] if part is None else level[:, i : i + 1] * part
                for level, part in zip(levels, covered, strict=True)
            ],
        )


def _decode(
    renderer: TinyRenderer,
    features: Features,
    wanted: Sequence[TwoLevels],
    own: Sequence[TwoLevels],
    shares: Shares,
    method: str,
) -> Tensor:
    """Draw the outer part of a tile with the styles that it holds."""
    styles, parts = ([levels[i] for i in shares.regions] for levels in (wanted, own))
    if shares.maps is None:
        return renderer.network.decode(features, styles[0], parts[0], method).float()
    fine, coarse = (reduced(shares.maps, stride) for stride in STRIDES)
    return renderer.network.decode_regions(features, styles, parts, (fine, coarse), method).float()


def smaller(side: int, work: Callable[[int], Result]) -> Result:
    """Do the work with ever smaller tiles until it fits into the device's memory.

    Args:
        side: of the first tiles in pixels; 0 for the whole picture.
        work: called with the side, and again with half of it, rounded up to a multiple of 16.

    Raises:
        InputError: even tiles of 128 pixels are too large.
    """
    while True:
        try:
            with torch.inference_mode():
                return work(side)
        except torch.OutOfMemoryError as error:
            side = -(-side // (2 * _STEP)) * _STEP if side else _SIDE
            if side < _LEAST_SIDE:
                raise InputError("out of memory on the device; use --device cpu") from error
        torch.cuda.empty_cache()
