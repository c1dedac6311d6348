"""Pairs drawn for the tests: discs and boxes, their maps, and pictures that follow from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([(40, 60, 120), (220, 60, 40), (60, 200, 80)], np.uint8)
"""Of ground, disc and box in the pictures."""


def shapes(count: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return maps (count, size, size) uint8 of ids 0, 1, 2 and pictures (…, 3) uint8.

    The picture is each class's colour, striped in the box and shaded in the disc, with a little
    noise: a function of the map that is not only its colour.
    """
    rng = np.random.default_rng(seed)
    down, along = np.mgrid[:size, :size]
    maps = np.zeros((count, size, size), np.uint8)
    for label_map in maps:
        top, left = rng.integers(0, size // 2, 2)
        high, wide = rng.integers(size // 4, size // 2, 2)
        label_map[top : top + high, left : left + wide] = 2
        centre, radius = rng.uniform(size / 4, 3 * size / 4, 2), rng.uniform(size / 8, size / 4)
        label_map[np.hypot(down - centre[0], along - centre[1]) < radius] = 1
    light = np.where(maps == 2, 0.6 + 0.4 * (along // 2 % 2), 1.0)
    light = np.where(maps == 1, 0.6 + 0.4 * down / size, light)
    noise = rng.normal(0, 4, (*maps.shape, 3))
    return maps, (COLOURS[maps] * light[..., None] + noise).clip(0, 255).astype(np.uint8)


def write_pairs(folder: Path, count: int, size: int, seed: int = 0) -> tuple[Path, Path]:
    """Write `shapes` as PNGs into two folders, maps as greyscale ids; return the folders."""
    places = folder / "maps", folder / "pictures"
    for place in places:
        place.mkdir(parents=True)
    for index, arrays in enumerate(zip(*shapes(count, size, seed), strict=True)):
        for place, array in zip(places, arrays, strict=True):
            Image.fromarray(array).save(place / f"{index:03d}.png")
    return places
