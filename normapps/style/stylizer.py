"""The stylizer: a content picture and a style in, a picture out, at any size."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..allocator import keep_little
from ..data.images import Picture, fit, fitted_size, read_image, to_picture, with_pixels
from ..engine.capture import capture_
from ..engine.device import place, resolve_device, resolve_dtype
from ..errors import InputError, unknown
from ..models.adain_tiny import REPLAYED, AdainTiny
from ..models.folder import load_model, read_manifest
from ..models.shipped import resolve_model
from ..models.vgg_cascade import VggCascade
from ..norm import INSTANCE, Moments
from .cascade import CascadeRenderer
from .color import move_colors
from .color import preserve_color as recolor
from .masks import Mask
from .options import AUTO, PRESET, SUFFIX
from .photo import draw_photo
from .regions import keep_uncovered, lay
from .render import TinyRenderer
from .rendering import Region, Renderer, Steady, as_dtype
from .styles import Style, load_style, preset_path
from .stylize_options import MODES

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
        tile: side in pixels of the tiles that pictures are cut into; None: large ones only.
        compile: compile the network (`engine.capture`), for a CUDA device.

    On a CPU the process may from then on keep up to 64 MiB of freed memory (`allocator`).

    Raises:
        InputError: the network is none that stylizes.
    """

    def __init__(
        self,
        network: nn.Module,
        fingerprint: str,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        folder: Path | None = None,
        tile: int | None = None,
        compile: bool = False,
    ) -> None:
        device = device or torch.device("cpu")
        if device.type == "cpu":
            keep_little()
        network = place(network.eval().requires_grad_(False), device, dtype)
        capture_(network, _replayed(network), device, compile=compile)
        self.renderer = renderer_of(network, device, tile)
        self.fingerprint: str = fingerprint
        self.folder: Path | None = folder

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = "adain-tiny",
        *,
        device: str = "auto",
        dtype: str = "auto",
        tile: int | None = None,
        compile: bool = False,
    ) -> Stylizer:
        """Load a shipped network by name, or a model folder that `normapps style train` wrote.

        Args:
            model: the name or folder.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            dtype: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 where the device computes
                in it, which is faster. With adain-tiny the picture is a few levels of 255 away
                from float32's at most; with a cascade, whose levels each start from what the one
                before rounded, details of the drawing differ.
            tile: side in pixels of the tiles that pictures are cut into, which changes the memory
                they take, and in float32 nothing else; None: large ones only.
            compile: compile the network, for a CUDA device: a minute for each size of picture.

        Raises:
            InputError: no such model, damaged weights, another kind of network, or no such device.
        """
        folder = resolve_model(os.fspath(model))
        network = load_model(folder)
        fingerprint = read_manifest(folder).sha256["model.safetensors"]
        where = resolve_device(device)
        kind = resolve_dtype(dtype, where)
        try:
            return cls(network, fingerprint, where, kind, folder, tile, compile)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from error

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
        painting = _to_tensor(_resized(_to_source(image), size))
        levels = tuple(level.to("cpu") for level in self.renderer.measure(painting))
        colors = Moments.of(as_dtype(painting, torch.float32), INSTANCE, full=True)
        return Style(name or "style", self.fingerprint, levels, colors.to("cpu"))

    def __call__(
        self,
        content: Content,
        style: Style | Sequence[tuple[Style, Mask | None]],
        *,
        alpha: float = 1.0,
        size: int | None = None,
        preserve_color: str = "none",
        method: str = AUTO,
        steady: Steady | None = None,
        mode: str = "paint",
        detail: float | None = None,
    ) -> Content:
        """Stylize one picture.

        Args:
            content: PIL image, Picture, or tensor (3, H, W) or (1, 3, H, W) float in [0, 1].
            style: what `style`, `load_style` or `blend` returned, of the same weights; or several,
                each with the mask of where it goes. One may have None, what the others leave. What
                nothing covers stays the content.
            alpha: 0 returns the content itself, 1 draws it with the style's statistics.
            size: long side of the result; the content's own by default.
            preserve_color: `none`, `luma` or `transport` (see `style.color`).
            method: how features get the style's moments (see `norm.transfer`); `auto` as the
                network has it.
            steady: see `rendering.Steady`.
            mode: `paint`; `photo`, which takes colours and light from what would be painted and
                keeps every edge (see `style.photo`); or `color`, which gives the content the
                style's colours and changes nothing else (see `style.color.move_colors`).
            detail: the photo's share in the finest lines of what is painted, 0 to 1 (see
                `style.detail`); as the network is trained by default.

        Returns:
            What `content` is, of its size (or of long side `size`); alpha and mode `RGBA` kept.

        Raises:
            InputError: alpha or detail outside [0, 1], a style of other weights, masks that do not
                fit, or too little memory.
        """
        parts = [(style, None)] if isinstance(style, Style) else style
        method = self.method_of(method)
        for each, _ in parts:
            self._check(each, alpha)
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        source = _resized(_to_source(content), size)
        image = _to_tensor(source)
        regions = lay([(each.levels, mask) for each, mask in parts], image)
        colors = [each.colors for each, _ in parts]
        if detail is not None and not 0 <= detail <= 1:
            raise InputError(f"detail {detail}: must be between 0 and 1")
        chosen: dict[str, Any] = {"alpha": alpha, "method": method, "steady": steady}
        chosen["detail"] = self.renderer.detail if detail is None else detail
        out = self._make(image, regions, colors, mode, **chosen)
        out = recolor(out, image, preserve_color)
        keep_uncovered(out, image, [r.mask for r in regions if r.mask is not None])
        result: Content = _like(content, source, out)
        return result

    def _make(
        self,
        image: Tensor,
        regions: Sequence[Region],
        colors: Sequence[Moments],
        mode: str,
        **chosen: Any,
    ) -> Tensor:
        """Draw a picture as the mode says."""
        masks = [region.mask for region in regions]
        if mode == "color":
            wanted = list(zip(colors, masks, strict=True))
            return move_colors(image, wanted, chosen["alpha"], chosen["steady"])

        def paint(picture: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
            parts = zip(regions, masks, colors, strict=True)
            laid = [Region(each.style, mask, given) for each, mask, given in parts]
            return self.renderer.render(picture, laid, **chosen)

        return draw_photo(image, masks, paint) if mode == "photo" else paint(image, masks)

    def method_of(self, method: str = AUTO) -> str:
        """Return a map of features by its name, the network's own for `auto`.

        Raises:
            InputError: the network does not draw with it.
        """
        methods = self.renderer.methods
        if method not in (AUTO, *methods):
            raise unknown("method", method, methods)
        return methods[0] if method == AUTO else method

    def _check(self, style: Style, alpha: float) -> None:
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha {alpha}: must be between 0 and 1")
        if style.model != self.fingerprint:
            raise InputError(f"style '{style.name}' was encoded by other weights; encode it again")


def renderer_of(network: nn.Module, device: torch.device, side: int | None = None) -> Renderer:
    """Return what measures and draws with a network that lies on a device.

    Args:
        network, device: in evaluation mode, and where it lies.
        side: of the tiles in pixels; None tiles large pictures only.

    Raises:
        InputError: it is no network that stylizes.
    """
    if isinstance(network, AdainTiny):
        return TinyRenderer(network, device, side)
    if isinstance(network, VggCascade):
        return CascadeRenderer(network, device, side)
    raise InputError("holds no stylization network")


def _replayed(network: nn.Module) -> tuple[str, ...]:
    """Its methods that CUDA graphs pay for: a cascade's kernels take longer than their launches."""
    return REPLAYED if isinstance(network, AdainTiny) else ()


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
    pixels = source.pixels if source.pixels.flags.writeable else source.pixels.copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]  # which warns of what is read-only


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
