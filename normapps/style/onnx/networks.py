"""The two halves of the stylizer as onnxruntime gets them: pixels in, pixels out, no moments.

What lies between them, measuring and mixing moments, is numpy's. The last convolution is written
at half resolution, where it needs neither the padding nor the shuffle of a whole picture.
"""

from __future__ import annotations

from itertools import product

import torch.nn.functional as F
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
        weight, bias = network.image.weight, network.image.bias
        self.weight = nn.Parameter(half_resolution(weight.detach()), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().repeat_interleave(4), requires_grad=False)  # type: ignore[union-attr]

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
            (1, 12, H/2, W/2) image, about [0, 1]: channels are colour, row and column of a pixel
            in its square of four, as `F.pixel_shuffle` takes them.
        """
        films = self.network.modulation(numbers)
        given = fine * fine_scale + fine_shift
        x = self.network.draw(given, coarse * coarse_scale + coarse_shift, films)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), self.weight, self.bias)


def half_resolution(weight: Tensor) -> Tensor:
    """Write a 3×3 convolution of a pixel-shuffled picture as one of the picture before it.

    With edge padding it equals shuffling, reflecting the edge by one pixel and convolving: the
    pixel beside the edge is the one of the other phase in the outermost square, which is what
    repeating that square gives.

    Args:
        weight: (O, I, 3, 3).

    Returns:
        (4·O, 4·I, 3, 3); the result is to be shuffled.
    """
    outputs, inputs = weight.shape[:2]
    whole = weight.new_zeros(outputs, 2, 2, inputs, 2, 2, 3, 3)
    for dy, dx, ky, kx in product(range(2), range(2), range(3), range(3)):
        (row, y), (column, x) = divmod(dy + ky - 1, 2), divmod(dx + kx - 1, 2)
        whole[:, dy, dx, :, y, x, row + 1, column + 1] = weight[:, :, ky, kx]
    return whole.reshape(4 * outputs, 4 * inputs, 3, 3)
