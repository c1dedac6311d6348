"""The styles of a data set's job: measured when first drawn, kept on disk, a few in memory."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...data.images import SUFFIXES, read_image
from ...errors import InputError
from ..plan import style_name
from ..style_file import list_presets, preset_path
from ..styles import Style, load_style
from ..stylize_options import PRESET, SUFFIX
from ..stylizer import Stylizer
from .tree import walk

ALL_PRESETS = PRESET + "all"
_IN_MEMORY = 256
_LOCKS = 64


@dataclass(frozen=True)
class Source:
    """A style to be drawn.

    Attributes:
        name: its path under the folder of styles, or what the user named it.
        path: the painting or `.style` file.
        size: of the file in bytes.
    """

    name: str
    path: Path
    size: int


def find_styles(place: str, model: str | os.PathLike[str]) -> list[Source]:
    """Find the styles that a user names, sorted.

    Args:
        place: a folder of paintings and `.style` files of any depth, one such file,
            `preset:NAME`, or `preset:all`.
        model: the model folder, whose presets are meant.

    Raises:
        InputError: no such folder, file or preset, or a folder without a style.
    """
    if place.startswith(PRESET):
        names = list_presets(model) if place == ALL_PRESETS else [place.removeprefix(PRESET)]
        found = [(PRESET + name, preset_path(name, model)) for name in names]
    elif Path(place).is_dir():
        found = _below(Path(place))
    elif Path(place).exists():
        found = [(Path(place).name, Path(place))]
    else:
        raise InputError(
            f"{place}: no such folder or painting; check the path, shipped styles are {ALL_PRESETS}"
        )
    if not found:
        raise InputError(f"{place}: holds no style ({' '.join((*SUFFIXES, SUFFIX))})")
    return [Source(name, path, _size(path)) for name, path in found]


def _size(path: Path) -> int:
    """In bytes; 0 of a broken link, which fails when it is drawn."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _below(folder: Path) -> list[tuple[str, Path]]:
    names: list[str] = []
    for each in walk(folder):
        names += (item.source for item in each.pictures)
        names += (other for other in each.others if other.lower().endswith(SUFFIX))
    return [(name, folder / name) for name in sorted(names)]


def digest(sources: Sequence[Source]) -> str:
    """Hash the names and sizes of styles: what the draw depends on, without reading the files."""
    state = hashlib.sha256()
    for source in sources:
        state.update(json.dumps([source.name, source.size]).encode() + b"\n")
    return state.hexdigest()[:16]


class StyleBank:
    """Styles by number; may be asked from several threads.

    Args:
        sources: what `find_styles` returned.
        stylizer: measures paintings.
        size: long side at which a painting is looked at, pixels.
        cache: folder for measured styles; None keeps none.
        max_pixels: largest painting to open.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        stylizer: Stylizer,
        size: int = 512,
        cache: Path | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self._sources, self._stylizer = sources, stylizer
        self._size, self._cache, self._max_pixels = size, cache, max_pixels
        self._memory: OrderedDict[int, Style] = OrderedDict()
        self._lock = threading.Lock()
        self._busy = [threading.Lock() for _ in range(_LOCKS)]
        self._failures: dict[int, str] = {}
        self._told: set[int] = set()

    def __len__(self) -> int:
        return len(self._sources)

    def name(self, index: int) -> str:
        """Return what a style is called in the manifest."""
        return self._sources[index].name

    def get(self, index: int) -> Style | None:
        """Return a style, or None where its file cannot be used."""
        with self._busy[index % _LOCKS]:  # so that no two threads measure the same
            if index in self._failures:
                return None
            with self._lock:
                if index in self._memory:
                    self._memory.move_to_end(index)
                    return self._memory[index]
            try:
                style = self._load(self._sources[index])
            except InputError as error:
                self._failures[index] = str(error)
                return None
            with self._lock:
                self._memory[index] = style
                if len(self._memory) > _IN_MEMORY:
                    self._memory.popitem(last=False)
            return style

    @property
    def failure(self) -> str:
        """Why one of the styles cannot be used; empty where all can."""
        return next(iter(self._failures.values()), "")

    def take_failures(self) -> list[tuple[str, str]]:
        """Return name and reason of each style that cannot be used, once."""
        with self._lock:
            new = {index: self._failures[index] for index in self._failures.keys() - self._told}
            self._told |= new.keys()
        return [(self.name(index), line) for index, line in sorted(new.items())]

    def _load(self, source: Source) -> Style:
        if source.path.suffix.lower() == SUFFIX:
            style = load_style(source.path)
            if style.model != self._stylizer.fingerprint:
                raise InputError(
                    f"{source.path}: was encoded by other weights than --model; encode it again"
                )
            return style
        cached = self._cached(source)
        if cached is not None and cached.is_file():
            try:
                return load_style(cached)
            except InputError:  # damaged: measured again and replaced
                cached.unlink(missing_ok=True)
        painting = read_image(source.path, max_pixels=self._max_pixels)
        name = os.fsencode(style_name(source.name)).decode(errors="replace")  # as it may be kept
        style = self._stylizer.style(painting, size=self._size, name=name)
        if cached is not None:
            with suppress(InputError):  # a cache that takes no more: measured again next time
                style.save(cached, overwrite=True)
        return style

    def _cached(self, source: Source) -> Path | None:
        """Where a measured painting is kept: found by its place, size and time, not its bytes."""
        if self._cache is None or not source.path.exists():
            return None
        path, time = os.path.realpath(source.path), os.stat(source.path).st_mtime_ns
        key = json.dumps([self._stylizer.fingerprint, self._size, path, source.size, time])
        return self._cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{SUFFIX}"


def default_cache() -> Path:
    """Return the folder of measured styles in the user's cache (`XDG_CACHE_HOME`)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "normapps" / "styles"
