"""The two halves of the stylizer as onnxruntime gets them: pixels in, pixels out, no moments.

What lies between them, measuring and mixing moments, is numpy's.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...models.adain_tiny import AdainTiny


class PixelEncoder(nn.Module):
    """`AdainTiny.encode` on a picture as numpy has it."""

    def __init__(self, network: AdainTiny) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features at ¼ and ⅛ resolution.

        Args:
            pixels: (H, W, 3) float sRGB in [0, 1], H and W multiples of 8.
        """
        return self.network.encode(pixels.permute(2, 0, 1)[None])


class PixelDecoder(nn.Module):
    """`AdainTiny.decode` with AdaIN as a scale and a shift for each channel."""

    def __init__(self, network: AdainTiny) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        fine: Tensor,
        coarse: Tensor,
        fine_scale: Tensor,
        fine_shift: Tensor,
        coarse_scale: Tensor,
        coarse_shift: Tensor,
        numbers: Tensor,
    ) -> Tensor:
        """Render features.

        Args:
            fine, coarse: what `PixelEncoder` returned.
            fine_scale, fine_shift, coarse_scale, coarse_shift: (1, C, 1, 1) each, AdaIN.
            numbers: (1, 2·(width + deep)) mean and deviation of the style at both levels.

        Returns:
            (1, 12, H/2, W/2) image, about [0, 1]; see `AdainTiny.squares`.
        """
        films = self.network.modulation(numbers)
        given = fine * fine_scale + fine_shift
        return self.network.squares(given, coarse * coarse_scale + coarse_shift, films)
