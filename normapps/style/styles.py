"""A style: the moments that a painting leaves in the network, as a small file.

It can be kept, shared, blended and applied without the painting. A style belongs to the weights
that measured it and is refused by others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import InputError, unknown
from ..files import atomic_path
from ..models.shipped import resolve_model
from ..norm import Moments, mix
from .options import SUFFIX

_LEVELS = 2
_FORMAT = {"format": "normapps-style", "version": "1"}


@dataclass(frozen=True)
class Style:
    """What a stylizer needs of a painting.

    Attributes:
        name: for file names and tables.
        model: fingerprint of the weights that measured it.
        levels: instance moments (G=1) of each adaptive level, float32 on the CPU.
    """

    name: str
    model: str
    levels: tuple[Moments, ...]

    def digest(self) -> str:
        """Return the SHA-256 of the model and the moments, 64 hexadecimal digits."""
        state = hashlib.sha256(self.model.encode())
        for level in self.levels:
            for part in (level.mean, level.var):
                state.update(part.contiguous().numpy().tobytes())
        return state.hexdigest()

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a `.style` file (a safetensors file of a few kilobytes).

        Raises:
            InputError: the file exists and `overwrite` is False, or cannot be written.
        """
        tensors = {}
        for i, level in enumerate(self.levels):
            for key in ("count", "mean", "var"):
                tensors[f"{i}.{key}"] = getattr(level, key).detach().cpu().contiguous()
        with atomic_path(path, overwrite=overwrite) as temporary:
            save_file(tensors, temporary, {**_FORMAT, "name": self.name, "model": self.model})


def load_style(path: str | os.PathLike[str]) -> Style:
    """Read a `.style` file.

    Raises:
        InputError: missing, damaged, or not a style file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such style file") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged or not a style file; encode it again") from error
    if any(metadata.get(key) != value for key, value in _FORMAT.items()):
        raise InputError(f"{path}: not a style file of version 1; encode it again")
    try:
        parts = [
            [tensors[f"{i}.{key}"] for key in ("count", "mean", "var")] for i in range(_LEVELS)
        ]
        return Style(metadata["name"], metadata["model"], tuple(Moments(*part) for part in parts))
    except (KeyError, InputError) as error:
        raise InputError(f"{path}: damaged or not a style file; encode it again") from error


def blend(styles: Sequence[Style], weights: Sequence[float], name: str = "") -> Style:
    """Mix styles: means and deviations are averaged, which equals averaging stylized features.

    Args:
        styles: of one model.
        weights: one non-negative number a style; their sum is scaled to 1.
        name: of the blend; the names joined by `+` by default.

    Raises:
        InputError: weights that do not fit, or styles of different models.
    """
    if len({style.model for style in styles}) > 1:
        raise InputError("styles of different models cannot be blended; encode them with one")
    levels = zip(*(style.levels for style in styles), strict=True)
    mixed = tuple(mix(parts, weights, "std") for parts in levels)
    return Style(name or "+".join(s.name for s in styles), styles[0].model, mixed)


def list_presets(model: str | os.PathLike[str] = "adain-tiny") -> list[str]:
    """Return the names of the styles in a model's folder `styles/`, sorted.

    Args:
        model: a shipped name or a model folder.
    """
    return sorted(path.stem for path in (resolve_model(model) / "styles").glob(f"*{SUFFIX}"))


def preset_path(name: str, model: str | os.PathLike[str] = "adain-tiny") -> Path:
    """Return the file of a model's preset.

    Raises:
        InputError: no such preset; the nearest name is suggested.
    """
    names = list_presets(model)
    if not names:
        raise InputError(f"{model}: has no presets; give --style a painting")
    if name not in names:
        raise unknown("preset", name, names)
    return resolve_model(model) / "styles" / f"{name}{SUFFIX}"
