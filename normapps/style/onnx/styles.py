"""A style in numpy: read from the same `.style` files, blended by the same rule as torch's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ..style_file import read_style_file
from .color import Colors, barycenter
from .moments import Level, Levels, mix


@dataclass(frozen=True)
class OnnxStyle:
    """What a stylizer needs of a painting; see `normapps.style.styles.Style`.

    Attributes:
        name: for file names and tables.
        model: fingerprint of the weights that measured it.
        levels: moments of both adaptive levels.
        colors: of the painting.
    """

    name: str
    model: str
    levels: Levels
    colors: Colors

    def digest(self) -> str:
        """Return the SHA-256 of the model and all that is drawn with, 64 hexadecimal digits."""
        state = hashlib.sha256(self.model.encode())
        of_levels = (part for level in self.levels for part in (level.mean, level.var))
        for part in (*of_levels, self.colors.mean, self.colors.cov):
            state.update(part.tobytes())
        return state.hexdigest()


def load_style(path: str | os.PathLike[str]) -> OnnxStyle:
    """Read a `.style` file.

    Raises:
        InputError: missing, damaged, or not a style file.
    """
    name, model, levels, colors = read_style_file(path)
    if len(levels) != 2 or not all(_fits(*parts) for parts in (*levels, colors)):
        raise InputError(f"{path}: damaged or not a style file; encode it again")
    fine, coarse = (Level(float(count[0]), mean[0], var[0]) for count, mean, var, _ in levels)
    return OnnxStyle(name, model, (fine, coarse), _colors(*colors))


def blend(styles: Sequence[OnnxStyle], weights: Sequence[float], name: str = "") -> OnnxStyle:
    """Mix styles by weights of sum 1; see `normapps.style.styles.blend`.

    Raises:
        InputError: styles of different models.
    """
    if len({style.model for style in styles}) > 1:
        raise InputError("styles of different models cannot be blended; encode them with one")
    fine, coarse = (mix([style.levels[i] for style in styles], weights) for i in (0, 1))
    colors = barycenter([style.colors for style in styles], weights)
    name = name or "+".join(style.name for style in styles)
    return OnnxStyle(name, styles[0].model, (fine, coarse), colors)


def _fits(count: np.ndarray, mean: np.ndarray, var: np.ndarray, triangle: np.ndarray) -> bool:
    if mean.ndim != 2 or var.shape != mean.shape or count.shape != mean.shape[:1]:
        return False
    groups, size = mean.shape
    return triangle.shape == (groups, size * (size + 1) // 2)


def _colors(count: np.ndarray, mean: np.ndarray, var: np.ndarray, triangle: np.ndarray) -> Colors:
    lower = np.zeros((3, 3))
    lower[np.tril_indices(3)] = triangle[0]
    return Colors(mean[0].astype(np.float64), lower + np.tril(lower, -1).T)
