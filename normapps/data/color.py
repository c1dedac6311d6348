"""Colours of any Pillow mode to 8-bit sRGB, with the alpha kept aside.

Deep greys are scaled, not clipped; an ICC profile is applied by littleCMS (relative colorimetric
with black point compensation, as browsers do), and one that is sRGB already leaves the pixels
as they are.
"""

from __future__ import annotations

import functools
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

_TIFF_BITS, _TIFF_COMPRESSION, _TIFF_PHOTOMETRIC = 258, 259, 262
_TIFF_PLANAR, _TIFF_SAMPLE_FORMAT = 284, 339
_WHITE_IS_ZERO, _UNCOMPRESSED, _SEPARATE, _SIGNED = 0, 1, 2, 2

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of BT.601."""


class Split(NamedTuple):
    """A decoded picture with its transparency taken off.

    Attributes:
        colour: in mode L, RGB, CMYK or LAB.
        alpha: (H, W) uint8, or None for an opaque picture.
        notes: what was decided, a phrase each.
    """

    colour: Image.Image
    alpha: np.ndarray | None
    notes: tuple[str, ...]


class Converted(NamedTuple):
    """Colours in sRGB.

    Attributes:
        pixels: (H, W, 3) uint8.
        icc: the sRGB profile where the source had a usable one, otherwise None.
        notes: what was decided, a phrase each.
    """

    pixels: np.ndarray
    icc: bytes | None
    notes: tuple[str, ...]


def raw_mode(image: Image.Image) -> str:
    """How the file stores its samples, such as `RGB;16B`; ask before the image is loaded."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def is_misread(image: Image.Image) -> bool:
    """Whether Pillow would decode the file wrongly: deep TIFF planes that are not compressed."""
    return (
        _tag(image, _TIFF_PLANAR) == _SEPARATE
        and _tag(image, _TIFF_COMPRESSION) == _UNCOMPRESSED
        and len(image.getbands()) > 1
        and _bits(image) > 8
    )


def split_alpha(image: Image.Image, raw: str = "") -> Split:
    """Take the transparency off a loaded image, whichever way its format says it.

    Args:
        image: a loaded image of any mode.
        raw: what `raw_mode` said before loading; it gives a colour key its scale.
    """
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;"):
        return _split_grey(image, raw)
    if image.mode == "RGB":
        return Split(image, _keyed(np.asarray(image), image.info.get("transparency"), raw), ())
    if image.mode in ("CMYK", "LAB"):
        return Split(image, None, ())
    if not image.has_transparency_data:
        return Split(image.convert("RGB"), None, ())
    return _split_bands(image)


def to_srgb(colour: Image.Image, profile: bytes | None) -> Converted:
    """Convert to sRGB by the ICC profile; without a usable one, by the mode alone.

    Args:
        colour: in mode L, RGB, CMYK or LAB.
        profile: the ICC profile of the file, `b""` for one that could not be extracted, None
            where it has none. A broken or unfitting profile is ignored, with a note.
    """
    if profile is not None:
        try:
            return Converted(_by_profile(colour, profile), srgb_profile(), ())
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or "it is damaged"
            plain = to_srgb(colour, None)
            note = f"colour profile ignored ({reason})"
            return plain._replace(notes=(note, *plain.notes))
    if colour.mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return Converted(np.array(_transform(lab, "LAB").apply(colour)), None, ())
    notes = ("CMYK without a colour profile: its colours are a guess",)
    return Converted(np.array(colour.convert("RGB")), None, notes if colour.mode == "CMYK" else ())


@functools.cache
def srgb_profile() -> bytes:
    """Return an sRGB ICC profile, the same bytes every time."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # The header's date (bytes 24–35) is the time of making: two runs would write two files.
    profile[24:36] = bytes((0x07, 0xCF, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))
    return bytes(profile)


def fill_hidden(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Put the mean visible colour under fully transparent pixels.

    A style's or a content's statistics must not depend on what nobody sees.

    Args:
        pixels: (H, W, 3) uint8.
        alpha: (H, W) uint8.
    """
    hidden = alpha == 0
    if not hidden.any():
        return pixels
    visible = pixels[~hidden]
    mean = np.rint(visible.mean(axis=0)) if len(visible) else np.full(3, 255)
    return np.where(hidden[..., None], mean.astype(np.uint8), pixels)


def _split_bands(image: Image.Image) -> Split:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return Split(image.getchannel("L"), np.array(image.getchannel("A")), ())
    image = image.convert("RGBA")
    return Split(image.convert("RGB"), np.array(image.getchannel("A")), ())


def _split_grey(image: Image.Image, raw: str) -> Split:
    key = image.info.get("transparency")
    if image.mode in ("1", "L"):
        grey = image.convert("L")
        return Split(grey, _keyed(np.asarray(grey), key, raw), ())
    values = np.asarray(image)
    if image.mode == "F":
        grey8, notes = _float_to_8(values)
    elif image.mode == "I":
        grey8, notes = _integer_to_8(image, values)
    else:
        grey8, notes = (values >> (_bits(image) - 8)).astype(np.uint8), ()
    if image.mode != "I" and _tag(image, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey8 = 255 - grey8  # Pillow inverts these for 8 bits only
    alpha = _keyed(values, key, "") if isinstance(key, int) else None
    return Split(Image.fromarray(grey8), alpha, notes)


def _keyed(values: np.ndarray, key: object, raw: str) -> np.ndarray | None:
    """Alpha 0 where the pixel has the file's transparent colour (PNG's tRNS)."""
    if not isinstance(key, int | tuple):
        return None
    wanted = np.asarray(key)
    if raw.endswith(";16B"):
        wanted = wanted >> 8  # the pixels are the high bytes
    elif raw in ("L;2", "L;4"):
        wanted = wanted * {"L;2": 85, "L;4": 17}[raw]
    same = values == wanted
    return np.where(same.all(axis=-1) if values.ndim == 3 else same, 0, 255).astype(np.uint8)


def _float_to_8(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    finite = np.isfinite(values)
    notes: tuple[str, ...] = ()
    if not finite.all():
        notes = ("values that are not finite became black",)
    known = values[finite]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    if low >= 0 and high <= 1:
        scaled = np.where(finite, values, 0).astype(np.float64) * 255
        return np.rint(scaled).astype(np.uint8), notes
    grey = _stretch(np.where(finite, values, low), low, high)
    return grey, (*notes, f"values {low:g} to {high:g} stretched to black to white")


def _integer_to_8(image: Image.Image, values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    bits, signed = _tag(image, _TIFF_BITS), _tag(image, _TIFF_SAMPLE_FORMAT) == _SIGNED
    values = values.astype(np.int64)
    if bits == 32 and not signed:
        values &= 0xFFFFFFFF  # Pillow wraps unsigned samples into int32
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        note = f"values {low} to {high} stretched to black to white"
        return _stretch(values, low, high), (note,)
    if bits == 16:
        return (values >> (7 if signed else 8)).astype(np.uint8), ()
    return (values if high <= 255 else values >> 8).astype(np.uint8), ()


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    span = float(high) - float(low)
    shifted = values.astype(np.float64) - float(low)
    return np.rint(shifted * (255 / span if span else 0)).astype(np.uint8)


def _bits(image: Image.Image) -> int:
    return _tag(image, _TIFF_BITS) or 16


def _tag(image: Image.Image, number: int) -> int | None:
    value = getattr(image, "tag_v2", {}).get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


def _by_profile(colour: Image.Image, profile: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space)
    if mode == "RGB" and colour.mode == "L":
        colour = colour.convert("RGB")
    if mode != colour.mode:
        raise ValueError(f"a profile for {space} does not fit {colour.mode} pixels")
    transform = _transform(source, mode)
    if mode == "RGB" and _is_identity(transform):
        return np.array(colour)
    if mode == "L":
        levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        table: np.ndarray = np.asarray(transform.apply(levels))[0]
        return np.take(table, np.asarray(colour), axis=0)
    return np.array(transform.apply(colour))


def _transform(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    if mode == "L":  # littleCMS's shortcut for grey is 10 levels off in the shadows
        flags |= ImageCms.Flags.NOOPTIMIZE
    return ImageCms.buildTransform(
        source,
        ImageCms.ImageCmsProfile(BytesIO(srgb_profile())),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags,
    )


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a lattice of colours comes back within one level: rounding, not a conversion."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    result = np.asarray(transform.apply(Image.fromarray(lattice)))
    return bool(np.abs(result.astype(int) - lattice).max() <= 1)
