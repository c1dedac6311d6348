"""Stylizing a data set: what is to be made, by which engine, and what an earlier run finished."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from ...engine.device import resolve_device
from ...errors import InputError, UsageError
from ...files import check_folder
from ..stylizer import Stylizer
from .bank import Source, StyleBank, default_cache, digest, find_styles
from .draw import number
from .local import each, worker_count
from .options import DatasetOptions
from .painter import DatasetResult, Painter, Work
from .ray_engine import paint_with_ray, require_ray
from .record import Outlet, Record
from .tree import Folder, Item, walk

_DECIDING = (
    *("num_styles", "seed", "alpha", "method", "size", "style_size", "preserve_color"),
    *("format", "quality", "dtype"),
)


def stylize_dataset(
    options: DatasetOptions,
    place: str | os.PathLike[str],
    styles: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    stylizer: Stylizer | None = None,
) -> DatasetJob:
    """Prepare a job; going through the job does the work.

    Example:
        >>> for result in stylize_dataset(DatasetOptions(), "train", "paintings", "stylized"):
        ...     print(result.output, result.error)

    Args:
        options: what `normapps stylize-dataset` takes as flags.
        place: folder of the data set.
        styles: a folder of paintings and `.style` files, one of them, `preset:NAME`, or
            `preset:all`.
        out: folder of the results.
        stylizer: a loaded one; otherwise options decide which is loaded.

    Raises:
        UsageError: folders that lie in each other, too few styles, or results of other options.
        InputError: no picture, no such style or model, or the extra `scale` is missing.
    """
    if options.engine == "ray":
        require_ray()
    places = (os.fspath(place), os.fspath(styles), os.fspath(out))
    _check_places(*places)
    if options.cache:
        check_folder(options.cache)
    stylizer = stylizer or _load(options)
    sources = find_styles(places[1], stylizer.folder or options.model)
    if options.num_styles > len(sources):
        raise UsageError(
            f"--num-styles {options.num_styles}: {places[1]} has {len(sources)}; give fewer"
        )
    return DatasetJob(options, places, stylizer, sources)


class DatasetJob:
    """Results to be made, as `stylize_dataset` prepared them; go through it once.

    A result is yielded when its file stands under its name or has failed; the rest goes on. When
    the iteration ends, by an interrupt too, all that was yielded is recorded. A style that cannot
    be used is yielded once, as a failure without output, and others are drawn in its place.

    Attributes:
        total: results of this shard and limit, those of earlier runs too.
        missing: how many of them no earlier run recorded.
        kept: results of earlier runs that this one has passed so far.
        copied: other files that were copied so far.
        manifest, failures: where results and failures are recorded.
    """

    def __init__(
        self,
        options: DatasetOptions,
        places: tuple[str, str, str],
        stylizer: Stylizer,
        sources: list[Source],
    ) -> None:
        self._options, self._places, self._root = options, places, Path(places[0])
        self._stylizer, self._sources = stylizer, sources
        self._pictures = self._count_pictures()
        self._record = Record(
            Path(places[2]),
            _recipe(options, stylizer, sources),
            options.part,
            resume=options.resume,
            overwrite=options.overwrite,
        )
        self.manifest, self.failures = self._record.manifest, self._record.failures
        outlet = self._record.outlet
        self._painter = _painter(options, self._root, outlet, stylizer, sources)
        self.kept = self.copied = 0
        self._problems: list[DatasetResult] = []
        self.total, self.missing = self._count_results()

    def __iter__(self) -> Generator[DatasetResult, None, None]:
        known: set[str] = set()
        try:
            for results in self._engine():
                for result in (*self._problems, *results):
                    if result.output or result.source not in known:
                        self._note(result)
                        yield result
                    if not result.output:  # a style; every actor of Ray tells of it
                        known.add(result.source)
                self._problems.clear()
        finally:
            self._record.close()

    def _note(self, result: DatasetResult) -> None:
        if result.error:
            self._record.fail(result.error)
        else:
            self._record.add(result.output, result.entry())

    def _engine(self) -> Iterator[list[DatasetResult]]:
        if self._options.engine == "ray":
            yield from paint_with_ray(self._options, self._places, self._works())
        else:
            workers = worker_count(self._options.workers, self._painter.device)
            yield from each(self._painter.paint, self._works(), workers)
        yield []

    def _works(self) -> Iterator[Work]:
        """Yield what is to be made; on the way copy what is no picture."""
        place = 0
        for folder in self._walk():
            for item in folder.pictures:
                if self._is_taken(item, place):
                    draws = self._missing(item)
                    self.kept += self._options.num_styles - len(draws)
                    if draws:
                        yield Work(item, draws)
                place += 1
            for other in folder.others:
                self._copy(other)

    def _walk(self) -> Iterator[Folder]:
        return walk(self._root, self._options.format, self._options.copy)

    def _is_taken(self, item: Item, place: int) -> bool:
        """Whether a picture is of this shard, and among those that a limit spreads over all."""
        limit, (part, parts) = self._options.limit, self._options.part
        if limit is not None and (place + 1) * limit // self._pictures == (
            place * limit // self._pictures
        ):
            return False
        return _is_of_part(item.source, part, parts)

    def _missing(self, item: Item) -> tuple[int, ...]:
        """The results that are not recorded, or gone, empty, or older than their picture."""
        draws = []
        for i in range(self._options.num_styles):
            output = self._painter.output(item, i)
            if not self._record.is_finished(output) or self._is_stale(item.source, output):
                draws.append(i)
        return tuple(draws)

    def _is_stale(self, source: str, output: str) -> bool:
        try:
            made = (Path(self._places[2]) / output).stat()
            known = (self._root / source).stat()
        except OSError:
            return True
        return known.st_mtime_ns > made.st_mtime_ns or not made.st_size

    def _copy(self, name: str) -> None:
        """Copy a file into every tree of results, unless it is there; one shard does."""
        if not _is_of_part(name, *self._options.part):
            return
        source, several = self._root / name, self._options.num_styles > 1
        for i in range(self._options.num_styles):
            output = f"{i + 1}/{name}" if several else name
            try:
                if not _is_copy(source, Path(self._places[2]) / output):
                    self._record.outlet.copy(source, output)
                    self.copied += 1
            except InputError as error:
                self._problems.append(DatasetResult(name, output, error=str(error)))

    def _count_pictures(self) -> int:
        pictures = sum(len(folder.pictures) for folder in self._walk())
        if not pictures:
            raise InputError(f"{self._root}: no pictures there; check the path")
        return pictures

    def _count_results(self) -> tuple[int, int]:
        """How many results there are to be, and how many of them are not recorded."""
        total = missing = 0
        items = (item for folder in self._walk() for item in folder.pictures)
        for item in (item for place, item in enumerate(items) if self._is_taken(item, place)):
            for i in range(self._options.num_styles):
                total += 1
                missing += not self._record.is_finished(self._painter.output(item, i))
        return total, missing


def open_painter(options: DatasetOptions, place: str, styles: str, out: str) -> Painter:
    """Load what makes results, in a process that does not record them.

    Args:
        options: of the job.
        place, styles, out: as of `stylize_dataset`.
    """
    stylizer = _load(options)
    sources = find_styles(styles, stylizer.folder or options.model)
    outlet = Outlet(Path(out), options.part)
    return _painter(options, Path(place), outlet, stylizer, sources)


def _painter(
    options: DatasetOptions,
    root: Path,
    outlet: Outlet,
    stylizer: Stylizer,
    sources: list[Source],
) -> Painter:
    cache = Path(options.cache) if options.cache else default_cache()
    bank = StyleBank(sources, stylizer, options.style_size, cache, options.max_pixels)
    return Painter(options, root, outlet, stylizer, bank, resolve_device(options.device))


def _load(options: DatasetOptions) -> Stylizer:
    return Stylizer.load(options.model, device=options.device, dtype=options.dtype)


def _recipe(options: DatasetOptions, stylizer: Stylizer, sources: list[Source]) -> dict[str, Any]:
    """What decides how results look, but for the pictures themselves; JSON values."""
    chosen = {name: getattr(options, name) for name in _DECIDING}
    styles = {"number": len(sources), "names_and_sizes": digest(sources)}
    return {"version": 1, **chosen, "model_sha256": stylizer.fingerprint, "styles": styles}


def _check_places(place: str, styles: str, out: str) -> None:
    if not (place and styles and out):
        raise UsageError("DIR, STYLES or OUT is empty; name all three")
    if not Path(place).is_dir():
        raise InputError(f"{place}: no such folder; name that of the data set")
    inside, outside = Path(os.path.realpath(place)), Path(os.path.realpath(out))
    for one, other in ((inside, outside), (outside, inside)):
        if one.is_relative_to(other):
            raise UsageError(f"{place} and {out}: one lies in the other; name a folder apart")
    paintings = Path(os.path.realpath(styles))
    if paintings.is_relative_to(outside) or outside.is_relative_to(paintings):
        raise UsageError(f"{styles} and {out}: one lies in the other; name a folder apart")


def _is_of_part(source: str, part: int, parts: int) -> bool:
    return number("shard", source) % parts == part - 1


def _is_copy(source: Path, target: Path) -> bool:
    """Whether a file was copied before: of the same size and time."""
    try:
        facts, known = source.stat(), target.stat()
    except OSError:
        return False
    return (facts.st_size, facts.st_mtime_ns) == (known.st_size, known.st_mtime_ns)
