"""Tiny networks for the commands, as `factory` specs name them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Digits(nn.Module):
    """A network for 8×8 digits with the norm layers that `norm` makes."""

    def __init__(self, norm: Any = nn.BatchNorm2d, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm1 = norm(8)
        self.body = nn.Conv2d(8, 16, 3, padding=1)
        self.norm2 = norm(16)
        self.head = nn.Linear(16 * 4, num_classes)

    def forward(self, x: Tensor) -> Any:
        x = self.norm1(self.stem(x)).relu()
        x = self.norm2(self.body(x)).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class LayerNorm(nn.Module):
    """A layer norm over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Talkative(Digits):
    """Returns what other libraries return."""

    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x), "features": x}


class Mute(Digits):
    """Returns no logits."""

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(boxes=super().forward(x))


class Boxed(Digits):
    """Returns no logits, but tensors."""

    def forward(self, x: Tensor) -> Any:
        return {"boxes": super().forward(x)}


def digits(num_classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return Digits(num_classes=num_classes)


def talkative() -> nn.Module:
    torch.manual_seed(0)
    return Talkative()


def mute() -> nn.Module:
    return Mute()


def boxed() -> nn.Module:
    return Boxed()


class Picky(Digits):
    """Takes pictures of one size, as many transformers do."""

    def forward(self, x: Tensor) -> Any:
        if x.shape[2] != 16:
            raise AssertionError(f"Input height ({x.shape[2]}) doesn't match model (16).")
        return super().forward(x)


def picky() -> nn.Module:
    return Picky()


class Opaque(Digits):
    """Sorts its channels, which nobody can follow."""

    def forward(self, x: Tensor) -> Any:
        x = self.norm1(self.stem(x)).relu().sort(1).values
        x = self.norm2(self.body(x)).relu().sort(1).values
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def opaque() -> nn.Module:
    return Opaque()


def plain() -> nn.Module:
    return Digits(norm=lambda channels: nn.Identity())


def layers() -> nn.Module:
    torch.manual_seed(0)
    return Digits(norm=LayerNorm)


def frozen() -> nn.Module:
    import normapps.models  # noqa: F401, I001  the guard comes first
    from torchvision.ops.misc import FrozenBatchNorm2d

    torch.manual_seed(0)
    return Digits(norm=FrozenBatchNorm2d)


class Bessel(Digits):
    """Has an operator that ONNX has not."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(torch.special.bessel_j0(x))


def bessel() -> nn.Module:
    return Bessel()


class Pools(nn.Module):
    """Has no layer with weights but a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean((2, 3))


def pools() -> nn.Module:
    return Pools()
