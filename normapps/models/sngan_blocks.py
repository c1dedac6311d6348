"""The residual blocks of SNGAN (Miyato et al. 2018, appendix B.4), with their resampling folded in.

A 3×3 convolution after nearest upsampling by two is a transposed 4×4 convolution of stride 2, and
one before average pooling by two is a 4×4 convolution of stride 2: 16 multiplications where the
plain forms take 36, and no picture of the larger size in between. Exact, not an approximation; what
is stored and normalized is the 3×3 kernel.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import unknown
from ..norm import create_norm
from ..norm.condition import ConditionalLayer

BATCH_EPS = 2e-5
"""What batch norm adds to the variance: the default of the framework that the authors used."""
NORMS = ("bn", "cbn", "self-mod", "wc", "in", "none")
"""The generator's normalizations."""


class UpsamplingConv2d(nn.Conv2d):
    """`conv3(nearest×2(x))` of (N, C, H, W): (N, out, 2H, 2W); the weight is (out, C, 3, 3)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample and convolve."""
        kernel = upsampling_kernel(self.weight)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class PoolingConv2d(nn.Conv2d):
    """`avgpool2(conv3(x))` of (N, C, 2H, 2W): (N, out, H, W); the weight is (out, C, 3, 3)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and pool."""
        return F.conv2d(x, pooling_kernel(self.weight), self.bias, stride=2, padding=1)


def upsampling_kernel(weight: Tensor) -> Tensor:
    """Return the kernel (in, out, 4, 4) for `conv_transpose2d` of a weight (out, in, 3, 3)."""
    return _shifted_sum(weight.flip(2, 3)).transpose(0, 1)


def pooling_kernel(weight: Tensor) -> Tensor:
    """Return the kernel (out, in, 4, 4) for `conv2d` of a weight (out, in, 3, 3)."""
    return _shifted_sum(weight) / 4


def _shifted_sum(weight: Tensor) -> Tensor:
    """Sum of a 3×3 kernel at the four places that it has in 4×4."""
    rows = F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


class GeneratorBlock(nn.Module):
    """Norm, ReLU, upsampling, convolution, norm, ReLU, convolution, beside a 1×1 convolution.

    Args:
        inputs, outputs: channels.
        norm: one of `NORMS`.
        latent, num_classes: of the condition; see `make_norm`.
    """

    def __init__(self, inputs: int, outputs: int, norm: str, latent: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, inputs, latent, num_classes)
        self.conv1 = UpsamplingConv2d(inputs, outputs)
        self.norm2 = make_norm(norm, outputs, latent, num_classes)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        glorot_(self.conv1, math.sqrt(2))
        glorot_(self.conv2, math.sqrt(2))
        glorot_(self.shortcut)

    def forward(self, x: Tensor, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return (N, outputs, 2H, 2W) of features (N, inputs, H, W), latents and labels."""
        h: Tensor = self.conv1(normalized(self.norm1, x, z, y).relu())
        h = self.conv2(normalized(self.norm2, h, z, y).relu())
        # before the upsampling: a 1×1 convolution of copies is a copy of it
        shortcut: Tensor = F.interpolate(self.shortcut(x), scale_factor=2.0)
        return h + shortcut


class DiscriminatorBlock(nn.Module):
    """ReLU, convolution, ReLU, convolution and, where it pools, average pooling, beside a shortcut.

    The shortcut is the identity where nothing changes, else pooling and a 1×1 convolution.

    Args:
        inputs, outputs: channels; the first convolution keeps `inputs`, in a first block it makes
            `outputs`.
        is_pooling: halve height and width.
        is_first: the block takes pictures, not features: no ReLU before its first convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, *, is_pooling: bool, is_first: bool = False
    ) -> None:
        super().__init__()
        self.is_pooling, self.is_first = is_pooling, is_first
        hidden = outputs if is_first else inputs
        self.conv1 = nn.Conv2d(inputs, hidden, 3, padding=1)
        plain = nn.Conv2d(hidden, outputs, 3, padding=1)
        self.conv2 = PoolingConv2d(hidden, outputs) if is_pooling else plain
        is_same = inputs == outputs and not is_pooling
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(inputs, outputs, 1)
        glorot_(self.conv1, math.sqrt(2))
        glorot_(self.conv2, math.sqrt(2))
        glorot_(self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H, W) of (N, inputs, H, W), or half of H and W."""
        h: Tensor = self.conv1(x if self.is_first else x.relu())
        h = self.conv2(h.relu())
        shortcut: Tensor = self.shortcut(F.avg_pool2d(x, 2) if self.is_pooling else x)
        return h + shortcut


def make_norm(kind: str, channels: int, latent: int, num_classes: int) -> nn.Module:
    """Make a norm layer of the generator.

    Args:
        kind: one of `NORMS`: batch norm; with a scale and shift a class; with both from the latent;
            whitening and colouring (one colouring a class more, if there are classes); instance
            norm; nothing.
        channels: of the features.
        latent: length of z.
        num_classes: 0 for none.

    Raises:
        InputError: an unknown kind, or `cbn` without classes.
    """
    if kind not in NORMS:
        raise unknown("generator norm", kind, NORMS)
    if kind == "none":
        return nn.Identity()
    options: dict[str, Any] = {"layout": "2d"}
    if kind in ("bn", "cbn", "self-mod"):
        options["eps"] = BATCH_EPS
    if kind == "cbn" or (kind == "wc" and num_classes):
        options["num_classes"] = num_classes
    if kind == "self-mod":
        options["latent_features"] = latent
    coloring = "conditional_coloring" if num_classes else "coloring"
    names = {"bn": "batch", "cbn": "conditional", "self-mod": "self_modulated"}
    return create_norm((names | {"wc": coloring, "in": "instance"})[kind], channels, **options)


def normalized(norm: nn.Module, x: Tensor, z: Tensor, y: Tensor | None) -> Tensor:
    """Apply a layer of `make_norm` under the condition that it takes: z, y or none."""
    condition = (z if hasattr(norm, "latent_features") else y,)
    out: Tensor = norm(x, *(condition if isinstance(norm, ConditionalLayer) else ()))
    return out


def glorot_(layer: nn.Module, gain: float = 1.0) -> None:
    """Fill a layer's weight by Glorot & Bengio's uniform distribution, its bias by 0.

    To be called before a weight is normalized: afterwards it would fill a copy.

    Args:
        layer: with a `weight` of two axes or more; nothing is done to an identity.
        gain: √2 for the 3×3 convolutions of a block, 1 for all else, as in the authors' code.
    """
    if isinstance(layer, nn.Identity):
        return
    nn.init.xavier_uniform_(layer.get_parameter("weight"), gain)
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.get_parameter("bias"))
