"""SNGAN's residual generator and discriminator for 28, 32, 48, 64 and 128 pixels.

Miyato et al. 2018, appendix B.4, with the projection of Miyato & Koyama 2018: the channels of the
authors' networks for 32, 64 and 128 pixels; 48 pixels (STL-10, not in their code) as in mimicry;
28 pixels is ours: the network for 32 that begins at 7×7 and has a block less. The discriminator is
not normalized here: `normapps.gan.normalization` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..norm.precision import without_autocast
from .sngan_blocks import (
    NORMS,
    DiscriminatorBlock,
    GeneratorBlock,
    glorot_,
    make_norm,
    normalized,
)

GENERATORS: dict[int, tuple[int, tuple[int, ...]]] = {
    28: (7, (1, 1, 1)),
    32: (4, (1, 1, 1, 1)),
    48: (6, (1, 2, 4, 8)),
    64: (4, (1, 2, 4, 8, 16)),
    128: (4, (1, 1, 2, 4, 8, 16)),
}
"""Picture size → side of the first features, and what `width` is divided by from there on."""

DISCRIMINATORS: dict[int, tuple[int, tuple[int, ...]]] = {
    28: (2, (1, 1, 1, 1)),
    32: (2, (1, 1, 1, 1)),
    48: (4, (16, 8, 4, 2, 1)),
    64: (5, (16, 8, 4, 2, 1)),
    128: (5, (16, 8, 4, 2, 1, 1)),
}
"""Picture size → how many blocks pool, and what `width` is divided by, block by block."""

PAPER_WIDTHS = {28: (256, 128), 32: (256, 128), 48: (512, 1024), 64: (1024,) * 2, 128: (1024,) * 2}
"""Picture size → `width` of the authors' generator and of their discriminator."""

_CLASSLESS = ("bn", "in", "none")


class SnganGenerator(nn.Module):
    """A linear layer, residual blocks that each double the size, a 3×3 convolution, tanh.

    Args:
        size: side of the pictures, a key of `GENERATORS`.
        channels: of the pictures.
        latent: length of z.
        width: channels of the widest features, a multiple of 8 (48 px) or 16 (64, 128 px); see
            `PAPER_WIDTHS`.
        num_classes: 0 for none.
        norm: one of `NORMS`; see `make_norm`. The last one is never conditional on the class, as
            in the authors' code. With classes: `cbn`, `wc`, or `self-mod`, where an embedding of
            the class is added to z (Chen et al. 2019, section 3.1).

    Raises:
        InputError: an unknown size or norm, a width that does not fit, or a norm that does not go
            with the classes.
    """

    def __init__(
        self,
        size: int = 32,
        channels: int = 3,
        latent: int = 128,
        width: int = 256,
        num_classes: int = 0,
        norm: str = "bn",
    ) -> None:
        super().__init__()
        _check_size(size)
        self.bottom, divisors = GENERATORS[size]
        widths = _widths(width, divisors)
        _check(channels=channels, latent=latent, num_classes=num_classes)
        _check_norm(norm, num_classes)
        self.size, self.channels, self.latent = size, channels, latent
        self.num_classes = num_classes
        self.linear = nn.Linear(latent, self.bottom**2 * widths[0])
        has_embedding = norm == "self-mod" and num_classes
        self.embedding = nn.Embedding(num_classes, latent) if has_embedding else None
        self.blocks = nn.ModuleList(
            GeneratorBlock(inputs, outputs, norm, latent, num_classes)
            for inputs, outputs in pairwise(widths)
        )
        self.norm = make_norm("bn" if norm == "cbn" else norm, widths[-1], latent, 0)
        self.conv = nn.Conv2d(widths[-1], channels, 3, padding=1)
        for layer in (self.linear, self.conv, *([self.embedding] if self.embedding else [])):
            glorot_(layer)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return pictures (N, channels, size, size) in [−1, 1].

        Args:
            z: (N, latent), drawn from N(0, I).
            y: labels (N,), if there are classes.

        Raises:
            InputError: z or y does not fit, or y is missing or not wanted.
        """
        if z.dim() != 2 or z.shape[1] != self.latent:
            raise InputError(f"latents of {tuple(z.shape)}: must be (N, {self.latent})")
        _check_labels(self, y)
        if self.embedding is not None:
            z = z + self.embedding(y)
        x = self.linear(z).unflatten(1, (-1, self.bottom, self.bottom))
        for block in self.blocks:
            x = block(x, z, y)
        x = self.conv(normalized(self.norm, x, z, y).relu())
        return torch.tanh(x)


class SnganDiscriminator(nn.Module):
    """Residual blocks, ReLU, the sum over the positions, a linear layer; classes by projection.

    Args:
        size: side of the pictures, a key of `DISCRIMINATORS`.
        channels: of the pictures.
        width: channels of the widest features, a multiple of 16 from 48 px on; see `PAPER_WIDTHS`.
        num_classes: 0 for none.

    Raises:
        InputError: an unknown size, or a width that does not fit.
    """

    def __init__(
        self, size: int = 32, channels: int = 3, width: int = 128, num_classes: int = 0
    ) -> None:
        super().__init__()
        _check_size(size)
        poolings, divisors = DISCRIMINATORS[size]
        widths = (channels, *_widths(width, divisors))
        _check(channels=channels, num_classes=num_classes)
        self.size, self.channels, self.num_classes = size, channels, num_classes
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(inputs, outputs, is_pooling=i < poolings, is_first=i == 0)
            for i, (inputs, outputs) in enumerate(pairwise(widths))
        )
        # as in the authors' code: none at 32 pixels
        self.linear = nn.Linear(widths[-1], 1, bias=size > 32)
        self.embedding = nn.Embedding(num_classes, widths[-1]) if num_classes else None
        for layer in (self.linear, *([self.embedding] if self.embedding else [])):
            glorot_(layer)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return logits (N,), in float32 or better; high for what looks real.

        Args:
            x: pictures (N, channels, size, size) in [−1, 1].
            y: labels (N,), if there are classes.

        Raises:
            InputError: x does not fit, or y is missing or not wanted.
        """
        if x.dim() != 4 or tuple(x.shape[1:]) != (self.channels, self.size, self.size):
            wanted = f"(N, {self.channels}, {self.size}, {self.size})"
            raise InputError(f"pictures of {tuple(x.shape)}: must be {wanted}")
        _check_labels(self, y)
        for block in self.blocks:
            x = block(x)
        with without_autocast(x):
            h = x.relu().to(torch.promote_types(x.dtype, torch.float32)).sum((2, 3))
            logits: Tensor = self.linear(h).squeeze(1)
            if self.embedding is not None:
                logits = logits + (self.embedding(y) * h).sum(1)
        return logits


def sngan_generator(
    size: int = 32,
    channels: int = 3,
    latent: int = 128,
    width: int = 256,
    num_classes: int = 0,
    norm: str = "bn",
) -> SnganGenerator:
    """Make a `SnganGenerator`; in a model folder it is the builder `sngan-generator`.

    Raises:
        InputError: as `SnganGenerator`.
    """
    return SnganGenerator(size, channels, latent, width, num_classes, norm)


def sngan_discriminator(
    size: int = 32, channels: int = 3, width: int = 128, num_classes: int = 0
) -> SnganDiscriminator:
    """Make a `SnganDiscriminator`; in a model folder it is the builder `sngan-discriminator`.

    Raises:
        InputError: as `SnganDiscriminator`.
    """
    return SnganDiscriminator(size, channels, width, num_classes)


def _check_size(size: int) -> None:
    if size not in GENERATORS:
        raise InputError(f"size {size}: must be one of {', '.join(map(str, GENERATORS))}")


def _widths(width: int, divisors: Sequence[int]) -> list[int]:
    most = max(divisors)
    if width < 1 or width % most:
        raise InputError(f"width {width}: must be a multiple of {most}, from {most}")
    return [width // divisor for divisor in divisors]


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        least = 0 if name == "num_classes" else 1
        if number < least:
            raise InputError(f"{name} {number}: must be at least {least}")


def _check_norm(norm: str, num_classes: int) -> None:
    if norm == "cbn" and not num_classes:
        raise InputError("norm 'cbn' needs classes; give num_classes, or take 'bn'")
    if norm in _CLASSLESS and num_classes:
        knowing = ", ".join(each for each in NORMS if each not in _CLASSLESS)
        raise InputError(f"norm '{norm}' knows no classes; take one of {knowing}")


def _check_labels(network: SnganGenerator | SnganDiscriminator, y: Tensor | None) -> None:
    classes = network.num_classes
    if classes and y is None:
        raise InputError(f"the network has {classes} classes: give labels y (N,)")
    if not classes and y is not None:
        raise InputError("the network has no classes: leave the labels out")
