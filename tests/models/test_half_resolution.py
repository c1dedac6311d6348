"""A convolution of a shuffled picture, written before the shuffle."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from normapps.models.adain_tiny import _half_resolution


def test_a_convolution_at_half_resolution_is_that_of_the_shuffled_picture() -> None:
    draw = torch.Generator().manual_seed(0)
    for inputs, outputs, height, width in ((2, 3, 5, 4), (8, 3, 2, 7), (1, 1, 1, 2)):
        cells = torch.randn(2, 4 * inputs, height, width, generator=draw).double()
        weight = torch.randn(outputs, inputs, 3, 3, generator=draw).double()
        whole = F.pad(F.pixel_shuffle(cells, 2), (1, 1, 1, 1), mode="reflect")
        padded = F.pad(cells, (1, 1, 1, 1), mode="replicate")
        found = F.pixel_shuffle(F.conv2d(padded, _half_resolution(weight)), 2)
        torch.testing.assert_close(found, F.conv2d(whole, weight))
