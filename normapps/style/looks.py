"""The styles of a job: read or measured once, blended if weights say so, told apart by hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ..data.images import Picture, read_image
from ..errors import InputError
from ..files import sha256
from .masks import Mask, read_mask
from .plan import style_name
from .style_file import preset_path
from .stylize_options import PRESET, SUFFIX, StylizeOptions


class Painter(Protocol):
    """What a job needs of a stylizer, on torch or on onnxruntime; a style is what it measures."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""

    @property
    def folder(self) -> Path | None:
        """The model folder, whose presets are found; None: the shipped stylizer's."""

    def method_of(self, method: str) -> str:
        """The map of features that a name stands for, where that is `auto`."""

    def style(self, image: Picture, *, size: int, name: str) -> Any:
        """Measure the style of a painting."""

    def __call__(
        self,
        content: Picture,
        style: Any,
        *,
        alpha: float,
        size: int | None,
        preserve_color: str,
        method: str,
        mode: str,
        detail: float | None,
    ) -> Picture:
        """Stylize one picture."""


@dataclass(frozen=True)
class Look:
    """One style that a job paints with.

    Attributes:
        style: what the stylizer takes.
        label: the style as the user gave it, a blend as `0.7 a.jpg + 0.3 b.jpg`, styles under
            masks as `a.jpg in person.png + b.jpg elsewhere`.
        parts: hash of the file and weight of each style in it, and of its mask; JSON values.
    """

    style: Any
    label: str
    parts: list[dict[str, Any]]


def choose_looks(options: StylizeOptions, stylizer: Painter) -> list[Look]:
    """Measure the styles of a job: one for each `--style`, their blend, or all under their masks.

    Raises:
        InputError: a style or mask that cannot be read, or a style encoded by other weights.
    """
    specs, weights = options.style, options.weights
    styles = [_measure(spec, options, stylizer) for spec in specs]
    hashes = [_hash(*each, stylizer) for each in zip(specs, styles, strict=True)]
    if options.mask:
        return [_masked(options, styles, hashes)]
    if weights is None:
        parts = ([{"sha256": digest, "weight": 1.0}] for digest in hashes)
        return [Look(*each) for each in zip(styles, specs, parts, strict=True)]
    label = " + ".join(f"{w:.3g} {spec}" for w, spec in zip(weights, specs, strict=True))
    shares = zip(hashes, weights, strict=True)
    whole = [{"sha256": digest, "weight": weight} for digest, weight in shares]
    # the graphs of --runtime onnx draw by one method alone
    chosen = {} if options.runtime == "onnx" else {"method": stylizer.method_of(options.method)}
    return [Look(_functions(options).blend(styles, weights, **chosen), label, whole)]


def _masked(options: StylizeOptions, styles: Sequence[Any], hashes: Sequence[str]) -> Look:
    """Every style under its mask; the last may have none."""
    feather = options.mask_feather
    masks: list[Mask | None] = [
        read_mask(path, feather=feather, max_pixels=options.max_pixels) for path in options.mask
    ]
    masks += [None] * (len(styles) - len(masks))
    places = [f"in {mask.name}" if mask else "elsewhere" for mask in masks]
    label = " + ".join(map(" ".join, zip(options.style, places, strict=True)))
    parts = [
        {"sha256": digest, "weight": 1.0, "mask": mask and mask.digest(), "feather": feather}
        for digest, mask in zip(hashes, masks, strict=True)
    ]
    return Look(list(zip(styles, masks, strict=True)), label, parts)


def _functions(options: StylizeOptions) -> Any:
    """The module with the runtime's own `load_style` and `blend`."""
    return import_module(".onnx.styles" if options.runtime == "onnx" else ".styles", __package__)


def _measure(spec: str, options: StylizeOptions, stylizer: Painter) -> Any:
    path = _file(spec, stylizer)
    if path.suffix.lower() == SUFFIX:
        style = _functions(options).load_style(path)
    else:
        painting = read_image(spec, max_pixels=options.max_pixels)
        style = stylizer.style(painting, size=options.style_size, name=style_name(spec))
    if style.model != stylizer.fingerprint:
        raise InputError(
            f"{spec}: was encoded by other weights than --model {options.model}; "
            "name the painting itself, or encode it again"
        )
    return style


def _hash(spec: str, style: Any, stylizer: Painter) -> str:
    """Hash a style's file; of a pipe, which cannot be read again, the moments that came of it."""
    path = _file(spec, stylizer)
    return sha256(path) if path.is_file() else str(style.digest())


def _file(spec: str, stylizer: Painter) -> Path:
    """Where a style lies: of a preset the model's own file."""
    if spec.startswith(PRESET):
        return preset_path(spec.removeprefix(PRESET), stylizer.folder or "adain-tiny")
    return Path(spec)
