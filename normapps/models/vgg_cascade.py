"""The classic stylizers on VGG-19: AdaIN's one level and the multi-level WCT's five.

A level is an encoder to reluK_1 and a decoder that mirrors it without norm layers (AdaIN: Huang &
Belongie 2017, sec. 5; WCT: Li et al. 2017, sec. 3). Convolutions pad by reflection, pooling rounds
up, upsampling repeats the nearest value, as in both papers' networks. What is done to the features
between the two is `style.cascade`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, unknown
from ..norm import TRANSFERS
from .vgg import WIDTHS, Vgg19, layer_names

LAYERS = ("relu5_1", "relu4_1", "relu3_1", "relu2_1", "relu1_1")
"""Where a level can lie, in the order in which the multi-level WCT runs them."""


class VggCascade(nn.Module):
    """Levels of encoder and decoder, through which a picture goes one after the other.

    Args:
        layers: where each level encodes to, in the order of stylization.
        widths: channels of VGG's five blocks; or of each level, where the levels differ.
        method: how the features get a style's moments by default, a name in `norm.TRANSFERS`.
        rectified: the decoders end in a ReLU (the 16× narrower networks of Collaborative
            Distillation were trained so).

    Raises:
        InputError: no levels, a layer that is none of `LAYERS`, an unknown method, or widths that
            are not five positive numbers.
    """

    def __init__(
        self,
        layers: Sequence[str] = LAYERS,
        widths: Sequence[int] | Sequence[Sequence[int]] = WIDTHS,
        method: str = "wct",
        rectified: bool = False,
    ) -> None:
        super().__init__()
        if method not in TRANSFERS:
            raise unknown("method", method, TRANSFERS)
        if not layers:
            raise InputError(f"layers: name at least one of {', '.join(LAYERS)}")
        self.method = method
        each = _widths_of_levels(widths, len(layers))
        pairs = zip(layers, each, strict=True)
        self.levels = nn.ModuleList([VggLevel(name, w, rectified) for name, w in pairs])

    def forward(self, image: Tensor) -> Tensor:
        """Encode and decode at every level, the features unchanged: what the network loses.

        Args:
            image: (N, 3, H, W) sRGB in [0, 1], at least 2 cells of the largest stride a side.

        Returns:
            The same shape, about [0, 1]; not clamped.
        """
        x = image
        for level in self.stages:
            x = level(x)
        return x

    @property
    def stages(self) -> tuple[VggLevel, ...]:
        """The levels, in the order of stylization."""
        return tuple(cast(VggLevel, level) for level in self.levels)


class VggLevel(nn.Module):
    """One level: VGG-19 to `layer`, and its mirror back to the picture.

    Attributes:
        layer: such as `relu4_1`.
        stride: pixels of the picture that a side of one cell of the features stands for.
        margin: a multiple of `stride`; what is encoded and decoded of a stride×stride cell depends
            on no pixel further from its edges, but for what is done to the features.
    """

    def __init__(self, layer: str, widths: Sequence[int] = WIDTHS, rectified: bool = False) -> None:
        super().__init__()
        if layer not in LAYERS:
            raise unknown("layer", layer, LAYERS)
        self.layer = layer
        self.stride = 1 << int(layer[4]) - 1
        self.margin = margin(layer)
        self.encoder = Vgg19(layer, "reflect", ceil_mode=True, widths=widths)
        self.decoder = MirroredVgg(layer, widths, rectified)

    def encode(self, image: Tensor) -> Tensor:
        """Return (N, C, ⌈H/stride⌉, ⌈W/stride⌉) features of (N, 3, H, W) sRGB in [0, 1]."""
        features: Tensor = self.encoder(image, (self.layer,))[0]
        return features

    def decode(self, features: Tensor) -> Tensor:
        """Return (N, 3, h·stride, w·stride), about [0, 1]: up to stride−1 more than H and W."""
        image: Tensor = self.decoder(features)
        return image

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct (N, 3, H, W) of its features."""
        return self.decode(self.encode(image))[..., : image.shape[2], : image.shape[3]]


class MirroredVgg(nn.Module):
    """The way back from reluK_1: VGG-19's convolutions in reverse, each with its shape reversed.

    Args:
        layer: where it starts.
        widths: channels of VGG's five blocks.
        rectified: whether the last convolution is followed by a ReLU as well.
    """

    def __init__(
        self, layer: str = "relu4_1", widths: Sequence[int] = WIDTHS, rectified: bool = False
    ) -> None:
        super().__init__()
        self.rectified = rectified
        self.convs = nn.ModuleDict()
        names = layer_names(layer)
        inputs = [3, *(widths[int(name[4]) - 1] for name in names)]
        for i, name in reversed(list(enumerate(names))):
            conv = nn.Conv2d(inputs[i + 1], inputs[i], 3, padding=1, padding_mode="reflect")
            self.convs[name.replace("relu", "conv")] = conv

    def forward(self, features: Tensor) -> Tensor:
        """Draw (N, C, h, w) features as (N, 3, h·stride, w·stride)."""
        x = features
        for name, conv in self.convs.items():
            x = conv(x)
            if name != "conv1_1" or self.rectified:
                x = F.relu(x)
            if name.endswith("_1") and name != "conv1_1":
                x = F.interpolate(x, scale_factor=2, mode="nearest")
        return x


def margin(layer: str) -> int:
    """Return how far a cell of the decoded picture looks, in pixels: see `VggLevel.margin`."""
    cells = [1 << int(name[4]) - 1 for name in layer_names(layer)]
    reach = 0
    for cell in cells:  # the decoder, from the picture inwards
        reach = -(-reach // cell) * cell + cell
    reach += sum(cells)  # the encoder
    return -(-reach // cells[-1]) * cells[-1]


def _widths_of_levels(
    widths: Sequence[int] | Sequence[Sequence[int]], levels: int
) -> list[list[int]]:
    """Five numbers for each level."""
    nested = [row for row in widths if isinstance(row, Sequence)]
    each = [list(row) for row in nested] if nested else [_plain(widths)] * levels
    if len(each) != levels or any(len(row) != 5 or min(row) < 1 for row in each):
        raise InputError(f"widths {widths}: give five positive numbers, or five for each level")
    return each


def _plain(widths: Sequence[int] | Sequence[Sequence[int]]) -> list[int]:
    return [width for width in widths if isinstance(width, int)]
