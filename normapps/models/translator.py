"""A light generator and a patch discriminator for the translation of pictures without pairs.

Kim et al. 2020, U-GAT-IT. Differs from the paper: no attention by class activation maps, so that
the scale and shift of AdaLIN come from the mean of the features; each AdaLIN has its own; fewer
channels and blocks; and the generator may add to its picture instead of drawing it anew. What is
left is fully convolutional but for that mean: a picture of any size fits.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..norm.layers.adalin import AdaLIN, LayerInstanceNorm
from ..norm.layers.base import AffineNorm
from ..norm.layers.gate import blend, unit_interval
from ..norm.layers.instance import InstanceNorm
from ..norm.moments import Moments
from ..norm.partition import LAYER
from ..norm.pooling import pool
from ..norm.recovery import recover, standardization

STRIDE = 4
"""Sides of a generator's picture are multiples of this many pixels."""

LEAST = 16
"""The shortest side in pixels of a generator's picture, and of a discriminator's of 3 layers."""


class Stage(nn.Module):
    """A convolution, a normalization and a ReLU, at one of the generator's two ends.

    Args:
        inputs, outputs: channels.
        kernel: side of the convolution's kernel, odd; the edge is reflected.
        stride: of the convolution.
        scale: nearest-neighbour enlargement before it.
        norm: the normalization of `outputs` channels, by the moments of a whole picture.
    """

    def __init__(
        self, inputs: int, outputs: int, norm: AffineNorm, kernel: int, stride: int, scale: int
    ) -> None:
        super().__init__()
        self.scale = scale
        self.conv = _conv(inputs, outputs, kernel, stride, bias=False)
        self.norm = norm

    def forward(self, x: Tensor, own: Moments | None = None) -> Tensor:
        """Return the features of (N, inputs, H, W).

        Args:
            x: the features before.
            own: the instance moments of `raw(x)` of the whole picture, of which x is a part;
                measured where not given.
        """
        y = self.raw(x)
        out: Tensor = self.norm(y) if own is None else normalize_by(self.norm, y, own)
        return out

    def raw(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H′, W′) before the normalization."""
        wide = F.interpolate(x, scale_factor=self.scale) if self.scale > 1 else x
        out: Tensor = self.conv(wide)
        return out


class AdalinGenerator(nn.Module):
    """Pictures of one domain to pictures of another, by `adalin_generator`.

    Attributes:
        encoder: three stages that lead to features at a quarter of the resolution.
        decoder: two stages that lead back.
        channels, skip: as given.
    """

    def __init__(self, channels: int, width: int, blocks: int, skip: bool) -> None:
        super().__init__()
        _check(channels=channels, width=width, blocks=blocks)
        self.channels, self.skip = channels, skip
        wide = STRIDE * width
        self.encoder = nn.ModuleList(
            [
                Stage(channels, width, InstanceNorm(width, act=_relu()), 7, 1, 1),
                Stage(width, 2 * width, InstanceNorm(2 * width, act=_relu()), 3, 2, 1),
                Stage(2 * width, wide, InstanceNorm(wide, act=_relu()), 3, 2, 1),
            ]
        )
        self.before = nn.ModuleList([_Block(wide) for _ in range(blocks)])
        self.latent = nn.Sequential(nn.Linear(wide, wide), _relu(), nn.Linear(wide, wide), _relu())
        self.after = nn.ModuleList([_AdaptiveBlock(wide, wide) for _ in range(blocks)])
        self.decoder = nn.ModuleList(
            [
                Stage(wide, 2 * width, LayerInstanceNorm(2 * width, act=_relu()), 3, 1, 2),
                Stage(2 * width, width, LayerInstanceNorm(width, act=_relu()), 3, 1, 2),
            ]
        )
        self.image = _conv(width, channels, 7)
        if skip:  # an untrained one then leaves pictures as they are
            nn.init.zeros_(self.image.weight)
            nn.init.zeros_(self.image.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Translate pictures.

        Args:
            x: (N, channels, H, W) in [−1, 1], sides multiples of `STRIDE` and at least `LEAST`.

        Returns:
            The same shape, about [−1, 1]; with `skip` not clamped.

        Raises:
            InputError: another number of channels, or a side that does not fit.
        """
        _check_picture(x, self.channels)
        features = x
        for stage in self.encoder:
            features = stage(features)
        features = self.transform(features)
        for stage in self.decoder:
            features = stage(features)
        return self.draw(features, x)

    def transform(self, features: Tensor) -> Tensor:
        """Translate features (N, 4·width, H/4, W/4) of whole pictures."""
        for block in self.before:
            features = block(features)
        latent = self.latent(features.mean((2, 3)))
        for block in self.after:
            features = block(features, latent)
        return features

    def draw(self, features: Tensor, x: Tensor) -> Tensor:
        """Return the picture of the decoder's features (N, width, H, W), given the one before."""
        change: Tensor = self.image(features)
        return x + change if self.skip else change.tanh()


class PatchDiscriminator(nn.Module):
    """Judges every patch of pictures at several resolutions, by `patch_discriminator`.

    Attributes:
        scales: a network a resolution, each half of that before.
        channels: as given.
    """

    def __init__(self, channels: int, width: int, layers: int, scales: int) -> None:
        super().__init__()
        _check(channels=channels, width=width, layers=layers, scales=scales)
        self.channels = channels
        self.scales = nn.ModuleList([_patches(channels, width, layers) for _ in range(scales)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return a map of logits a resolution, each (N, 1, h, w), of (N, channels, H, W)."""
        found: list[Tensor] = []
        for judge in self.scales:
            x = F.avg_pool2d(x, 2) if found else x
            found.append(judge(x))
        return tuple(found)


def adalin_generator(
    channels: int = 3, width: int = 32, blocks: int = 3, skip: bool = True
) -> AdalinGenerator:
    """Make a generator: two halvings, residual blocks, AdaLIN blocks, two doublings.

    Args:
        channels: of the picture.
        width: channels at full resolution; four times as many at a quarter of it.
        blocks: residual blocks of each of the two kinds.
        skip: what is drawn is added to the picture: what need not change is kept from the first
            step on, and little training is enough where shapes stay as they are. Without it the
            picture is drawn anew, as in the paper.

    Raises:
        InputError: a number below 1.
    """
    return AdalinGenerator(channels, width, blocks, skip)


def patch_discriminator(
    channels: int = 3, width: int = 48, layers: int = 3, scales: int = 2
) -> PatchDiscriminator:
    """Make a discriminator of patches (Isola et al. 2017), at several scales (Wang et al. 2018).

    Without normalization of its own: `normapps.norm.weight.spectral_norm_` goes onto it.

    Args:
        channels: of the picture.
        width: channels of the first layer; each further layer has twice as many, up to 8 times.
        layers: halvings before the map of logits.
        scales: resolutions that are judged, by a network each.

    Raises:
        InputError: a number below 1.
    """
    return PatchDiscriminator(channels, width, layers, scales)


def normalize_by(norm: AffineNorm, x: Tensor, own: Moments) -> Tensor:
    """Apply an instance or layer-instance norm, activation included, by moments that are known.

    Args:
        norm: an `InstanceNorm` or `LayerInstanceNorm`.
        x: (N, C, H, W), a part of a picture.
        own: the instance moments of the whole picture.
    """
    if isinstance(norm, LayerInstanceNorm):
        numbers = blend(own, pool(own, LAYER), unit_interval(norm.rho), norm.eps)
    else:
        numbers = standardization(own, norm.eps)
    return norm.leave(recover(x, numbers, norm.weight, norm.bias))


class _Block(nn.Module):
    """x + norm(conv(relu(norm(conv(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels, 3, bias=False)
        self.first_norm = InstanceNorm(channels, act=_relu())
        self.second = _conv(channels, channels, 3, bias=False)
        self.second_norm = InstanceNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second_norm(self.second(self.first_norm(self.first(x))))
        return out


class _AdaptiveBlock(nn.Module):
    """The same with AdaLIN, under a latent."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels, 3, bias=False)
        self.first_norm = AdaLIN(channels, latent, act=_relu())
        self.second = _conv(channels, channels, 3, bias=False)
        self.second_norm = AdaLIN(channels, latent)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        inner = self.first_norm(self.first(x), latent)
        out: Tensor = x + self.second_norm(self.second(inner), latent)
        return out


def _patches(channels: int, width: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    inputs = channels
    for number in range(layers):
        outputs = width * min(2**number, 8)
        parts += [nn.Conv2d(inputs, outputs, 4, 2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        inputs = outputs
    return nn.Sequential(*parts, nn.Conv2d(inputs, 1, 3, padding=1))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """No bias before a normalization that would take it out again."""
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, padding_mode="reflect", bias=bias
    )


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} {number}: must be at least 1")


def _check_picture(x: Tensor, channels: int) -> None:
    height, width = x.shape[-2:]
    if x.dim() != 4 or x.shape[1] != channels:
        raise InputError(f"generator got {tuple(x.shape)}, needs (N, {channels}, H, W)")
    if height % STRIDE or width % STRIDE or min(height, width) < LEAST:
        raise InputError(
            f"generator got {width}×{height} pixels; both sides must be multiples of {STRIDE} "
            f"and at least {LEAST}"
        )
