"""SPADE (Park et al. 2019): from a label map to a picture, and the critic that sees both.

In every block the map scales and shifts the normalized features position by position
(`norm.layers.SpatialNorm`), so that what it says survives normalization. Smaller than the paper's
network, which has 16 times `width` channels at most, two blocks more and 128 hidden channels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..norm.layers.instance import InstanceNorm
from ..norm.layers.spatial import SpatialNorm
from ..norm.weight import spectral_norm_

SLOPE = 0.2
"""Of the leaky rectifiers, in both networks."""

WIDEST = 8
"""No stage of either network has more than this many times `width` channels."""


class SpadeBlock(nn.Module):
    """Two times SPADE, leaky ReLU, convolution 3×3, around a shortcut (the paper's figure 4).

    Args:
        inputs, outputs: channels; where they differ, the shortcut has a SPADE and a convolution
            1×1 of its own.
        classes: channels of the map.
        hidden: channels inside each SPADE.
        base: the normalization under SPADE.
    """

    def __init__(self, inputs: int, outputs: int, classes: int, hidden: int, base: str) -> None:
        super().__init__()
        middle = min(inputs, outputs)

        def spade(channels: int, act: type[nn.Module] | None = None) -> SpatialNorm:
            return SpatialNorm(channels, classes, hidden, base=base, act=act)

        self.norm_0, self.norm_1 = spade(inputs, _Leaky), spade(middle, _Leaky)
        self.conv_0 = nn.Conv2d(inputs, middle, 3, padding=1)
        self.conv_1 = nn.Conv2d(middle, outputs, 3, padding=1)
        self.has_shortcut = inputs != outputs
        if self.has_shortcut:
            self.norm_s = spade(inputs)
            self.conv_s = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, label_map: Tensor) -> Tensor:
        """Return (N, outputs, H, W) of features (N, inputs, H, W) under a map (N, classes, *S)."""
        shortcut = self.conv_s(self.norm_s(x, label_map)) if self.has_shortcut else x
        x = self.conv_0(self.norm_0(x, label_map))
        x = self.conv_1(self.norm_1(x, label_map))
        return shortcut + x


class SpadeGenerator(nn.Module):
    """A picture from a label map: a start at 1/2^ups of its size, then a block and ×2 in turn.

    Without a latent the start is the map, shrunk by nearest neighbour, through a convolution, and
    one map gives one picture. With one the start is linear in it, and the map enters by SPADE
    alone, as in the paper. `base` "batch" needs its statistics measured before inference
    (`norm.population`); "instance" has none.

    Args:
        classes: channels of the map, one a class.
        channels: of the picture.
        size: side that it is trained at; any other that 2^ups divides works.
        width: channels at full size; each stage below has twice as many, `WIDEST` × width at most.
        ups: doublings.
        hidden: channels inside each SPADE.
        latent: numbers of a latent, 0 for none.
        base: the normalization under SPADE.
        spectral: normalize the blocks' convolutions, as in the paper; False for a network whose
            weights have been divided already.

    Raises:
        InputError: a number below its least, or a size that 2^ups does not divide.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        size: int = 64,
        width: int = 32,
        ups: int = 4,
        hidden: int = 64,
        latent: int = 0,
        base: str = "batch",
        spectral: bool = True,
    ) -> None:
        super().__init__()
        _check(classes=classes, channels=channels, width=width, ups=ups, hidden=hidden)
        if latent < 0:
            raise InputError(f"latent {latent}: must be at least 0")
        self.classes, self.channels, self.size, self.latent = classes, channels, size, latent
        self.stride = 2**ups
        if size < self.stride or size % self.stride:
            raise InputError(
                f"size {size}: must be a multiple of {self.stride}, 2 to the {ups} ups"
            )
        widths = [width * min(2**stage, WIDEST) for stage in range(ups, -1, -1)]
        self.start = self._start(widths[0])
        pairs = zip([widths[0], *widths[:-1]], widths, strict=True)
        self.blocks = nn.ModuleList(SpadeBlock(*pair, classes, hidden, base) for pair in pairs)
        self.to_picture = nn.Conv2d(width, channels, 3, padding=1)
        if spectral:
            spectral_norm_(self.blocks, include=("*.conv_*",))

    def _start(self, width: int) -> nn.Module:
        if self.latent:
            return nn.Linear(self.latent, width * (self.size // self.stride) ** 2)
        return nn.Conv2d(self.classes, width, 3, padding=1)

    def forward(self, label_map: Tensor, z: Tensor | None = None) -> Tensor:
        """Return pictures (N, channels, H, W) in [−1, 1].

        Args:
            label_map: (N, classes, H, W) float, see `one_hot`; 2^ups divides H and W.
            z: (N, latent) ~ N(0, I); where the network has no latent, it is not looked at.

        Raises:
            InputError: a map of other channels or such a size, or a latent that does not fit.
        """
        self._check_map(label_map)
        x = self.start_from(label_map, z)
        for index, block in enumerate(self.blocks):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") if index else x
            x = block(x, label_map)
        picture: Tensor = self.to_picture(F.leaky_relu(x, SLOPE)).tanh()
        return picture

    def start_from(self, label_map: Tensor, z: Tensor | None) -> Tensor:
        """Return what the first block sees: (N, C, H / 2^ups, W / 2^ups).

        Raises:
            InputError: the latent does not fit.
        """
        low = (label_map.shape[2] // self.stride, label_map.shape[3] // self.stride)
        if not self.latent:
            start: Tensor = self.start(F.interpolate(label_map, low, mode="nearest"))
            return start
        if z is None or z.shape != (len(label_map), self.latent):
            got = "none" if z is None else tuple(z.shape)
            raise InputError(f"latent is {got}; it must be {(len(label_map), self.latent)}")
        side = self.size // self.stride
        start = self.start(z).unflatten(1, (-1, side, side))
        if low == (side, side):
            return start
        return F.interpolate(start, low, mode="bilinear", align_corners=False)

    def _check_map(self, label_map: Tensor) -> None:
        fits = label_map.ndim == 4 and label_map.shape[1] == self.classes
        if not fits or any(side < 1 or side % self.stride for side in label_map.shape[2:]):
            raise InputError(
                f"map is {tuple(label_map.shape)}; it must be (N, {self.classes}, H, W) with "
                f"H and W multiples of {self.stride}"
            )


class MapDiscriminator(nn.Module):
    """Judges picture and map together, patch by patch, at several scales (the paper's appendix A).

    Each scale sees half the size of the one before: convolutions 4×4, all but the last of them
    spectrally normalized, instance norm without parameters from the second on.

    Args:
        classes: channels of the map.
        channels: of the picture.
        width: channels of the first convolution; doubled a layer, up to `WIDEST` × width.
        layers: convolutions before the one that scores; all but the first and the last of them
            halve the size, and the first.
        scales: copies, each with its own weights.
        spectral: normalize the weights.

    Raises:
        InputError: a number below 1.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        width: int = 32,
        layers: int = 3,
        scales: int = 2,
        spectral: bool = True,
    ) -> None:
        super().__init__()
        _check(classes=classes, channels=channels, width=width, layers=layers, scales=scales)
        self.critics = nn.ModuleList(
            _Patches(classes + channels, width, layers) for _ in range(scales)
        )
        if spectral:
            spectral_norm_(self.critics, exclude=("*.score",))

    def forward(self, picture: Tensor, label_map: Tensor) -> list[list[Tensor]]:
        """Return for each scale the features of its layers, the logits (N, 1, h, w) last.

        Args:
            picture: (N, channels, H, W) in [−1, 1].
            label_map: (N, classes, H, W).
        """
        x = torch.cat([picture, label_map.to(picture.dtype)], 1)
        found: list[list[Tensor]] = []
        for critic in self.critics:
            found.append(critic(x))
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return found


class _Patches(nn.Module):
    """One scale of `MapDiscriminator`."""

    def __init__(self, inputs: int, width: int, layers: int) -> None:
        super().__init__()
        widths = [inputs, *(width * min(2**layer, WIDEST) for layer in range(layers))]
        self.layers = nn.ModuleList()
        for index, (before, after) in enumerate(pairwise(widths)):
            stride = 1 if 0 < index == layers - 1 else 2
            conv = nn.Conv2d(before, after, 4, stride, padding=2, bias=index == 0)
            norm = [InstanceNorm(after, affine=False)] if index else []
            self.layers.append(nn.Sequential(conv, *norm, _Leaky()))
        self.score = nn.Conv2d(widths[-1], 1, 4, padding=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return [*found, self.score(x)]


class _Leaky(nn.LeakyReLU):
    def __init__(self) -> None:
        super().__init__(SLOPE)


def one_hot(indices: Tensor, classes: int) -> Tensor:
    """Return a map of class indices as the channels that the networks take.

    Args:
        indices: (N, H, W) whole numbers from 0 to classes − 1; others are of no class.
        classes: channels K.

    Returns:
        (N, K, H, W) float32: 1 in the channel of the position's class, 0 elsewhere.
    """
    each = torch.arange(classes, device=indices.device).reshape(1, -1, 1, 1)
    return (indices.unsqueeze(1) == each).float()


def spade_generator(
    classes: int,
    channels: int = 3,
    size: int = 64,
    width: int = 32,
    ups: int = 4,
    hidden: int = 64,
    latent: int = 0,
    base: str = "batch",
    spectral: bool = True,
) -> SpadeGenerator:
    """Make a `SpadeGenerator`; in `model.json` its name is `spade-generator`.

    Raises:
        InputError: as `SpadeGenerator`.
    """
    return SpadeGenerator(classes, channels, size, width, ups, hidden, latent, base, spectral)


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} {number}: must be at least 1")
