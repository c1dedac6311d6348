"""A style in numpy: read from the same `.style` files, blended by the same rule as torch's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ..style_file import read_style_file
from .moments import Level, Levels, mix


@dataclass(frozen=True)
class OnnxStyle:
    """What a stylizer needs of a painting; see `normapps.style.styles.Style`.

    Attributes:
        name: for file names and tables.
        model: fingerprint of the weights that measured it.
        levels: moments of both adaptive levels.
    """

    name: str
    model: str
    levels: Levels

    def digest(self) -> str:
        """Return the SHA-256 of the model and the moments, 64 hexadecimal digits."""
        state = hashlib.sha256(self.model.encode())
        for level in self.levels:
            for part in (level.mean, level.var):
                state.update(part.tobytes())
        return state.hexdigest()


def load_style(path: str | os.PathLike[str]) -> OnnxStyle:
    """Read a `.style` file.

    Raises:
        InputError: missing, damaged, or not a style file.
    """
    name, model, levels, _ = read_style_file(path)
    if len(levels) != 2 or not all(_fits(*parts[:3]) for parts in levels):
        raise InputError(f"{path}: damaged or not a style file; encode it again")
    fine, coarse = (Level(float(count[0]), mean[0], var[0]) for count, mean, var, _ in levels)
    return OnnxStyle(name, model, (fine, coarse))


def blend(styles: Sequence[OnnxStyle], weights: Sequence[float], name: str = "") -> OnnxStyle:
    """Mix styles by weights of sum 1; see `normapps.style.styles.blend`.

    Raises:
        InputError: styles of different models.
    """
    if len({style.model for style in styles}) > 1:
        raise InputError("styles of different models cannot be blended; encode them with one")
    fine, coarse = (mix([style.levels[i] for style in styles], weights) for i in (0, 1))
    return OnnxStyle(name or "+".join(s.name for s in styles), styles[0].model, (fine, coarse))


def _fits(count: np.ndarray, mean: np.ndarray, var: np.ndarray) -> bool:
    return mean.ndim == 2 and var.shape == mean.shape and count.shape == mean.shape[:1]
