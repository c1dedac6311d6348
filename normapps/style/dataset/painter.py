"""Making the results of one picture: its draws, its bytes, and what becomes of failures."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ...data.images import Picture, encode_image, read_image
from ...errors import InputError, NormappsError
from ..styles import Style
from ..stylizer import Stylizer
from . import draw
from .bank import StyleBank
from .options import DatasetOptions
from .record import Outlet
from .tree import Item

_NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory", re.IGNORECASE)
_SIDES = (1024, 512, 256, 128)
"""Of the tiles, in pixels, by which a picture is tried again that was too large for the memory."""


@dataclass(frozen=True)
class Work:
    """A picture and which of its results are to be made: numbers of draws from 0."""

    item: Item
    draws: tuple[int, ...]


@dataclass(frozen=True)
class DatasetResult:
    """What became of one result.

    Attributes:
        source: the picture's path under the data set's folder; of a failed style its own.
        output: the result's path under the folder of the results; empty where a style failed.
        style: the painting's path under the folder of styles, or the preset.
        alpha: strength.
        width, height: of the result in pixels.
        source_sha256: of the picture's file.
        error: why it failed, one line that names the file; otherwise empty.
    """

    source: str
    output: str
    style: str = ""
    alpha: float = 1.0
    width: int = 0
    height: int = 0
    source_sha256: str = ""
    error: str = ""

    def entry(self) -> dict[str, Any]:
        """Return what a manifest says of it beside the output."""
        values = dataclasses.asdict(self)
        del values["output"], values["error"]
        return values


class Painter:
    """Stylizes pictures of a data set; may be used by several threads.

    Args:
        options: of the job.
        root: folder of the data set.
        outlet: takes the results.
        stylizer: paints.
        bank: of styles.
        device: where the stylizer's network lies.

    Attributes:
        device: as given.
    """

    def __init__(
        self,
        options: DatasetOptions,
        root: Path,
        outlet: Outlet,
        stylizer: Stylizer,
        bank: StyleBank,
        device: torch.device,
    ) -> None:
        self._options, self._root, self._outlet = options, root, outlet
        self._stylizer, self._bank, self.device = stylizer, bank, device
        # a GPU has no use for two networks at once, and its memory not for two pictures
        self._turn: AbstractContextManager[Any] = (
            nullcontext() if device.type == "cpu" else threading.Lock()
        )

    def paint(self, work: Work) -> list[DatasetResult]:
        """Make and write the results of one picture; what fails gives a result with an error.

        Raises:
            NormappsError: nothing more can be written, or not one style can be used.
        """
        results = [DatasetResult(work.item.source, self.output(work.item, i)) for i in work.draws]
        try:
            data = (self._root / work.item.source).read_bytes()
            picture = self._read(data, self._root / work.item.source)
        except (InputError, OSError, MemoryError) as error:
            reason = _explain(error, str(self._root / work.item.source))
            return [dataclasses.replace(result, error=reason) for result in results]
        known = hashlib.sha256(data).hexdigest()
        styles = list(self._styles(work.item.source, 1 + max(work.draws)))
        made = []
        for i, result in zip(work.draws, results, strict=True):
            index, style = styles[i]
            name, alpha = self._bank.name(index), self.alpha(work.item.source, i)
            chosen = dataclasses.replace(result, style=name, alpha=alpha)
            made.append(self._make(picture, style, chosen, known))
        return made + [
            DatasetResult(name, "", error=line) for name, line in self._bank.take_failures()
        ]

    def output(self, item: Item, number: int) -> str:
        """Return a result's path under the folder of the results."""
        return item.output if self._options.num_styles == 1 else f"{number + 1}/{item.output}"

    def alpha(self, source: str, number: int) -> float:
        """Draw the strength of a picture's result, to 4 digits."""
        low, high = self._options.alphas
        drawn = draw.share(self._options.seed, "alpha", number, source)
        return round(low + (high - low) * drawn, 4)

    def _styles(self, source: str, wanted: int) -> Iterator[tuple[int, Style]]:
        """Draw different styles for a picture; one that cannot be used is passed over."""
        found = 0
        for index in draw.order(len(self._bank), self._options.seed, "style", source):
            style = self._bank.get(index)
            if style is not None:
                yield index, style
                found += 1
            if found == wanted:
                return
        raise NormappsError(
            f"{found} of {len(self._bank)} styles can be used, fewer than --num-styles; "
            f"one that cannot: {self._bank.failure}"
        )

    def _read(self, data: bytes, path: Path) -> Picture:
        stream = _Named(data)
        stream.name = str(path)
        return read_image(stream, max_pixels=self._options.max_pixels)

    def _make(
        self, picture: Picture, style: Style, result: DatasetResult, known: str
    ) -> DatasetResult:
        try:
            painted = self._paint(picture, style, result.alpha)
            data = encode_image(
                painted, PurePosixPath(result.output).suffix, quality=self._options.quality
            )
            self._outlet.write(result.output, data)
        except (InputError, MemoryError) as error:
            reason = _explain(error, str(self._root / result.source))
            return dataclasses.replace(result, error=reason)
        width, height = painted.size
        return dataclasses.replace(result, width=width, height=height, source_sha256=known)

    def _paint(self, picture: Picture, style: Style, alpha: float) -> Picture:
        """Stylize; where memory does not suffice again by tiles, smaller and smaller."""
        for stylizer in (self._stylizer, *(_tiled(self._stylizer, side) for side in _SIDES)):
            try:
                with self._turn:
                    return stylizer(
                        picture,
                        style,
                        alpha=alpha,
                        size=self._options.size,
                        preserve_color=self._options.preserve_color,
                        method=self._options.method,
                    )
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
                    raise
        raise MemoryError


class _Named(io.BytesIO):
    """Bytes under a name, so that errors can name them."""

    name: str


def _tiled(stylizer: Stylizer, side: int) -> Stylizer:
    """The same stylizer, with tiles of a side in pixels where its network can be tiled."""
    renderer: Any = stylizer.renderer
    tiled = copy.copy(stylizer)
    if hasattr(renderer, "side"):
        tiled.renderer = dataclasses.replace(renderer, side=side)
    return tiled


def _explain(error: Exception, name: str) -> str:
    """The line that says which file failed and why."""
    if isinstance(error, MemoryError):
        return f"{name}: out of memory, by tiles too; a smaller --size needs less"
    if isinstance(error, OSError):
        return f"{name}: cannot be read ({error.strerror}); check the disk and its permissions"
    reason = " ".join(str(error).split())
    return reason if name in reason else f"{name}: {reason}"
