"""The stylizer: a content picture and a style in, a picture out, at any size."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.images import Picture, fit, fitted_size, read_image, to_picture, with_pixels
from ..engine.device import place, resolve_device, resolve_dtype
from ..errors import InputError
from ..models.adain_tiny import AdainTiny, Levels
from ..models.folder import load_model, read_manifest
from ..models.shipped import resolve_model
from .color import preserve_color as recolor
from .options import PRESET, SUFFIX
from .render import Renderer, as_dtype
from .styles import Style, load_style, preset_path

Content = TypeVar("Content", Image.Image, Picture, Tensor)


class Stylizer:
    """Arbitrary style transfer with one network.

    Example:
        >>> stylizer = Stylizer.load("adain-tiny")
        >>> style = stylizer.style(Image.open("painting.jpg"))
        >>> stylizer(Image.open("photo.jpg"), style, alpha=0.8).save("out.png")

    Args:
        network: with the weights, in evaluation mode.
        fingerprint: SHA-256 of the weights, kept in every style.
        device, dtype: where and in what precision convolutions run; moments are always float32.
        folder: the model folder, whose presets `resolve_style` finds.
    """

    def __init__(
        self,
        network: AdainTiny,
        fingerprint: str,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        folder: Path | None = None,
    ) -> None:
        device = device or torch.device("cpu")
        network = place(network.eval().requires_grad_(False), device, dtype)
        self.renderer = Renderer(network, device)
        self.fingerprint: str = fingerprint
        self.folder: Path | None = folder

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = "adain-tiny",
        *,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Stylizer:
        """Load a shipped network by name, or a model folder that `normapps style train` wrote.

        Args:
            model: the name or folder.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            dtype: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 where the device computes
                in it, about twice as fast as float32 and at most a few levels of 255 away.

        Raises:
            InputError: no such model, damaged weights, another kind of network, or no such device.
        """
        folder = resolve_model(os.fspath(model))
        network = load_model(folder)
        if not isinstance(network, AdainTiny):
            raise InputError(f"{folder}: holds no stylization network")
        fingerprint = read_manifest(folder).sha256["model.safetensors"]
        where = resolve_device(device)
        return cls(network, fingerprint, where, resolve_dtype(dtype, where), folder)

    def style(
        self,
        image: Image.Image | Picture | Tensor | str | os.PathLike[str],
        *,
        size: int = 512,
        name: str = "",
    ) -> Style:
        """Measure the style of a painting.

        Args:
            image: PIL image, Picture, path, or tensor (3, H, W) or (1, 3, H, W) in [0, 1].
            size: the painting is brought to this long side first; larger gives bolder strokes
                relative to the painting's own.
            name: of the style; a path's stem by default.
        """
        if isinstance(image, (str, os.PathLike)):
            name, image = name or Path(image).stem, read_image(image)
        levels = self.renderer.measure(_to_tensor(_resized(_to_source(image), size)))
        return Style(name or "style", self.fingerprint, tuple(m.to("cpu") for m in levels))

    def __call__(
        self,
        content: Content,
        style: Style,
        *,
        alpha: float = 1.0,
        size: int | None = None,
        preserve_color: str = "none",
    ) -> Content:
        """Stylize one picture.

        Args:
            content: PIL image, Picture, or tensor (3, H, W) or (1, 3, H, W) float in [0, 1].
            style: what `style`, `load_style` or `blend` returned, of the same weights.
            alpha: 0 returns the content itself, 1 draws it with the style's statistics.
            size: long side of the result; the content's own by default.
            preserve_color: `none`, `luma` or `transport` (see `style.color`).

        Returns:
            What `content` is, of its size (or of long side `size`); alpha and mode `RGBA` kept.

        Raises:
            InputError: alpha outside [0, 1], a style of other weights, or too little memory.
        """
        self._check(style, alpha)
        source = _resized(_to_source(content), size)
        image = _to_tensor(source)
        out = self.renderer.render(image, _two(style), alpha)
        if preserve_color != "none":
            before, after = as_dtype(image, torch.float32), as_dtype(out, torch.float32)
            out = as_dtype(recolor(after, before, preserve_color), image.dtype)
        result: Content = _like(content, source, out)
        return result

    def _check(self, style: Style, alpha: float) -> None:
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha {alpha}: must be between 0 and 1")
        if style.model != self.fingerprint:
            raise InputError(f"style '{style.name}' was encoded by other weights; encode it again")


def resolve_style(stylizer: Stylizer, spec: str, size: int = 512) -> Style:
    """Turn what a user names into a style.

    Args:
        stylizer: encodes pictures.
        spec: path of a picture or a `.style` file, or `preset:NAME`.
        size: long side to which a picture is brought.

    Raises:
        InputError: no such preset or file, or one that cannot be read.
    """
    if spec.startswith(PRESET):
        name = spec.removeprefix(PRESET)
        return load_style(preset_path(name, stylizer.folder or "adain-tiny"))
    if spec.lower().endswith(SUFFIX):
        return load_style(spec)
    return stylizer.style(spec, size=size)


def _to_source(image: Image.Image | Picture | Tensor) -> Picture | Tensor:
    if isinstance(image, Image.Image):
        return to_picture(image)
    if isinstance(image, Tensor):
        return _checked(image)
    return image


def _checked(image: Tensor) -> Tensor:
    """Return a tensor image as (1, 3, H, W)."""
    batch = image.unsqueeze(0) if image.dim() == 3 else image
    if (
        batch.dim() != 4
        or batch.shape[:2] != (1, 3)
        or not batch.is_floating_point()
        or not batch.numel()
    ):
        raise InputError(
            f"image of shape {tuple(image.shape)} {image.dtype}: "
            "give (3, H, W) or (1, 3, H, W) float in [0, 1]"
        )
    return batch.detach()


def _resized(source: Picture | Tensor, size: int | None) -> Picture | Tensor:
    """Bring the long side to `size` pixels, antialiased; None leaves the picture alone."""
    if size is None:
        return source
    if size < 1:
        raise InputError(f"size {size}: must be at least 1")
    if isinstance(source, Picture):
        alpha = None if source.alpha is None else fit(source.alpha, size)
        return dataclasses.replace(source, pixels=fit(source.pixels, size), alpha=alpha)
    width, height = fitted_size(source.shape[3], source.shape[2], size)
    scaled = F.interpolate(source, (height, width), mode="bicubic", antialias=True)
    return scaled.clamp(0, 1)


def _to_tensor(source: Picture | Tensor) -> Tensor:
    """View a source as (1, 3, H, W): uint8 of a picture, float of a tensor."""
    if isinstance(source, Tensor):
        return source
    return torch.from_numpy(source.pixels.copy()).permute(2, 0, 1)[None]


def _like(content: Any, source: Picture | Tensor, out: Tensor) -> Any:
    """Give the result the type of what the caller gave."""
    if isinstance(source, Tensor):
        return out.view(*content.shape[:-2], *out.shape[-2:])
    painted = with_pixels(source, np.ascontiguousarray(out[0].permute(1, 2, 0).cpu().numpy()))
    if isinstance(content, Picture):
        return painted
    image = Image.fromarray(painted.pixels)
    if painted.alpha is not None:
        image.putalpha(Image.fromarray(painted.alpha))
    return image


def _two(style: Style) -> Levels:
    fine, coarse = style.levels
    return fine, coarse
