"""Style files and a model's presets, for torch and for numpy alike; loads no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, unknown
from ..models.shipped import resolve_model
from .stylize_options import SUFFIX

FORMAT = {"format": "normapps-style", "version": "2"}
PARTS = ("count", "mean", "var", "cov")
"""Of the moments of each level, in the order of a file's tensors `0.count`, `0.mean` …; of the
covariance the lower triangle, row by row: (1, D·(D+1)/2)."""
COLORS = "colors"
"""In place of a level's number: the moments of the painting's RGB values."""


class StyleFile(NamedTuple):
    """What a `.style` file holds: of each level, and of the colours, the tensors of `PARTS`."""

    name: str
    model: str
    levels: tuple[tuple[Any, ...], ...]
    colors: tuple[Any, ...]


def read_style_file(path: str | os.PathLike[str], framework: str = "numpy") -> StyleFile:
    """Read a `.style` file.

    Args:
        path: of the file.
        framework: whose tensors, `numpy` or `pt`.

    Raises:
        InputError: missing, damaged, or not a style file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework) as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such style file") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged or not a style file; encode it again") from error
    if any(metadata.get(key) != value for key, value in FORMAT.items()):
        raise InputError(f"{path}: not a style file of version 2; encode it again")
    try:
        names = [*range(int(metadata["levels"])), COLORS]
        *levels, colors = (tuple(tensors[f"{name}.{part}"] for part in PARTS) for name in names)
        return StyleFile(metadata["name"], metadata["model"], tuple(levels), colors)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged or not a style file; encode it again") from error


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
