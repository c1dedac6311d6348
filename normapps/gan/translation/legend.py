"""Label maps: what their pixels say, and which class that is. Loads no torch.

A map is a picture of class ids (indexed or greyscale, 8 or 16 bits) or of colours that stand for
classes. Which ids or colours there are is learned from the maps that are trained on: a `Legend`.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...errors import InputError

MAX_CLASSES = 255
NO_CLASS = 255
"""The index of positions that belong to no class: the network sees a 0 in every channel."""

_ID_MODES = ("P", "L", "LA", "1", "I;16", "I;16B", "I")
_COLOUR_MODES = ("RGB", "RGBA", "RGBX")

Kind = Literal["ids", "colours"]


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A map as its file has it.

    Attributes:
        kind: whether its pixels are class ids or colours.
        codes: (H, W) int32: an id from 0 to 65535, or a colour as 0xRRGGBB.
        palette: of an indexed picture, the colour of each id from 0 on; otherwise empty.
    """

    kind: Kind
    codes: np.ndarray
    palette: tuple[int, ...] = ()

    def content(self, name: str) -> MapContent:
        """Return which codes there are, and which of them each position has.

        Raises:
            InputError: naming the map: it has more codes than a label map can.
        """
        codes, places = np.unique(self.codes, return_inverse=True)
        if len(codes) > MAX_CLASSES:
            raise InputError(
                f"{name}: has {len(codes)} different {self.kind}; a label map has one a class, "
                f"{MAX_CLASSES} at most (save it without smoothing)"
            )
        places = places.reshape(self.codes.shape).astype(np.uint8)
        # of the ids that occur: what a palette says of others may be anything
        chosen = {code: self.palette[code] for code in codes.tolist() if code < len(self.palette)}
        return MapContent(self.kind, codes, places, chosen)


@dataclass(frozen=True, eq=False)
class MapContent:
    """The codes of a map.

    Attributes:
        kind: ids or colours.
        codes: (n,) ascending.
        places: (H, W) uint8, positions in `codes`.
        palette: the colour that the file gives to each id that it holds, where it does.
    """

    kind: Kind
    codes: np.ndarray
    places: np.ndarray
    palette: Mapping[int, int]


def read_map(file: BinaryIO, name: str) -> LabelMap:
    """Read a map without changing a pixel: no orientation, no profile, no alpha.

    Raises:
        InputError: naming the file: it cannot be read, is a JPEG, or has no ids and no colours.
    """
    try:
        with Image.open(file) as image:
            if image.format in ("JPEG", "MPO"):
                raise InputError(f"{name}: a JPEG smears classes; save label maps as PNG")
            image.load()
            return _label_map(image, name)
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: is no picture; save label maps as PNG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: cannot be read as a label map ({error})") from error


def _label_map(image: Image.Image, name: str) -> LabelMap:
    if image.mode in _COLOUR_MODES:
        rgb = np.asarray(image.convert("RGB")).astype(np.int32)
        return LabelMap("colours", rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2])
    if image.mode not in _ID_MODES:
        raise InputError(f"{name}: a picture of mode {image.mode}; save it as 8-bit PNG of ids")
    plain = image.getchannel("L") if image.mode == "LA" else image
    return LabelMap("ids", np.asarray(plain).astype(np.int32), _palette(image))


def _palette(image: Image.Image) -> tuple[int, ...]:
    if image.mode != "P":
        return ()
    flat = image.getpalette("RGB") or []
    return tuple(r << 16 | g << 8 | b for r, g, b in zip(*[iter(flat)] * 3, strict=False))


@dataclass(frozen=True)
class Legend:
    """Which id or colour is which class.

    Attributes:
        kind: what the maps hold.
        values: the code of each class, ascending; its place is the class index.
        shown: the colour of each class where a map is shown to people, as 0xRRGGBB.
        ignored: codes that are no class.
    """

    kind: Kind
    values: tuple[int, ...]
    shown: tuple[int, ...]
    ignored: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Legend:
        """Undo `dataclasses.asdict`, after JSON.

        Raises:
            InputError: it is something else.
        """
        try:
            codes = {name: tuple(values[name]) for name in ("values", "shown", "ignored")}
            return cls(values["kind"], **codes)
        except (KeyError, TypeError) as error:
            raise InputError(f"the model's legend of label maps is damaged ({error!r})") from error

    def indices(self, content: MapContent, name: str) -> np.ndarray:
        """Return (H, W) uint8 class indices, `NO_CLASS` for what is ignored.

        Raises:
            InputError: naming the map: it is of the other kind, or holds an unknown code.
        """
        if content.kind != self.kind:
            raise InputError(
                f"{name}: is a map of {content.kind}, and the network was trained on {self.kind}"
            )
        indices: np.ndarray = self.lookup(content.codes, name)[content.places]
        return indices

    def lookup(self, codes: np.ndarray, name: str) -> np.ndarray:
        """Return the uint8 class index of each code (n,).

        Raises:
            InputError: naming the map and the first code that no training map has.
        """
        known = np.array(self.values, np.int64)
        places = np.searchsorted(known, codes).clip(max=len(known) - 1)
        found = known[places] == codes
        is_ignored = np.isin(codes, self.ignored)
        strange = codes[~(found | is_ignored)]
        if len(strange):
            raise InputError(
                f"{name}: holds {self._named(int(strange[0]))}{_more(len(strange) - 1)}, which no "
                f"map of the training has ({self._listed()})"
            )
        return np.where(found, places, NO_CLASS).astype(np.uint8)

    def picture(self, indices: np.ndarray) -> np.ndarray:
        """Return class indices (H, W) as (H, W, 3) uint8, as `shown`; no class is black."""
        table = np.zeros((256, 3), np.uint8)
        for index, colour in enumerate(self.shown):
            table[index] = (colour >> 16, colour >> 8 & 255, colour & 255)
        pixels: np.ndarray = table[indices]
        return pixels

    def _named(self, code: int) -> str:
        return f"the colour #{code:06x}" if self.kind == "colours" else f"id {code}"

    def _listed(self) -> str:
        form = "#{:06x}" if self.kind == "colours" else "{}"
        names = [form.format(code) for code in self.values[:8]]
        return ", ".join(names) + (", …" if len(self.values) > 8 else "")


class LegendMaker:
    """Learns a `Legend` from maps, one at a time.

    Args:
        ignored: ids (`255`) or colours (`#ff00ff`) that are no class.

    Raises:
        InputError: an `ignored` that is neither.
    """

    def __init__(self, ignored: Sequence[str] = ()) -> None:
        self._ignored = tuple(sorted(_code(text) for text in ignored))
        self._codes: set[int] = set()
        self._kind: Kind | None = None
        self._colours: dict[int, int] = {}
        self._first = ""

    def add(self, content: MapContent, name: str) -> None:
        """Take what a map holds into the legend.

        Raises:
            InputError: naming the map: it is of another kind than the first, or gives an id
                another colour. The legend is then as it was.
        """
        kind = self._kind or content.kind
        if content.kind != kind:
            raise InputError(f"{name}: is a map of {content.kind}, and {self._first} one of {kind}")
        for code, colour in content.palette.items():
            if self._colours.get(code, colour) != colour:
                raise InputError(
                    f"{name}: its palette gives id {code} another colour than the maps before; "
                    "save the maps as RGB, or with one palette"
                )
        self._kind, self._first = kind, self._first or name
        self._colours |= content.palette
        self._codes |= set(content.codes.tolist())

    def legend(self, place: str = "the maps") -> Legend:
        """Return what was learned.

        Args:
            place: where the maps lie, for errors.

        Raises:
            InputError: fewer than two classes, or more than `MAX_CLASSES`.
        """
        values = tuple(sorted(self._codes - set(self._ignored)))
        kind = self._kind or "ids"
        if len(values) < 2:
            raise InputError(
                f"{place}: {len(values)} class in all; there must be at least 2 to learn from"
            )
        if len(values) > MAX_CLASSES:
            raise InputError(
                f"{place}: {len(values)} different {kind} in all; {MAX_CLASSES} at most: "
                "are they label maps, without smoothing?"
            )
        return Legend(kind, values, self._shown(values, kind), self._ignored)

    def _shown(self, values: tuple[int, ...], kind: Kind) -> tuple[int, ...]:
        if kind == "colours":
            return values
        if len({self._colours.get(value) for value in values}) > 1:
            return tuple(self._colours.get(value, 0) for value in values)
        return tuple(_distinct(index, len(values)) for index in range(len(values)))


def _distinct(index: int, count: int) -> int:
    red, green, blue = colorsys.hsv_to_rgb(index / count, 0.8, 0.9 if index % 2 else 0.6)
    return round(red * 255) << 16 | round(green * 255) << 8 | round(blue * 255)


def _code(text: str) -> int:
    try:
        return int(text[1:], 16) if text.startswith("#") else int(text)
    except ValueError:
        raise InputError(f"--ignore {text}: must be an id such as 255, or #rrggbb") from None


def _more(count: int) -> str:
    return f" and {count} more" if count else ""
