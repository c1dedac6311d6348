"""The pictures of a compression: some train, recalibrate and calibrate, the others judge.

They are told apart once, before anything else, as two lists in OUT/pictures. What judges does
nothing else, whatever the stages do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.archive import is_archive, unpack
from ..data.classes import in_order
from ..data.labels import class_numbers, model_classes
from ..data.pictures import Pictures, decoded
from ..errors import InputError
from ..files import write_text
from ..models.preprocessing import Preprocessing
from .options import CompressOptions

FOLDER, TRAIN, TEST, SPLIT = "pictures", "train.txt", "test.txt", "split.json"
_UNPACKED, _WHY = "unpacked", "without_accuracy"

Progress = Callable[[str, int], object]
"""Called with what was done, and how many there are of it in all."""


@dataclass(frozen=True)
class Entry:
    """A picture: what names it in a list, and its class (an empty word without)."""

    path: str
    label: str = ""


@dataclass(frozen=True)
class Split:
    """Who does what.

    Attributes:
        train, test: pictures that make the network, and that judge it.
        classes: names of the outputs, by number; empty without labels.
        without_accuracy: why labels tell nothing; empty where they do.
        failed: a line for each picture that could not be read, and is left out.
        tars: archives that the pictures are unpacked from.
    """

    train: tuple[Entry, ...]
    test: tuple[Entry, ...]
    classes: tuple[str, ...] = ()
    without_accuracy: str = ""
    failed: tuple[str, ...] = ()
    tars: tuple[str, ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether there is anything to train with and to tell right from wrong."""
        return not self.without_accuracy

    def describe(self) -> str:
        """Say in a line how many do what."""
        classes = f" of {len(self.classes)} classes" if self.classes else ""
        return f"{len(self.train)} pictures{classes} make the network, {len(self.test)} judge it"


def plan_split(
    data: str,
    options: CompressOptions,
    preprocessing: Preprocessing,
    outputs: int,
    progress: Progress | None = None,
    known: Sequence[str] = (),
) -> Split:
    """Look at all pictures, and decide which of them judge; writes nothing.

    Every picture is decoded once, so that an unreadable one is named now and not in each stage.
    Of those that are left every n-th judges, in the order of the classes, mixed within each.

    Args:
        data: folder, tar, ZIP or list.
        options: `test`, `hold_out`, `limit`, `seed` and the steps count.
        preprocessing: the network's.
        outputs: of the network.
        progress: told of every picture.
        known: names of the network's classes by number; empty where it tells none.

    Raises:
        InputError: pictures that cannot be used; the line says why.
    """
    first = _read(data, preprocessing, options.limit, progress)
    trains = bool(options.sparse_steps or options.finetune_steps)
    found = _named(first, outputs, known, trains)
    if options.test is None:
        train, test = _held_out(found.entries, options.hold_out, options.seed, data)
        others = None
    else:
        others = _read(options.test, preprocessing, None, progress)
        train, test = list(found.entries), _matched(others, first, found, data)
    both = [first] if others is None else [first, others]
    return Split(
        tuple(train),
        tuple(test),
        found.classes,
        found.without_accuracy,
        tuple(line for each in both for line in each.failed),
        tuple(each.pictures.place for each in both if each.is_archive),
    )


def write_split(split: Split, folder: Path) -> None:
    """Write the two lists, and last of all what tells that they are whole.

    Raises:
        InputError: an archive that cannot be unpacked, or a folder that cannot be written.
    """
    for number, place in enumerate(split.tars):
        unpack(Path(place), folder / f"{_UNPACKED}{number or ''}")
    for name, entries in ((TRAIN, split.train), (TEST, split.test)):
        lines = (f"{each.path}\t{each.label}".rstrip("\t") + "\n" for each in entries)
        write_text(folder / name, "".join(lines))
    write_text(folder / SPLIT, json.dumps(asdict(split), indent=1) + "\n")


def read_split(folder: Path) -> Split | None:
    """Return what `write_split` wrote, None where it did not come to its end.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / SPLIT
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        train, test = (
            tuple(Entry(**each) for each in values.pop(key)) for key in ("train", "test")
        )
        why = values.pop("without_accuracy")
        rest = {name: tuple(each) for name, each in values.items()}
        return Split(train, test, without_accuracy=why, **rest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); begin anew by --overwrite") from error


@dataclass(frozen=True)
class _Read:
    """The readable pictures of a place: their paths in a list, and numbers of their classes."""

    pictures: Pictures
    paths: tuple[str, ...]
    labels: tuple[int, ...] | None
    failed: tuple[str, ...]

    @property
    def is_archive(self) -> bool:
        return is_archive(Path(self.pictures.place))


@dataclass(frozen=True)
class _Named:
    """Pictures with the words that lists give them."""

    entries: tuple[Entry, ...]
    classes: tuple[str, ...] = ()
    without_accuracy: str = ""


def _read(
    place: str, preprocessing: Preprocessing, limit: int | None, progress: Progress | None
) -> _Read:
    pictures = Pictures(place, preprocessing, limit=limit)
    kept, failed = [], []
    for index, item in decoded(pictures, range(len(pictures))):
        if isinstance(item, Tensor):
            kept.append(index)
        else:
            failed.append(str(item))
        if progress is not None:
            progress("decoding", len(pictures))
    if not kept:
        raise InputError(
            f"{place}: not one of {len(pictures)} pictures can be read; the first: {failed[0]}"
        )
    labels = pictures.labels
    paths = tuple(_path(Path(place), pictures.name(index)) for index in kept)
    known = None if labels is None else tuple(labels[index] for index in kept)
    return _Read(pictures, paths, known, tuple(failed))


def _path(place: Path, name: str) -> str:
    if place.is_dir():
        return os.path.abspath(place / name)
    return f"{_UNPACKED}/{name}" if is_archive(place) else os.path.abspath(place.parent / name)


def _named(found: _Read, outputs: int, known: Sequence[str], trains: bool) -> _Named:
    """Give each picture the word by which every stage knows its class."""
    labels, present = found.labels, found.pictures.classes
    names, why = model_classes(found.pictures, outputs, known)
    if labels is not None and trains:
        names, why = in_order(present[label] for label in labels), ""
        if len(names) < 2:
            raise InputError(f"{found.pictures.place}: has one class; a classifier needs two")
    if labels is None or why:
        return _Named(tuple(map(Entry, found.paths)), without_accuracy=why)
    words = (present[label] for label in labels)
    return _Named(tuple(map(Entry, found.paths, words)), names)


def _held_out(
    entries: Sequence[Entry], every: int, seed: int, data: str
) -> tuple[list[Entry], list[Entry]]:
    mixed = [entries[i] for i in np.random.default_rng(seed).permutation(len(entries))]
    by_class = sorted(mixed, key=lambda each: each.label)
    sizes = {each.label: 0 for each in by_class}
    for each in by_class:
        sizes[each.label] += 1
    held = {each.path for each in by_class[every - 1 :: every] if sizes[each.label] > 1}
    train = [each for each in entries if each.path not in held]
    test = [each for each in entries if each.path in held]
    if len(train) < 2 or not test:
        raise InputError(
            f"{data}: {len(entries)} pictures are too few to hold 1 of {every} out; give more, or"
            " --test PICTURES"
        )
    return train, test


def _matched(others: _Read, first: _Read, found: _Named, data: str) -> list[Entry]:
    """Give the pictures that judge the words of the others' classes, by their names."""
    paths = others.paths
    if others.is_archive and first.is_archive:
        paths = tuple(path.replace(_UNPACKED, f"{_UNPACKED}1", 1) for path in paths)
    twice = set(map(os.path.realpath, paths)) & {os.path.realpath(each) for each in first.paths}
    if twice:
        raise InputError(f"--test: {min(twice)} is of {data}, too; what trains must not judge")
    if found.without_accuracy:
        return [Entry(path) for path in paths]
    if others.labels is None:
        raise InputError(
            f"--test {others.pictures.place}: has no labels, and {data} has; give labelled ones"
        )
    class_numbers(others.pictures, found.classes, data)  # raises where it has one more
    words = (others.pictures.classes[label] for label in others.labels)
    return list(map(Entry, paths, words))
