"""MicroAST (Wang et al., AAAI 2023), built anew from its paper and the shapes of its weights.

Two encoders of one shape down to 1/4 resolution, a modulator that turns the style's features into
a scale and a shift a channel, and a decoder of two modulated residual blocks and two upsamplings.
The published weights are read in the order of their layers.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.errors import InputError

Signals = list[tuple[Tensor, Tensor, Tensor, Tensor]]
"""For either level: mean and deviation of the style's features, scale and shift of the filters."""


class MicroAST(nn.Module):
    """Arbitrary style transfer with 471,987 parameters.

    Args:
        folder: with the four published files; random weights when None.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self.content_encoder, self.style_encoder = _Encoder(), _Encoder()
        self.modulator, self.decoder = _Modulator(), _Decoder()
        for name, part in self.named_children():
            if folder is not None:
                _load(part, folder / f"{name}_iter_160000.pth.tar")
        self.eval().requires_grad_(False)

    def signals(self, style: Tensor) -> Signals:
        """Reduce a style image (1, 3, H, W) in [0, 1] to what the decoder needs of it."""
        levels = self.style_encoder(style)
        filters = self.modulator(levels)
        return [(*_moments(x), *f) for x, f in zip(levels, filters, strict=True)]

    def forward(self, content: Tensor, signals: Signals) -> Tensor:
        """Stylize (N, 3, H, W) in [0, 1]; H and W multiples of 4. The result is not clamped."""
        return self.decoder(self.content_encoder(content)[1], signals)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(
            *_conv_relu(3, 16, 9),
            *_conv_relu(16, 32, 3, stride=2, groups=16),
            *_conv_relu(32, 32, 1),
            *_conv_relu(32, 64, 3, stride=2, groups=32),
            *_conv_relu(64, 64, 1),
            _Residual(),
        )
        self.tail = _Residual()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        first = self.head(image)
        return first, self.tail(first)


class _Modulator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(64, 64, 3, groups=64) for _ in range(4))

    def forward(self, levels: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        means = [
            conv(levels[i // 2]).mean((2, 3), keepdim=True) for i, conv in enumerate(self.convs)
        ]
        return [(means[0], means[1]), (means[2], means[3])]


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deep, self.shallow = _Residual(), _Residual()
        self.to_half = nn.Sequential(*_conv_relu(64, 32, 3, groups=32), *_conv_relu(32, 32, 1))
        self.to_full = nn.Sequential(*_conv_relu(32, 16, 3, groups=16), *_conv_relu(16, 16, 1))
        self.image = _conv(16, 3, 9)

    def forward(self, x: Tensor, signals: Signals) -> Tensor:
        for block, (mean, std, scale, shift) in zip(
            (self.deep, self.shallow), reversed(signals), strict=True
        ):
            own_mean, own_std = _moments(x)
            x = block((x - own_mean) / own_std * std + mean, scale, shift)
        for stage in (self.to_half, self.to_full):
            x = stage(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return self.image(x)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _conv(64, 64, 3), _conv(64, 64, 3)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        if scale is None or shift is None:
            return x + self.second(F.relu(self.first(x)))
        inner = F.relu(scale * self.first(x) + shift * x)
        return x + scale * self.second(inner) + shift * inner


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, kernel, stride, kernel // 2, groups=groups, padding_mode="reflect"
    )


def _conv_relu(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    return _conv(inputs, outputs, kernel, stride, groups), nn.ReLU(inplace=True)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (unbiased, as the published network was trained with) a map."""
    var, mean = torch.var_mean(x, (2, 3), keepdim=True)
    return mean, (var + 1e-5).sqrt()


@torch.no_grad()
def _load(part: nn.Module, file: Path) -> None:
    if not file.is_file():
        raise InputError(f"{file}: MicroAST's weights are missing")
    values = list(torch.load(file, map_location="cpu", weights_only=True).values())
    convs = [module for module in part.modules() if isinstance(module, nn.Conv2d)]
    wanted = list(chain.from_iterable((conv.weight, conv.bias) for conv in convs))
    if [tuple(x.shape) for x in values] != [tuple(x.shape) for x in wanted]:
        raise InputError(f"{file}: does not hold the layers of MicroAST")
    for own, value in zip(wanted, values, strict=True):
        own.copy_(value)
