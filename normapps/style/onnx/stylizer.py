"""The stylizer on onnxruntime: the same pictures as torch's within a level or two of 255.

A short command spends most of its time on imports: nothing here, and nothing that this imports,
loads torch. Renders as `normapps.style.render` does: the content's moments over all tiles first,
then the tiles with the moments of the whole.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from ...data.images import Picture, fit, with_pixels
from ...engine.ort import inference_session
from ...errors import InputError
from ...models.folder import check_hashes, read_manifest
from ...models.shipped import resolve_model
from ..stylize_options import AUTO, DETAIL
from ..tiles import Tile, cell_shares, reflection, tiles
from .color import Colors, Move, color_move, move_colors
from .color import preserve_color as recolor
from .detail import mix_detail
from .moments import Level, Levels, adain, mix, numbers_of
from .styles import OnnxStyle

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
"""Files of a model folder, as `write_runtime` makes them."""

STRIDE, STRIDES, MARGIN = 8, (4, 8), 96
"""Of the network (`normapps.models.adain_tiny`): stride, those of the levels, how far it looks."""

_WHOLE, _KEPT, _SIDE = 2_000_000, 32_000_000, 1024
"""Pixels up to which a picture is one piece; up to which features are kept; side of the tiles."""

Features = tuple[np.ndarray, np.ndarray]


class OnnxStylizer:
    """Arbitrary style transfer with one network, without torch.

    Args:
        folder: a model folder with the graphs `ENCODER` and `DECODER`.
        fingerprint: SHA-256 of the weights, kept in every style.
        side: of the tiles in pixels, rounded up to a multiple of 8; None tiles large pictures only.
    """

    def __init__(self, folder: Path, fingerprint: str, side: int | None = None) -> None:
        self.folder: Path | None = folder
        self.fingerprint: str = fingerprint
        self.side = side
        self._encoder = inference_session(folder / ENCODER, is_brief=True)
        self._decoder = inference_session(folder / DECODER, is_brief=True)

    @classmethod
    def load(
        cls, model: str | os.PathLike[str] = "adain-tiny", *, tile: int | None = None
    ) -> OnnxStylizer:
        """Load a shipped network by name, or a model folder with graphs.

        Args:
            model: the name or folder.
            tile: side in pixels of the tiles that pictures are cut into; None: large ones only.

        Raises:
            NormappsError: onnxruntime is not installed.
            InputError: no such model, one without graphs or that has none, or a damaged file.
        """
        folder = resolve_model(os.fspath(model))
        manifest = read_manifest(folder)
        if manifest.builder == "vgg-cascade":
            raise InputError(f"{folder}: runs on torch alone; leave --runtime out")
        for name in (ENCODER, DECODER):
            if name not in manifest.sha256:
                raise InputError(
                    f"{folder}: has no {name}; `normapps export {model} -o {model}` writes it,"
                    " or use --runtime torch"
                )
        check_hashes(folder, manifest)
        made = cls(folder, manifest.sha256["model.safetensors"], tile)
        if made._encoder.get_inputs()[0].type != "tensor(float)":
            raise InputError(
                f"{folder / ENCODER}: an older normapps made it; `normapps export {model} -o"
                f" {model} --overwrite` makes it anew"
            )
        return made

    def style(self, image: Picture, *, size: int = 512, name: str = "") -> OnnxStyle:
        """Measure the style of a painting, brought to the long side `size` first."""
        pixels = fit(image.pixels, size)
        levels = self._measure(pixels, _padded(pixels), _as_it_is, {})
        return OnnxStyle(name or "style", self.fingerprint, levels, Colors.of(pixels))

    def __call__(
        self,
        content: Picture,
        style: OnnxStyle,
        *,
        alpha: float = 1.0,
        size: int | None = None,
        preserve_color: str = "none",
        method: str = AUTO,
        mode: str = "paint",
        detail: float | None = None,
    ) -> Picture:
        """Stylize one picture; see `normapps.style.stylizer.Stylizer.__call__`.

        Raises:
            InputError: alpha or detail outside [0, 1], another method than `adain`, a mode other
                than `paint` and `color`, a style of other weights, or too little memory.
        """
        self.method_of(method)
        if mode not in ("paint", "color"):
            raise InputError(f"mode {mode}: numpy has paint and color; use torch")
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha {alpha}: must be between 0 and 1")
        if detail is not None and not 0 <= detail <= 1:
            raise InputError(f"detail {detail}: must be between 0 and 1")
        if style.model != self.fingerprint:
            raise InputError(f"style '{style.name}' was encoded by other weights; encode it again")
        source = content if size is None else _resized(content, size)
        if mode == "color":
            return with_pixels(source, move_colors(source.pixels, style.colors, alpha))
        detail = DETAIL if detail is None else detail
        painted = self._render(source.pixels, style, alpha, detail)
        return with_pixels(source, recolor(painted, source.pixels, preserve_color))

    def method_of(self, method: str = AUTO) -> str:
        """Return `adain`, the one map that the graphs have, for itself and for `auto`.

        Raises:
            InputError: another one.
        """
        if method not in (AUTO, "adain"):
            raise InputError(f"method {method}: the ONNX graphs have adain alone")
        return "adain"

    def _render(
        self, pixels: np.ndarray, style: OnnxStyle, alpha: float, detail: float
    ) -> np.ndarray:
        height, width = pixels.shape[:2]
        padded, show = _padded(pixels), color_move(pixels, style.colors, alpha)
        kept: dict[Tile, Features] = {}
        own = self._measure(pixels, padded, show, kept)
        wanted = style.levels if alpha == 1 else _mixed(own, style.levels, alpha)
        out = np.empty_like(padded)
        for tile in self._cover(padded, pixels):
            photo = show(_cut(padded, tile))
            features = kept.pop(tile) if tile in kept else self._encode(photo)
            cells = self._decode(features, own, wanted)
            if alpha < 1:
                same = self._decode(features, own, own)
                cells = cells + np.float32(1 - alpha) * (_to_cells(photo) - same)
            cells = mix_detail(np.clip(cells, 0, 1, out=cells), photo, detail)
            top, bottom, left, right = tile.inner
            out[top:bottom, left:right] = _to_pixels(tile.crop(cells, 2))
        return np.ascontiguousarray(out[:height, :width])

    def _measure(
        self, pixels: np.ndarray, padded: np.ndarray, show: Move, kept: dict[Tile, Features]
    ) -> Levels:
        """Merge the moments of all tiles over the true region; features that fit go to `kept`."""
        parts: list[list[Level]] = [[], []]
        true = (pixels.shape[0], pixels.shape[1])
        for tile in self._cover(padded, pixels):
            features = self._encode(show(_cut(padded, tile)))
            for x, stride, level in zip(features, STRIDES, parts, strict=True):
                share = None
                if padded.shape != pixels.shape:
                    share = cell_shares(true, tile.inner, stride)
                level.append(Level.of(tile.crop(x, stride), share))
            if true[0] * true[1] <= _KEPT:
                kept[tile] = features
        fine, coarse = (reduce(Level.merge, level) for level in parts)
        return fine, coarse

    def _cover(self, padded: np.ndarray, pixels: np.ndarray) -> Iterator[Tile]:
        height, width = padded.shape[:2]
        side = self.side
        if side is None:
            side = _SIDE if pixels.shape[0] * pixels.shape[1] > _WHOLE else max(height, width)
        return tiles(height, width, -(-side // STRIDE) * STRIDE, MARGIN)

    def _encode(self, photo: np.ndarray) -> Features:
        fine, coarse = self._encoder.run(None, {"pixels": np.ascontiguousarray(photo)})
        return fine, coarse

    def _decode(self, features: Features, own: Levels, wanted: Levels) -> np.ndarray:
        given: dict[str, Any] = {"numbers": numbers_of(wanted)}
        for i, name in enumerate(("fine", "coarse")):
            given[name] = features[i]
            given[f"{name}_scale"], given[f"{name}_shift"] = adain(own[i], wanted[i])
        cells: np.ndarray = self._decoder.run(None, given)[0]
        return cells


def _resized(picture: Picture, size: int) -> Picture:
    alpha = None if picture.alpha is None else fit(picture.alpha, size)
    return dataclasses.replace(picture, pixels=fit(picture.pixels, size), alpha=alpha)


def _padded(pixels: np.ndarray) -> np.ndarray:
    """Extend (H, W, 3) to the right and below by reflection, to multiples of the stride."""
    rows, columns = (reflection(side, STRIDE, 2 * STRIDE) for side in pixels.shape[:2])
    if (len(rows), len(columns)) == pixels.shape[:2]:
        return pixels
    padded: np.ndarray = pixels[rows][:, columns]
    return padded


def _cut(pixels: np.ndarray, tile: Tile) -> np.ndarray:
    top, bottom, left, right = tile.outer
    return pixels[top:bottom, left:right]


def _to_pixels(cells: np.ndarray) -> np.ndarray:
    """Shuffle (1, 12, h, w) in about [0, 1] into (2h, 2w, 3) uint8."""
    height, width = cells.shape[2:]
    levels = np.multiply(cells, np.float32(255))
    np.clip(np.rint(levels, out=levels), 0, 255, out=levels)
    squares = levels.astype(np.uint8).reshape(3, 2, 2, height, width)
    return np.reshape(squares.transpose(3, 1, 4, 2, 0), (2 * height, 2 * width, 3))


def _to_cells(pixels: np.ndarray) -> np.ndarray:
    """Cut (H, W, 3) in [0, 1] into squares of four pixels: (1, 12, H/2, W/2)."""
    height, width = (side // 2 for side in pixels.shape[:2])
    squares = pixels.reshape(height, 2, width, 2, 3).transpose(4, 1, 3, 0, 2)
    cells: np.ndarray = squares.reshape(1, 12, height, width)
    return cells


def _as_it_is(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 255


def _mixed(own: Levels, style: Levels, alpha: float) -> Levels:
    shares = (1 - alpha, alpha)
    fine, coarse = (mix(pair, shares) for pair in zip(own, style, strict=True))
    return fine, coarse
