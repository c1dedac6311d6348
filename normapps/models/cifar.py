"""The networks that pruning is judged on: VGG, ResNet and DenseNet for CIFAR's 32×32 pictures.

`vgg16_bn` and `vgg19_bn` as in network slimming (Liu et al. 2017): 3×3 convolutions with batch
norms, one linear layer. `resnet20` and `resnet56` after He et al. 2016, section 4.2, `densenet40`
after Huang et al. 2017, table 1, growth 12 without bottlenecks. Each is a MODEL of every command
as `normapps.models.cifar:resnet20`; any picture of 16 pixels or more fits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD

SIZE = 32
VGG_WIDTHS = {
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}
"""Depth → output channels of the convolutions, a tuple between two poolings."""
SHORTCUTS = ("A", "B")


class CifarVgg(nn.Module):
    """Convolution, batch norm and ReLU in five stages, a mean, a linear layer.

    Args:
        depth: a key of `VGG_WIDTHS`; it counts the three linear layers of the original.
        num_classes: outputs of `classifier`.

    Attributes:
        pretrained_cfg: what preprocessing it expects, as timm's networks tell it.

    Raises:
        InputError: another depth, or no class.
    """

    def __init__(self, depth: int = 19, num_classes: int = 10) -> None:
        super().__init__()
        if depth not in VGG_WIDTHS:
            raise InputError(f"depth {depth}: must be one of {', '.join(map(str, VGG_WIDTHS))}")
        self.pretrained_cfg, self.num_classes = _expects(num_classes), num_classes
        layers: list[nn.Module] = []
        channels = 3
        for stage in VGG_WIDTHS[depth]:
            layers += [nn.MaxPool2d(2)] if layers else []
            for width in stage:
                layers += [_conv(channels, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        _initialize_(self, scale=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of pictures (N, 3, H, W)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class CifarResNet(nn.Module):
    """A convolution, three stages of 16, 32 and 64 channels, a mean, a linear layer.

    The names of its tensors are those of the well-known weights of Y. Idelbayev's.

    Args:
        depth: 6n + 2: 20, 32, 44, 56, 110 in the paper.
        num_classes: outputs of `linear`.
        shortcut: how a stage's first block goes past its convolutions: A takes every other pixel
            and zeros for the new channels, B a 1×1 convolution with a batch norm.

    Attributes:
        pretrained_cfg: what preprocessing it expects, as timm's networks tell it.

    Raises:
        InputError: another depth or shortcut, or no class.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, shortcut: str = "A") -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise InputError(f"depth {depth}: must be 6n + 2, such as 20 or 56")
        if shortcut not in SHORTCUTS:
            raise InputError(f"shortcut '{shortcut}': must be A or B")
        self.pretrained_cfg, self.num_classes = _expects(num_classes), num_classes
        blocks = depth // 6
        self.conv1 = _conv(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, 1, shortcut)
        self.layer2 = _stage(blocks, 16, 32, 2, shortcut)
        self.layer3 = _stage(blocks, 32, 64, 2, shortcut)
        self.linear = nn.Linear(64, num_classes)
        _initialize_(self, scale=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of pictures (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norms, added to what goes past them."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 and shortcut == "A":
            self.shortcut = PaddedShortcut((outputs - inputs) // 2, stride)
        elif stride != 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Take (N, inputs, H, W) to (N, outputs, ⌈H/stride⌉, ⌈W/stride⌉)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """The shortcut without parameters (option A): fewer pixels, zeros around the channels."""

    def __init__(self, padding: int, stride: int) -> None:
        super().__init__()
        self.padding, self.stride = padding, stride

    def forward(self, x: Tensor) -> Tensor:
        """Take (N, C, H, W) to (N, C + 2 padding, ⌈H/stride⌉, ⌈W/stride⌉)."""
        fewer = x[:, :, :: self.stride, :: self.stride]
        return F.pad(fewer, (0, 0, 0, 0, self.padding, self.padding))


class CifarDenseNet(nn.Module):
    """Three stages in which each layer sees the channels of all before it, and adds `growth`.

    Batch norm and ReLU stand before a convolution; a 1×1 convolution and a mean of 2×2 pixels
    lie between stages.

    Args:
        depth: 3n + 4, such as 40.
        growth: channels that a layer adds.
        num_classes: outputs of `classifier`.

    Attributes:
        pretrained_cfg: what preprocessing it expects, as timm's networks tell it.

    Raises:
        InputError: another depth, no growth, or no class.
    """

    def __init__(self, depth: int = 40, growth: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 7 or depth % 3 != 1:
            raise InputError(f"depth {depth}: must be 3n + 4, such as 40")
        if growth < 1:
            raise InputError(f"growth {growth}: must be at least 1")
        self.pretrained_cfg, self.num_classes = _expects(num_classes), num_classes
        layers, channels = (depth - 4) // 3, 16
        parts: list[nn.Module] = [_conv(3, channels)]
        for stage in range(3):
            parts += [_transition(channels)] if stage else []
            parts += [DenseLayer(channels + i * growth, growth) for i in range(layers)]
            channels += layers * growth
        self.features = nn.Sequential(*parts, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(channels, num_classes)
        _initialize_(self, scale=0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of pictures (N, 3, H, W)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 3×3 convolution; the result stands behind the channels that came in."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), _conv(inputs, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Take (N, inputs, H, W) to (N, inputs + growth, H, W)."""
        return torch.cat((x, self.conv(F.relu(self.norm(x)))), 1)


def cifar_vgg(depth: int = 19, num_classes: int = 10) -> CifarVgg:
    """Make a `CifarVgg`.

    Raises:
        InputError: as `CifarVgg`.
    """
    return CifarVgg(depth, num_classes)


def cifar_resnet(depth: int = 20, num_classes: int = 10, shortcut: str = "A") -> CifarResNet:
    """Make a `CifarResNet`.

    Raises:
        InputError: as `CifarResNet`.
    """
    return CifarResNet(depth, num_classes, shortcut)


def cifar_densenet(depth: int = 40, growth: int = 12, num_classes: int = 10) -> CifarDenseNet:
    """Make a `CifarDenseNet`.

    Raises:
        InputError: as `CifarDenseNet`.
    """
    return CifarDenseNet(depth, growth, num_classes)


def vgg16_bn(num_classes: int = 10) -> CifarVgg:
    """VGG-16 with batch norms and one linear layer, 14.7 M parameters."""
    return CifarVgg(16, num_classes)


def vgg19_bn(num_classes: int = 10) -> CifarVgg:
    """VGG-19 with batch norms and one linear layer, 20.04 M parameters."""
    return CifarVgg(19, num_classes)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20 with shortcuts of option A, 0.27 M parameters."""
    return CifarResNet(20, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56 with shortcuts of option A, 0.85 M parameters."""
    return CifarResNet(56, num_classes)


def densenet40(num_classes: int = 10) -> CifarDenseNet:
    """DenseNet-40 of growth 12, 1.02 M parameters."""
    return CifarDenseNet(40, 12, num_classes)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def _stage(blocks: int, inputs: int, outputs: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, shortcut)
    others = (BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


def _transition(channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), conv, nn.AvgPool2d(2))


def _initialize_(model: nn.Module, scale: float) -> None:
    """He et al.'s weights; scales begin at `scale`, 0.5 in network slimming."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, scale)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            nn.init.zeros_(module.bias)


def _expects(num_classes: int) -> dict[str, Any]:
    if num_classes < 1:
        raise InputError(f"num_classes {num_classes}: must be at least 1")
    return {
        "input_size": (3, SIZE, SIZE),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
