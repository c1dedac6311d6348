"""Inception-v3 as the FID has it: the network of TensorFlow's graph of 2015-12-05, without weights.

Szegedy et al. 2016, in the form that Heusel et al. 2017 measured with. It differs from the
published PyTorch networks in its pools, and so no other weights may be loaded: average pools leave
the padding out of the mean, the last block pools by the maximum, there are 1008 logits, and no
auxiliary head. Every parameter is called as in torchvision's network, as the converted weights of
the two libraries that publish them call it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES, CLASSES = 2048, 1008
SIZE = 299
"""Side of the pictures, pixels."""


class FidInception(nn.Module):
    """Inception-v3 of the FID.

    Attributes:
        fc: the classifier.
    """

    def __init__(self) -> None:
        super().__init__()
        stem = (
            ("Conv2d_1a_3x3", _Conv(3, 32, 3, stride=2)),
            ("Conv2d_2a_3x3", _Conv(32, 32, 3)),
            ("Conv2d_2b_3x3", _Conv(32, 64, 3, padding=1)),
            ("Conv2d_3b_1x1", _Conv(64, 80, 1)),
            ("Conv2d_4a_3x3", _Conv(80, 192, 3)),
        )
        mixed = (
            ("Mixed_5b", _BlockA(192, 32)),
            ("Mixed_5c", _BlockA(256, 64)),
            ("Mixed_5d", _BlockA(288, 64)),
            ("Mixed_6a", _BlockB(288)),
            ("Mixed_6b", _BlockC(128)),
            ("Mixed_6c", _BlockC(160)),
            ("Mixed_6d", _BlockC(160)),
            ("Mixed_6e", _BlockC(192)),
            ("Mixed_7a", _BlockD()),
            ("Mixed_7b", _BlockE(1280, _mean_of_neighbours)),
            ("Mixed_7c", _BlockE(2048, _largest_of_neighbours)),
        )
        for name, module in (*stem, *mixed):
            self.add_module(name, module)
        self.fc = nn.Linear(FEATURES, CLASSES)
        self._stem, self._mixed = [name for name, _ in stem], [name for name, _ in mixed]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits.

        Args:
            x: (N, 3, 299, 299) float RGB in [−1, 1]: (byte − 128)/128.

        Returns:
            (N, 2048), and (N, 1008) without the classifier's bias, as the Inception score takes
            them.
        """
        for name in self._stem:
            x = self.get_submodule(name)(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, stride=2)
        for name in self._mixed:
            x = self.get_submodule(name)(x)
        features = x.mean((2, 3))
        return features, F.linear(features, self.fc.weight)


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


_ROW, _COLUMN = ((1, 7), (0, 3)), ((7, 1), (3, 0))
"""Kernel and padding of the convolutions of seven in a row, or in a column."""


class _BlockA(nn.Module):
    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, 1)
        self.branch5x5_1 = _Conv(inputs, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = self.branch_pool(_mean_of_neighbours(x))
        return torch.cat([self.branch1x1(x), five, three, pooled], 1)


class _BlockB(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class _BlockC(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(768, 192, 1)
        single = ((768, width, (1, 1), (0, 0)), (width, width, *_ROW), (width, 192, *_COLUMN))
        double = (
            (768, width, (1, 1), (0, 0)),
            *((width, width, *shape) for shape in (_COLUMN, _ROW, _COLUMN)),
            (width, 192, *_ROW),
        )
        self._single = self._chain("branch7x7", single)
        self._double = self._chain("branch7x7dbl", double)
        self.branch_pool = _Conv(768, 192, 1)

    def _chain(
        self, prefix: str, parts: tuple[tuple[int, int, tuple[int, int], tuple[int, int]], ...]
    ) -> list[str]:
        names = [f"{prefix}_{number}" for number in range(1, len(parts) + 1)]
        for name, (inputs, outputs, kernel, padding) in zip(names, parts, strict=True):
            self.add_module(name, _Conv(inputs, outputs, kernel, padding=padding))
        return names

    def forward(self, x: Tensor) -> Tensor:
        single, double = x, x
        for name in self._single:
            single = self.get_submodule(name)(single)
        for name in self._double:
            double = self.get_submodule(name)(double)
        pooled = self.branch_pool(_mean_of_neighbours(x))
        return torch.cat([self.branch1x1(x), single, double, pooled], 1)


class _BlockD(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(768, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(768, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, _ROW[0], padding=_ROW[1])
        self.branch7x7x3_3 = _Conv(192, 192, _COLUMN[0], padding=_COLUMN[1])
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class _BlockE(nn.Module):
    def __init__(self, inputs: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._pool = pool
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1 = _Conv(inputs, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = (
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self._pool(x)),
        )
        return torch.cat(parts, 1)


def _mean_of_neighbours(x: Tensor) -> Tensor:
    """The mean of 3×3, at the border of those positions that there are."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _largest_of_neighbours(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)
