"""Common corruptions of pictures in five severities: noise, blur, weather, light, coding.

Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations" (ImageNet-C), applied as there to the picture after resize and crop. The severity
constants are theirs where a function's docstring does not say otherwise. Everywhere we differ so:
results are rounded to bytes instead of truncated; one seed draws the same noise at every severity;
lengths in pixels (radii, sigmas) are theirs from 224 pixels of the short side on and shrink with
its root below, so that small pictures are corrupted and not wiped out.

albumentations, kornia and Pillow do the work where they have the operation with the parameter
that the severity sets; they are imported when a corruption that needs them is first used.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import InputError, unknown
from .library import albumentations_module

SEVERITIES = (1, 2, 3, 4, 5)
_SIDE = 224

Draw = np.random.Generator
Effect = Callable[[np.ndarray, int, Draw], np.ndarray]
"""(H, W, C) float32 in [0, 1], severity − 1 and random draws to floats of the same shape."""


def corrupt(
    image: np.ndarray, name: str, severity: int, seed: int | Sequence[int] = 0
) -> np.ndarray:
    """Corrupt one picture; the same arguments give the same bytes.

    Args:
        image: (H, W, 3) or (H, W, 1) uint8 sRGB.
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5.
        seed: a number from 0, or several such as (seed, index of the picture).

    Returns:
        uint8 of the same shape.

    Raises:
        InputError: an unknown name, a severity or seed out of range, or no such picture.
    """
    _check(image, name, severity)
    try:
        draw = np.random.default_rng([zlib.crc32(name.encode()), *np.atleast_1d(seed)])
    except (TypeError, ValueError) as error:
        raise InputError(f"seed {seed}: must be whole numbers from 0") from error
    found = CORRUPTIONS[name](image.astype(np.float32) / 255, severity - 1, draw)
    return np.round(np.clip(found, 0, 1) * 255).astype(np.uint8)


def parse_corruption(text: str) -> tuple[str, int]:
    """Read `name:severity`, such as `gaussian_noise:3`.

    Raises:
        InputError: an unknown name (the nearest is suggested), or no severity from 1 to 5.
    """
    name, _, severity = text.partition(":")
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if not re.fullmatch("[1-5]", severity):
        raise InputError(f"corruption {text!r}: give a severity from 1 to 5, such as {name}:3")
    return name, int(severity)


@dataclass(frozen=True)
class Corruption:
    """A corruption as a transform of `Pictures`; every picture has its own draws.

    Attributes:
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: from 0; with it and its index, a picture is always corrupted alike.

    Raises:
        InputError: an unknown name, or a severity or seed out of range.
    """

    name: str
    severity: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check(np.zeros((1, 1, 3), np.uint8), self.name, self.severity)
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: must be whole numbers from 0")

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        """Corrupt the picture of a data set that has this index."""
        return corrupt(image, self.name, self.severity, (self.seed, index))


def gaussian_noise(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Add normal noise to every value; standard deviations .08 to .38."""
    return image + draw.normal(size=image.shape) * (0.08, 0.12, 0.18, 0.26, 0.38)[level]


def shot_noise(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Count 60 down to 3 photons at white; Poisson. albumentations counts in linear light."""
    photons = (60, 25, 12, 5, 3)[level]
    return draw.poisson(image * photons) / photons


def impulse_noise(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Set values to 0 or 1, in each channel by itself; shares .03 to .27."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    hit, salt = draw.random(image.shape) < share, draw.random(image.shape) < 0.5
    return np.where(hit, salt, image)


def speckle_noise(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Add normal noise in proportion to the value; standard deviations .15 to .6."""
    return image * (1 + draw.normal(size=image.shape) * (0.15, 0.2, 0.35, 0.45, 0.6)[level])


def defocus_blur(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Blur by a disk of radius 3 to 10 pixels, its edge softened.

    The disk is antialiased, where theirs is of whole pixels, so that fractions of a pixel count.
    """
    radius = (3, 4, 6, 8, 10)[level] * _scale(image)
    reach, parts = math.ceil(radius) + 1, 8
    fine = (np.arange((2 * reach + 1) * parts) + 0.5) / parts - reach - 0.5
    inside = (fine[:, None] ** 2 + fine**2 <= radius**2).astype(np.float32)
    disk = inside.reshape(2 * reach + 1, parts, 2 * reach + 1, parts).mean((1, 3))
    return _convolve(image, disk)


def motion_blur(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Smear one way at an angle within 45° of level: radius 10 to 20, sigma 3 to 15 pixels.

    The one-sided Gaussian of ImageMagick, as theirs; the libraries' kernels are uniform or linear.
    """
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return _smear(image, radius, sigma, math.radians(draw.uniform(-45, 45)))


def gaussian_blur(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Blur by a Gaussian of sigma 1 to 6 pixels (kornia)."""
    import torch
    from kornia.filters import gaussian_blur2d

    sigma = (1, 2, 3, 4, 6)[level] * _scale(image)
    side = 2 * math.ceil(4 * sigma) + 1
    batch = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
    found = gaussian_blur2d(batch, (side, side), (sigma, sigma), border_type="replicate")
    return np.asarray(found[0].numpy().transpose(1, 2, 0))


def zoom_blur(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Average over zooms from 1 to 1.1 up to 1.3 (albumentations)."""
    steps = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[level]
    library = albumentations_module("blur.functional")
    # resized channel by channel: OpenCV drops the axis of a single one
    parts = [library.zoom_blur(image[..., c], np.arange(1, *steps)) for c in range(image.shape[2])]
    return np.stack(parts, -1)


def snow(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Whiten the picture and let flakes drift over it, two ways.

    Flakes are noise above a threshold, enlarged and smeared.
    """
    mean, spread, zoom, least, radius, sigma, share = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    height, width = image.shape[:2]
    size = math.ceil(width / zoom), math.ceil(height / zoom)
    noise = draw.normal(mean, spread, size[::-1]).astype(np.float32)
    flakes = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR))
    flakes = np.where(flakes < least, 0, flakes).clip(0, 1)[..., None].astype(np.float32)
    flakes = _smear(flakes, radius, sigma, math.radians(draw.uniform(-135, -45)))
    white = np.maximum(image, _luma(image) * 1.5 + 0.5)
    return np.asarray(share * image + (1 - share) * white + flakes + flakes[::-1, ::-1])


def rain(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Draw streaks and darken the picture (albumentations); not in ImageNet-C, constants ours.

    From 50 to 900 streaks on 224 columns, an eighth of the height long, brightness .9 to .5.
    """
    library = albumentations_module("pixel.functional")
    drops, light = ((50, 0.9), (120, 0.8), (250, 0.7), (500, 0.6), (900, 0.5))[level]
    height, width = image.shape[:2]
    length = max(2, height // 8)
    count = max(1, round(drops * width / _SIDE))
    # the first drops are the same at every severity, whose draws are as many
    starts = draw.uniform((0, -length), (width, height), (round(900 * width / _SIDE) + 1, 2))
    slant = draw.uniform(-0.5, 0.5) * length
    blur = 3 if min(height, width) > _SIDE // 4 else 1
    layer = np.zeros((height, width, 1), np.uint8)
    streaks = library.add_rain(
        layer, slant, length, 1, (150,), blur, 1.0, starts[:count].astype(int)
    )
    return np.asarray((image + streaks / np.float32(255)).clip(0, 1) * light)


def fog(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Add a cloud of diamond-square noise and scale back to the picture's maximum.

    albumentations' noise has a dark frame, for it takes what is beyond the edge for 0.
    """
    weight, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[level]
    height, width = image.shape[:2]
    found = image + weight * _plasma(max(height, width), decay, draw)[:height, :width, None]
    return np.asarray(found * image.max() / (image.max() + weight))


def brightness(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Add .1 to .5 to the value of HSV (kornia); to grey pictures as they are."""
    amount = (0.1, 0.2, 0.3, 0.4, 0.5)[level]
    if image.shape[2] == 1:
        return image + amount
    return _edit_hsv(image, 2, 1, amount)


def contrast(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Shrink the distance from each channel's mean to .4 down to .05 of it."""
    mean = image.mean((0, 1))
    return np.asarray((image - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[level] + mean)


def saturate(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Multiply the saturation of HSV (kornia); grey pictures stay as they are.

    ImageNet-C fades at its severities 1 and 2 and so is not ordered; ours are ×1.4, ×2, ×3 and
    then theirs, ×5 + .1 and ×20 + .2.
    """
    if image.shape[2] == 1:
        return image
    return _edit_hsv(image, 1, *((1.4, 0), (2, 0), (3, 0.05), (5, 0.1), (20, 0.2))[level])


def jpeg(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Compress as JPEG of quality 25 down to 7 (Pillow, as theirs)."""
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[level])
    return _from_pillow(Image.open(file), image)


def pixelate(image: np.ndarray, level: int, draw: Draw) -> np.ndarray:
    """Shrink to .6 down to .25 of the size and enlarge, by boxes (Pillow, as theirs)."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    height, width = image.shape[:2]
    small = max(1, int(width * share)), max(1, int(height * share))
    shrunk = _to_pillow(image).resize(small, Image.Resampling.BOX)
    return _from_pillow(shrunk.resize((width, height), Image.Resampling.BOX), image)


CORRUPTIONS: dict[str, Effect] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "defocus_blur": defocus_blur,
    "motion_blur": motion_blur,
    "gaussian_blur": gaussian_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "rain": rain,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "saturate": saturate,
    "jpeg": jpeg,
    "pixelate": pixelate,
}
"""Every corruption by its name."""


def _check(image: np.ndarray, name: str, severity: int) -> None:
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise InputError(f"severity {severity} of {name}: must be 1, 2, 3, 4 or 5")
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype != np.uint8 or not image.size:
        raise InputError(
            f"image is {image.shape} {image.dtype}; it must be (H, W, 3) or (H, W, 1) uint8"
        )


def _scale(image: np.ndarray) -> float:
    """What lengths in pixels are multiplied by."""
    return min(1.0, math.sqrt(min(image.shape[:2]) / _SIDE))


def _smear(image: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """Convolve with half a Gaussian along a line, its points split between their neighbours."""
    scale = _scale(image)
    steps = np.arange(0, 2 * radius + 1, 0.25)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    reach = math.ceil(2 * radius * scale) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    across = reach + steps * scale * math.cos(angle)
    down = reach + steps * scale * math.sin(angle)
    left, top = np.floor(across).astype(int), np.floor(down).astype(int)
    for right in (0, 1):
        for below in (0, 1):
            share = np.abs(1 - right - (across - left)) * np.abs(1 - below - (down - top))
            np.add.at(kernel, (top + below, left + right), weights * share)
    return _convolve(image, kernel)


def _plasma(side: int, decay: float, draw: Draw) -> np.ndarray:
    """Fractal noise in [0, 1] by the diamond-square algorithm on a torus, at least side × side."""
    step = 1 << max(1, side - 1).bit_length()
    grid, amplitude = np.zeros((step, step)), 1.0
    while step > 1:
        half = step // 2
        corners = grid[::step, ::step]

        def noise(around: np.ndarray, amplitude: float = amplitude) -> np.ndarray:
            return np.asarray(around / 4 + draw.uniform(-amplitude, amplitude, around.shape))

        rows, columns = corners + np.roll(corners, -1, 0), corners + np.roll(corners, -1, 1)
        centres = noise(rows + np.roll(rows, -1, 1))
        grid[half::step, half::step] = centres
        grid[half::step, ::step] = noise(rows + centres + np.roll(centres, 1, 1))
        grid[::step, half::step] = noise(columns + centres + np.roll(centres, 1, 0))
        # theirs multiplies two amplitudes that both decay
        step, amplitude = half, amplitude / decay**2
    grid -= grid.min()
    return np.asarray(grid / grid.max())


def _convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve with a kernel, scaled to the sum 1; the picture is mirrored at its edges."""
    found = albumentations_module("blur.functional").convolve(image, kernel / kernel.sum())
    return np.asarray(found).reshape(image.shape)


def _edit_hsv(image: np.ndarray, part: int, factor: float, amount: float) -> np.ndarray:
    """Replace hue (0), saturation (1) or value (2) x by factor · x + amount, clipped to [0, 1]."""
    import torch
    from kornia.color import hsv_to_rgb, rgb_to_hsv

    hsv = rgb_to_hsv(torch.from_numpy(image.transpose(2, 0, 1).copy()))
    hsv[part] = (factor * hsv[part] + amount).clamp(0, 1)
    return np.asarray(hsv_to_rgb(hsv).numpy().transpose(1, 2, 0))


def _luma(image: np.ndarray) -> np.ndarray:
    """(H, W, 1) luma of ITU-R 601."""
    if image.shape[2] == 1:
        return image
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.asarray((image @ weights)[..., None])


def _to_pillow(image: np.ndarray) -> Image.Image:
    pixels = np.round(image * 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if image.shape[2] == 1 else pixels)


def _from_pillow(found: Image.Image, image: np.ndarray) -> np.ndarray:
    return np.asarray(found, np.float32).reshape(image.shape) / 255
