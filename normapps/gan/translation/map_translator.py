"""A trained SPADE generator that draws the files of label maps."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from ...data.picture import Picture, fitted_size
from ...engine.device import evaluating, place
from ...errors import InputError
from ...models.folder import WEIGHTS, Manifest, load_model
from ...models.spade import SpadeGenerator, one_hot
from .legend import Legend, read_map
from .options import TranslateRunOptions
from .unpaired import to_bytes

MOST = 2**24
"""Pixels of the largest map that is drawn, unless --max-pixels says otherwise."""


class MapTranslator:
    """A `Translator` of label maps: a `SpadeGenerator` and the legend of its training.

    Args:
        folder: of the model.
        manifest: the folder's.
        device: where it computes.

    Attributes:
        fingerprint: SHA-256 of its weights.
        trained_at: 0, its folder does not tell the size of the maps that it learned from.
        legend: which id or colour is which class.
        generator: the network, in evaluation mode.

    Raises:
        InputError: the model has no legend.
    """

    trained_at = 0

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        self.legend = Legend.from_json(manifest.preprocessing.get("legend", {}))
        self.generator = place(cast(SpadeGenerator, load_model(folder)), device)
        self.fingerprint = manifest.sha256[WEIGHTS]
        self._device = device

    def file(self, source: Path | BinaryIO, options: TranslateRunOptions) -> Picture:
        """Read a label map and draw its picture; see `Translator`.

        Of a network with a latent, `options.seed` chooses the picture.

        Raises:
            InputError: it is no label map, holds a class that the training had not, or is too
                large.
        """
        name = os.fspath(source) if isinstance(source, Path) else "stdin"
        content = read_map(_opened(source), name).content(name)
        indices = shrunk(self.legend.indices(content, name), options.size)
        high, wide = indices.shape
        if high * wide > (options.max_pixels or MOST):
            raise InputError(
                f"{name}: {wide}×{high} pixels are more than the limit of "
                f"{options.max_pixels or MOST}; give a --size, or --max-pixels {high * wide}"
            )
        pixels = to_bytes(self.draw(torch.from_numpy(indices), options.seed))
        return Picture(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()), format="PNG")

    def draw(self, indices: Tensor, seed: int = 0) -> Tensor:
        """Return the picture (3, H, W) in [−1, 1] of class indices (H, W).

        Sizes that the network's stride does not divide are continued by their last row and column.
        """
        high, wide = indices.shape
        stride = self.generator.stride
        padded = np.pad(indices.numpy(), [(0, -high % stride), (0, -wide % stride)], "edge")
        label_map = one_hot(torch.from_numpy(padded)[None].to(self._device), self.generator.classes)
        with evaluating(self.generator):
            made: Tensor = self.generator(label_map, self._latent(seed))
        return made[0, :, :high, :wide]

    def _latent(self, seed: int) -> Tensor | None:
        if not self.generator.latent:
            return None
        drawn = torch.Generator().manual_seed(seed)  # on the CPU: one seed, one picture, anywhere
        return torch.randn(1, self.generator.latent, generator=drawn).to(self._device)


def shrunk(indices: np.ndarray, size: int | None) -> np.ndarray:
    """Bring the long side of class indices (H, W) down to `size` pixels by the nearest."""
    high, wide = indices.shape
    if size is None or max(high, wide) <= size:
        return indices
    width, height = fitted_size(wide, high, size)
    rows = ((np.arange(height) + 0.5) * high / height).astype(int)
    columns = ((np.arange(width) + 0.5) * wide / width).astype(int)
    return np.ascontiguousarray(indices[rows][:, columns])


def _opened(source: Path | BinaryIO) -> BytesIO:
    try:
        return BytesIO(source.read_bytes() if isinstance(source, Path) else source.read())
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from error
