"""The styles of a job: read or measured once, blended if weights say so, told apart by hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.images import read_image
from ..errors import InputError
from ..files import sha256
from .options import PRESET, SUFFIX, StylizeOptions
from .plan import style_name

if TYPE_CHECKING:
    from .styles import Style
    from .stylizer import Stylizer


@dataclass(frozen=True)
class Look:
    """One style that a job paints with.

    Attributes:
        style: what the stylizer takes.
        label: the style as the user gave it, a blend as `0.7 a.jpg + 0.3 b.jpg`.
        parts: hash of the file and weight of each style in it; JSON values.
    """

    style: Style
    label: str
    parts: list[dict[str, Any]]


def choose_looks(options: StylizeOptions, stylizer: Stylizer) -> list[Look]:
    """Measure the styles of a job: one for each `--style`, or their blend.

    Raises:
        InputError: a style that cannot be read, or was encoded by other weights.
    """
    from .styles import blend

    specs, weights = options.style, options.weights
    styles = [_measure(spec, options, stylizer) for spec in specs]
    hashes = [_hash(*each, stylizer) for each in zip(specs, styles, strict=True)]
    if weights is None:
        parts = ([{"sha256": digest, "weight": 1.0}] for digest in hashes)
        return [Look(*each) for each in zip(styles, specs, parts, strict=True)]
    label = " + ".join(f"{w:.3g} {spec}" for w, spec in zip(weights, specs, strict=True))
    shares = zip(hashes, weights, strict=True)
    whole = [{"sha256": digest, "weight": weight} for digest, weight in shares]
    return [Look(blend(styles, weights), label, whole)]


def _measure(spec: str, options: StylizeOptions, stylizer: Stylizer) -> Style:
    from .stylizer import resolve_style

    if spec.startswith(PRESET) or spec.lower().endswith(SUFFIX):
        style = resolve_style(stylizer, spec)
    else:
        painting = read_image(spec, max_pixels=options.max_pixels)
        style = stylizer.style(painting, size=options.style_size, name=style_name(spec))
    if style.model != stylizer.fingerprint:
        raise InputError(
            f"{spec}: was encoded by other weights than --model {options.model}; "
            "name the painting itself, or encode it again"
        )
    return style


def _hash(spec: str, style: Style, stylizer: Stylizer) -> str:
    """Hash a style's file; of a pipe, which cannot be read again, the moments that came of it."""
    from .stylizer import preset_file

    name = spec.removeprefix(PRESET)
    path = preset_file(stylizer, name) if spec.startswith(PRESET) else Path(spec)
    return sha256(path) if path.is_file() else style.digest()
