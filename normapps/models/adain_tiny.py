"""The stylizer's own network: encoder, two AdaIN levels, decoder, all at ¼ and ⅛ resolution.

Pixel-unshuffle and pixel-shuffle replace the full-resolution convolutions that cost MicroAST
(Wang et al., AAAI 2023) a third of its time; the residual blocks of the decoder are modulated by a
small network that reads the style's moments, as there. Spatial statistics enter at the two AdaIN
levels only, both measured on the encoder alone, so that tiles of a picture rendered with the
moments of the whole equal the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..norm import INSTANCE, Moments, transfer

Levels = tuple[Moments, Moments]
"""Instance moments at ¼ and ⅛ resolution."""

Film = tuple[Tensor, Tensor]
"""Scale and shift of the channels inside a block (FiLM): (N, C) each, or maps (N, C, H, W)."""

STRIDES = (4, 8)
STRIDE = 8
"""Sizes given to `AdainTiny.encode` must be multiples of it."""

RECEPTIVE_FIELD = 96
"""A cell of 8×8 output pixels depends on no input further from its edges, but for the moments."""

REPLAYED = ("encode", "finish")
"""Methods of `AdainTiny` that are functions of tensors alone (see `engine.capture`)."""


class AdainTiny(nn.Module):
    """Arbitrary style transfer by adaptive instance normalization in half a million parameters.

    Args:
        width: channels at ¼ resolution.
        deep: channels at ⅛ resolution.
        hidden: units of the network that predicts the decoder's modulation from the style.
    """

    def __init__(self, width: int = 48, deep: int = 72, hidden: int = 128) -> None:
        super().__init__()
        self.width, self.deep = width, deep
        self.stem = _conv(48, width)
        self.fine = _Residual(width)
        self.down = _conv(width, deep, stride=2)
        self.coarse = _Residual(deep)
        self.coarse_decoder = nn.ModuleList([_Residual(deep), _Residual(deep)])
        self.up = _conv(deep, width)
        self.fine_decoder = nn.ModuleList([_Residual(width)])
        self.shuffle_half = _conv(width, 4 * 16)
        self.shuffle_full = _conv(16, 4 * 8)
        self.image = _conv(8, 3)
        modulated = [deep, deep, width, 4 * 16]
        self.modulation = _Modulation(2 * (width + deep), hidden, modulated)
        for shuffled in (self.shuffle_half, self.shuffle_full):
            _icnr_(shuffled.weight, 4)
        nn.init.normal_(self.image.weight, std=0.02)
        nn.init.constant_(self.image.bias, 0.5)  # type: ignore[arg-type]

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features at ¼ and ⅛ resolution.

        Args:
            image: (N, 3, H, W) sRGB, uint8 or float in [0, 1]; H and W multiples of 8, at
                least 16.
        """
        cells = _unshuffle(image, 4).to(self.stem.weight.dtype)
        cells = cells.mul_(2 / 255 if image.dtype == torch.uint8 else 2.0).sub_(1)
        x = F.relu_(self.stem(cells))
        fine = self.fine(x)
        return fine, self.coarse(F.relu_(self.down(F.relu(fine))))

    def decode(
        self,
        features: tuple[Tensor, Tensor],
        style: Levels,
        own: Levels | None = None,
        method: str = "adain",
    ) -> Tensor:
        """Render features with another style's moments.

        Args:
            features: what `encode` returned.
            style: moments to give to the features, of one style or of N.
            own: the features' own moments where they are known.
            method: `adain`, or `wct`, `ot` or `cholesky`, for which all moments must be full (see
                `norm.transfer`).

        Returns:
            (N, 3, H, W) image, about [0, 1]; not clamped.
        """
        own_fine, own_coarse = own or (None, None)
        fine = transfer(features[0], style[0], method, own_fine)
        coarse = transfer(features[1], style[1], method, own_coarse)
        return self.finish(fine, coarse, self.modulation(numbers_of(style)))

    def decode_regions(
        self,
        features: tuple[Tensor, Tensor],
        styles: Sequence[Levels],
        own: Sequence[Levels],
        shares: tuple[Tensor, Tensor],
        method: str = "adain",
    ) -> Tensor:
        """Render features with the moments of several styles, each where it has a share.

        Args:
            features: what `encode` returned, (1, C, H, W) at each level.
            styles: moments to give to the features, one for each of K regions.
            own: the features' own moments in each region.
            shares: (1, K, H, W) at ¼ and ⅛ resolution, which sum to 1 at every position.
            method: see `decode`.

        Returns:
            (1, 3, H, W) image, about [0, 1]; not clamped.
        """
        fine, coarse = (
            _blended(x, [s[i] for s in styles], [o[i] for o in own], shares[i], method)
            for i, x in enumerate(features)
        )
        given = [self.modulation(numbers_of(style)) for style in styles]
        by_block = zip(zip(*given, strict=True), (1, 1, 0, 0), strict=True)
        films = [_film_map(parts, shares[level]) for parts, level in by_block]
        return self.finish(fine, coarse, films)

    def finish(self, fine: Tensor, coarse: Tensor, films: Sequence[Film]) -> Tensor:
        """Render features that have the style's moments: (N, 3, H, W), plane after plane."""
        return F.pixel_shuffle(self.squares(fine, coarse, films).contiguous(), 2)

    def squares(self, fine: Tensor, coarse: Tensor, films: Sequence[Film]) -> Tensor:
        """Render features that have the style's moments, squares of four pixels as channels.

        Args:
            fine, coarse: features at ¼ and ⅛ resolution.
            films: what `modulation` predicts from the style.

        Returns:
            (N, 12, H/2, W/2): channels are colour, row and column of a pixel in its square, as
            `F.pixel_shuffle` takes them.
        """
        x = coarse
        for block, film in zip(self.coarse_decoder, films[:2], strict=True):
            x = block(x, film)
        x = F.interpolate(self.up(F.relu(x)), scale_factor=2, mode="bilinear")
        x = self.fine_decoder[0](x + fine, films[2])
        x = F.pixel_shuffle(F.relu_(_modulate(self.shuffle_half(F.relu(x)), films[3])), 2)
        x = F.pad(F.relu_(self.shuffle_full(x)), (1, 1, 1, 1), mode="replicate")
        weight, bias = self.image.weight, self.image.bias
        return F.conv2d(x, _half_resolution(weight), bias.repeat_interleave(4))  # type: ignore[union-attr]

    def forward(
        self, content: Tensor, style: Tensor, method: str = "adain"
    ) -> tuple[Tensor, Tensor]:
        """Stylize and, for training, reconstruct.

        Args:
            content: (N, 3, H, W) in [0, 1].
            style: (N, 3, H', W') in [0, 1].
            method: see `decode`.

        Returns:
            The N stylized images, and the first content rendered with its own moments.
        """
        features = self.encode(content)
        wanted = moments(self.encode(style), full=method != "adain")
        stylized = self.decode(features, wanted, method=method)
        first = (features[0][:1], features[1][:1])
        return stylized, self.decode(first, moments(first))


def moments(
    features: Sequence[Tensor],
    weights: Sequence[Tensor | None] = (None, None),
    full: bool = False,
) -> Levels:
    """Measure the instance moments of the features of both levels, with covariances if `full`."""
    fine, coarse = (
        Moments.of(x, INSTANCE, full=full, weight=w) for x, w in zip(features, weights, strict=True)
    )
    return fine, coarse


def numbers_of(style: Levels) -> Tensor:
    """Return (N, 2·(width + deep)) means and deviations of both levels: what `modulation` reads."""
    return torch.cat([x for part in style for x in (part.mean, part.std(1e-5))], 1)


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), the inner features scaled and shifted by a condition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = _conv(channels, channels)

    def forward(self, x: Tensor, film: Film | None = None) -> Tensor:
        inner = _modulate(self.first(F.relu(x)), film)
        out: Tensor = x + self.second(F.relu_(inner))
        return out


class _Modulation(nn.Module):
    """Predict scale and shift of the decoder's channels from the style's means and deviations."""

    def __init__(self, inputs: int, hidden: int, outputs: Sequence[int]) -> None:
        super().__init__()
        self.outputs = [2 * channels for channels in outputs]
        self.body = nn.Linear(inputs, hidden)
        self.heads = nn.Linear(hidden, sum(self.outputs))
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    def forward(self, numbers: Tensor) -> list[Film]:
        films = self.heads(F.relu(self.body(numbers.to(self.body.weight.dtype))))
        scales_and_shifts = (film.chunk(2, 1) for film in films.split(self.outputs, 1))
        return [(scale, shift) for scale, shift in scales_and_shifts]


def _unshuffle(image: Tensor, side: int) -> Tensor:
    """Pixel-unshuffle into a channels_last tensor, in one copy and before any cast."""
    n, c, h, w = image.shape
    if side == 4 and _is_plain(image):
        # four neighbours in a row move as one number of their size, which is quicker
        rows = image.view(torch.complex128).view(n, c, h // side, side, w // side)
        moved = rows.permute(0, 2, 4, 1, 3).contiguous().view(torch.float32)
        return moved.view(n, h // side, w // side, c * side**2).permute(0, 3, 1, 2)
    cells = image.reshape(n, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(n, h // side, w // side, c * side**2).permute(0, 3, 1, 2)


def _is_plain(image: Tensor) -> bool:
    """Whether a picture may be read as numbers of four times the size; Metal has none of them."""
    return (
        image.device.type == "cpu"
        and image.dtype == torch.float32
        and image.is_contiguous()
        and image.storage_offset() % 4 == 0
        and not image.requires_grad
        and not torch.compiler.is_exporting()
    )


def _modulate(x: Tensor, film: Film | None) -> Tensor:
    if film is None:
        return x
    scale, shift = (part if part.dim() == 4 else part[..., None, None] for part in film)
    return torch.addcmul(shift, x, 1 + scale)


def _blended(
    x: Tensor, styles: Sequence[Moments], own: Sequence[Moments], shares: Tensor, method: str
) -> Tensor:
    """Move features to each style's moments and blend by (1, K, H, W) shares, in float32.

    Far from its region a map may send features beyond what half precision holds.
    """
    precise, out = x.float(), torch.zeros_like(x, dtype=torch.float32)
    for style, part, share in zip(styles, own, shares.split(1, 1), strict=True):
        out.addcmul_(transfer(precise, style, method, part), share)
    return out.to(x.dtype)


def _film_map(films: Sequence[Film], shares: Tensor) -> Film:
    """Blend modulations, (1, C) each, into maps (1, C, H, W)."""
    shares = shares.to(films[0][0].dtype)
    scale, shift = (
        torch.einsum("kc,nkhw->nchw", torch.cat(parts), shares)
        for parts in zip(*films, strict=True)
    )
    return scale, shift


def _half_resolution(weight: Tensor) -> Tensor:
    """Write a 3×3 convolution of a pixel-shuffled picture as one of the picture before it.

    There it needs neither the shuffle nor the padding of the whole, and has channels enough to be
    quick. With edge padding it equals shuffling, reflecting the edge by one pixel and convolving:
    the pixel beside the edge is the one of the other phase in the outermost square, which is what
    repeating that square gives.

    Args:
        weight: (O, I, 3, 3).

    Returns:
        (4·O, 4·I, 3, 3); the result is to be shuffled.
    """
    outputs, inputs = weight.shape[:2]
    places = product(range(2), range(2))
    moved = [F.pad(weight, (1 + dx, 2 - dx, 1 + dy, 2 - dy)) for dy, dx in places]
    squares = torch.stack(moved, 1).reshape(4 * outputs, inputs, 3, 2, 3, 2)
    return squares.permute(0, 1, 3, 5, 2, 4).reshape(4 * outputs, 4 * inputs, 3, 3)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, padding_mode="reflect")
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


@torch.no_grad()
def _icnr_(weight: Tensor, copies: int) -> None:
    """Make a pixel-shuffle start as nearest-neighbour upsampling (Aitken et al. 2017)."""
    weight.copy_(weight[::copies].repeat_interleave(copies, 0))
