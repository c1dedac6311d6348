"""A small convolutional network with batch norms, for digits and other small pictures.

Of the size of the networks that the papers of domain adaptation train on MNIST, USPS and SVHN
(LeNet's relatives), but with a batch norm after each convolution, and with the mean over the
positions in the place of their wide linear layers: any picture of 8 pixels or more fits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from ..errors import InputError


class SmallCnn(nn.Module):
    """Five blocks of convolution, batch norm and ReLU, two poolings, a mean, a linear layer.

    Args:
        num_classes: outputs of `classifier`.
        channels: of the picture.
        size: side of the pictures that it is meant for, pixels; any from 8 fits.
        width: channels of the first block; the last has four times as many.

    Attributes:
        pretrained_cfg: what preprocessing it expects, as timm's networks tell it: values in
            [0, 1] scaled to [−1, 1], the whole picture.
        feature_info: its stages, as timm's networks tell them.

    Raises:
        InputError: a number below 1, or a size below 8.
    """

    def __init__(
        self, num_classes: int = 10, channels: int = 3, size: int = 28, width: int = 32
    ) -> None:
        super().__init__()
        _check(num_classes=num_classes, channels=channels, size=size, width=width)
        self.num_classes = num_classes
        half = (0.5,) * channels
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (channels, size, size),
            "mean": half,
            "std": half,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
        }
        self.feature_info = [
            {"num_chs": width, "reduction": 1, "module": "features.0"},
            {"num_chs": 2 * width, "reduction": 2, "module": "features.3"},
            {"num_chs": 4 * width, "reduction": 4, "module": "features.6"},
        ]
        self.features = nn.Sequential(
            _block(channels, width),
            nn.MaxPool2d(2),
            _block(width, width),
            _block(width, 2 * width),
            nn.MaxPool2d(2),
            _block(2 * width, 2 * width),
            _block(2 * width, 4 * width),
        )
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of pictures (N, channels, H, W)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def small_cnn(
    num_classes: int = 10, channels: int = 3, size: int = 28, width: int = 32
) -> SmallCnn:
    """Make a `SmallCnn`; as a MODEL its name is `normapps.models.small:small_cnn`.

    Raises:
        InputError: as `SmallCnn`.
    """
    return SmallCnn(num_classes, channels, size, width)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    parts = [("conv", conv), ("norm", nn.BatchNorm2d(outputs)), ("act", nn.ReLU(inplace=True))]
    return nn.Sequential(OrderedDict(parts))


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        least = 8 if name == "size" else 1
        if number < least:
            raise InputError(f"{name} {number}: must be at least {least}")
