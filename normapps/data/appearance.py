"""Giving a picture another one's look before any network: the baselines of adaptation.

Histogram matching (albumentations) and Fourier domain adaptation (Yang & Soatto 2020, "FDA:
Fourier domain adaptation for semantic segmentation", §3), on bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import InputError
from .library import albumentations_module

KINDS = ("histogram", "fda")
BETA = 0.01
"""Half the side of the exchanged square of the spectrum as a share of the short side; §4."""


def match_histogram(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Give each channel the distribution of values of the reference's channel.

    Args:
        image: (H, W, 3) or (H, W, 1) uint8.
        reference: of as many channels and any size, in which it is taken as it is.

    Returns:
        uint8 of the image's shape.

    Raises:
        InputError: another shape or dtype, or another number of channels.
    """
    _check(image, reference)
    library = albumentations_module("mixing.domain_adaptation_functional")
    return np.asarray(library.match_histograms(image, reference)).reshape(image.shape)


def fourier_transfer(image: np.ndarray, reference: np.ndarray, beta: float = BETA) -> np.ndarray:
    """Replace the amplitudes of the lowest frequencies by the reference's; phases stay (eq. 3).

    The exchanged square reaches ⌊beta · short side⌋ frequencies from 0 both ways, as in the
    paper's code, so that the spectrum stays that of a real picture; the square of albumentations'
    function is off centre by up to three and misses frequency 0.

    Args:
        image: (H, W, 3) or (H, W, 1) uint8.
        reference: of as many channels; resized to the image's size if need be.
        beta: from 0, which exchanges the mean only, to 0.5, all.

    Returns:
        uint8 of the image's shape.

    Raises:
        InputError: another shape or dtype, another number of channels, or beta out of range.
    """
    _check(image, reference)
    if not 0 <= beta <= 0.5:
        raise InputError(f"beta {beta}: must be between 0 and 0.5")
    size = image.shape[1], image.shape[0]
    spectrum = np.fft.fft2(image, axes=(0, 1))
    wanted = np.abs(np.fft.fft2(_resized(reference, size), axes=(0, 1)))
    reach = math.floor(beta * min(size))
    low = np.ix_(*(np.abs(np.fft.fftfreq(n, 1 / n)).round() <= reach for n in image.shape[:2]))
    spectrum[low] = wanted[low] * np.exp(1j * np.angle(spectrum[low]))
    found = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return np.round(np.clip(found, 0, 255)).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Appearance:
    """A transform of `Pictures` that gives each picture the look of one of some references.

    Attributes:
        kind: `histogram` or `fda`.
        references: (H, W, C) uint8 each, of any sizes.
        seed: which reference a picture gets depends on it and the picture's index, from 0.
        beta: of `fourier_transfer`.

    Raises:
        InputError: an unknown kind, no reference, or a seed or beta out of range.
    """

    kind: str
    references: Sequence[np.ndarray]
    seed: int = 0
    beta: float = BETA

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"appearance {self.kind!r}: choose one of {', '.join(KINDS)}")
        if not len(self.references):
            raise InputError(f"appearance {self.kind}: needs at least one reference picture")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: must be a whole number from 0")
        if not 0 <= self.beta <= 0.5:
            raise InputError(f"beta {self.beta}: must be between 0 and 0.5")

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        """Change the picture of a data set that has this index."""
        chosen = np.random.default_rng([self.seed, index]).integers(len(self.references))
        reference = self.references[int(chosen)]
        if self.kind == "fda":
            return fourier_transfer(image, reference, self.beta)
        return match_histogram(image, reference)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to width and height, antialiased."""
    if pixels.shape[1::-1] == size:
        return pixels
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).reshape(*size[::-1], -1)


def _check(image: np.ndarray, reference: np.ndarray) -> None:
    for name, pixels in (("image", image), ("reference", reference)):
        is_picture = pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size
        if not is_picture or pixels.dtype != np.uint8:
            raise InputError(
                f"{name} is {pixels.shape} {pixels.dtype}; it must be (H, W, 3) or (H, W, 1) uint8"
            )
    if image.shape[2] != reference.shape[2]:
        raise InputError(
            f"reference has {reference.shape[2]} channels, the image {image.shape[2]}; "
            "give both as many"
        )
