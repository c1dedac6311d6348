"""A style: the moments that a painting leaves in the network, as a small file.

It can be kept, shared, blended and applied without the painting. A style belongs to the weights
that measured it and is refused by others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError, unknown
from ..files import atomic_path
from ..norm import Moments, barycenter, mix, mix_factors
from .style_file import COLORS, FORMAT, list_presets, preset_path, read_style_file

__all__ = ["Style", "blend", "list_presets", "load_style", "preset_path"]


@dataclass(frozen=True)
class Style:
    """What a stylizer needs of a painting.

    Attributes:
        name: for file names and tables.
        model: fingerprint of the weights that measured it.
        levels: full instance moments (G=1) of each adaptive level, float32 on the CPU.
        colors: the same of the painting's RGB values in [0, 1].
    """

    name: str
    model: str
    levels: tuple[Moments, ...]
    colors: Moments

    def digest(self) -> str:
        """Return the SHA-256 of the model and all moments, 64 hexadecimal digits."""
        state = hashlib.sha256(self.model.encode())
        for moments in (*self.levels, self.colors):
            for part in (moments.mean, moments.var, moments.cov):
                if part is not None:  # a blend for adain has no covariances
                    state.update(part.contiguous().numpy().tobytes())
        return state.hexdigest()

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a `.style` file: safetensors, for adain-tiny of 17 kB, for VGG of up to a megabyte.

        Raises:
            InputError: the file exists and `overwrite` is False, or cannot be written; or the style
                is a blend for `adain`, which has no covariances.
        """
        if any(level.cov is None for level in self.levels):
            raise InputError(
                f"{path}: a blend for adain has no covariances, which a style file keeps; "
                "blend for wct, ot or cholesky, or keep the styles themselves"
            )
        parts = [*map(str, range(len(self.levels))), COLORS]
        tensors: dict[str, Tensor] = {}
        for name, moments in zip(parts, (*self.levels, self.colors), strict=True):
            tensors |= {f"{name}.{key}": value for key, value in _packed(moments).items()}
        about = {"name": self.name, "model": self.model, "levels": str(len(self.levels))}
        with atomic_path(path, overwrite=overwrite) as temporary:
            save_file(tensors, temporary, {**FORMAT, **about})


def load_style(path: str | os.PathLike[str]) -> Style:
    """Read a `.style` file.

    Raises:
        InputError: missing, damaged, or not a style file.
    """
    name, model, levels, colors = read_style_file(path, "pt")
    try:
        return Style(name, model, tuple(map(_unpacked, levels)), _unpacked(colors))
    except (InputError, RuntimeError) as error:
        raise InputError(f"{path}: damaged or not a style file; encode it again") from error


def blend(
    styles: Sequence[Style], weights: Sequence[float], name: str = "", method: str = "adain"
) -> Style:
    """Mix styles to one that a method draws as the average of what it makes of each.

    Args:
        styles: of one model.
        weights: one non-negative number a style; their sum is scaled to 1.
        name: of the blend; the names joined by `+` by default.
        method: that will draw it. For `adain` means and deviations are averaged, for `wct` and
            `cholesky` the factors of the covariances: both equal averaging the stylized features.
            For `ot` it is the Gaussians' barycentre, on the geodesic; its maps averaged miss it.

    Returns:
        A style whose levels are diagonal for `adain`, full for the others. Its colours are the
        barycentre of the colours.

    Raises:
        InputError: weights that do not fit, styles of different models, or an unknown method.
    """
    if method not in _BLENDS:
        raise unknown("method", method, _BLENDS)
    if len({style.model for style in styles}) > 1:
        raise InputError("styles of different models cannot be blended; encode them with one")
    levels = zip(*(style.levels for style in styles), strict=True)
    mixed = tuple(_BLENDS[method](parts, weights) for parts in levels)
    colors = barycenter([style.colors for style in styles], weights)
    return Style(name or "+".join(s.name for s in styles), styles[0].model, mixed, colors)


def _deviations_averaged(parts: Sequence[Moments], weights: Sequence[float]) -> Moments:
    return mix([part.diagonal() for part in parts], weights, "std")


_BLENDS: dict[str, Callable[[Sequence[Moments], Sequence[float]], Moments]] = {
    "adain": _deviations_averaged,
    "wct": mix_factors,
    "ot": barycenter,
    "cholesky": partial(mix_factors, method="cholesky"),
}
"""Of each method of `norm.TRANSFERS` what averages the moments of a level."""


def _packed(moments: Moments) -> dict[str, Tensor]:
    """Name the tensors of full moments; of the symmetric covariance the lower triangle."""
    cov = torch.as_tensor(moments.cov)
    rows, columns = torch.tril_indices(*cov.shape[1:])
    named = {"count": moments.count, "mean": moments.mean, "var": moments.var}
    named["cov"] = cov[:, rows, columns]
    return {key: value.detach().cpu().contiguous() for key, value in named.items()}


def _unpacked(parts: tuple[Tensor, ...]) -> Moments:
    count, mean, var, triangle = parts
    size = mean.shape[-1]
    cov = triangle.new_zeros(len(triangle), size, size)
    rows, columns = torch.tril_indices(size, size)
    cov[:, rows, columns] = triangle
    return Moments(count, mean, var, torch.tril(cov) + torch.tril(cov, -1).mT)
