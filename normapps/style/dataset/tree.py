"""The tree of a data set, a folder at a time, and the names that its results get.

No more than one folder's names are in memory. What a picture's result is called depends on the
folder's own files only.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path, PurePosixPath

from ...data.images import SUFFIXES, WRITE_SUFFIXES
from ...errors import InputError

PREFIX = "stylize-dataset."
"""What the names of our own files in a result's top folder begin with."""


@dataclass(frozen=True)
class Item:
    """One picture: its path under the data set's folder, and that of its result, `/` between."""

    source: str
    output: str


@dataclass(frozen=True)
class Folder:
    """The files of one folder, sorted: pictures to stylize, and paths of what is copied."""

    pictures: tuple[Item, ...]
    others: tuple[str, ...]


def walk(root: Path, format: str = "keep", copy: Sequence[str] = ()) -> Iterator[Folder]:
    """Go through a data set, folders in sorted order; hidden ones and hidden files are left out.

    Args:
        root: of the data set.
        format: of the results: `keep`, `jpg` or `png`.
        copy: patterns of names, or of paths under `root`, that are no pictures to stylize.

    Raises:
        InputError: a folder that cannot be read, or a link that leads back to where it lies; a
            folder with the results of a job.
    """
    waiting: list[tuple[str, tuple[str, ...]]] = [("", ())]
    while waiting:
        name, above = waiting.pop()
        folders, files = _listed(root / name)
        _check_original(root / name, files)
        real = os.path.realpath(root / name)
        if real in above:
            raise InputError(f"{root / name}: links to a folder that it lies in; remove the link")
        yield _folder(name, folders, files, format, copy)
        inner = [str(PurePosixPath(name, each)) for each in folders]
        waiting.extend((each, (*above, real)) for each in reversed(inner))


def _listed(place: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files, sorted; broken links too, no pipes."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                elif entry.is_symlink() or entry.is_file():
                    files.append(entry.name)
    except OSError as error:
        raise InputError(
            f"{place}: cannot be searched ({error.strerror}); mend it or move it out of the tree"
        ) from error
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _check_original(place: Path, files: Sequence[str]) -> None:
    for file in files:
        if file.startswith(PREFIX):
            raise InputError(
                f"{place / file}: {place} holds results of stylize-dataset; name the original "
                "folder, or move them out of it"
            )


def _folder(
    name: str, folders: Sequence[str], files: Sequence[str], format: str, copy: Sequence[str]
) -> Folder:
    chosen = [file for file in files if _is_chosen(name, file, copy)]
    others = sorted(set(files) - set(chosen))
    given = _names(chosen, [*folders, *others], format)
    return Folder(
        tuple(Item(*(str(PurePosixPath(name, each)) for each in pair)) for pair in given),
        tuple(str(PurePosixPath(name, other)) for other in others),
    )


def _is_chosen(folder: str, file: str, copy: Sequence[str]) -> bool:
    if not file.lower().endswith(SUFFIXES):
        return False
    path = str(PurePosixPath(folder, file))
    return not any(fnmatchcase(file, each) or fnmatchcase(path, each) for each in copy)


def _names(pictures: Sequence[str], others: Sequence[str], format: str) -> list[tuple[str, str]]:
    """Each picture with its result's name; one that changes its suffix gives way to all others."""
    kept = {file for file in pictures if _suffix(file, format) == PurePosixPath(file).suffix}
    taken = {_fold(file) for file in (*kept, *others)}
    given = []
    for file in pictures:
        name = file
        if file not in kept:
            name = next(each for each in _candidates(file, format) if _fold(each) not in taken)
            taken.add(_fold(name))
        given.append((file, name))
    return given


def _candidates(file: str, format: str) -> Iterator[str]:
    """`a.png`, `a-bmp.png`, `a-bmp-2.png` … for `a.bmp`."""
    path, suffix = PurePosixPath(file), _suffix(file, format)
    yield path.stem + suffix
    plain = f"{path.stem}-{path.suffix[1:]}"
    yield plain + suffix
    yield from (f"{plain}-{number}{suffix}" for number in count(2))


def _suffix(file: str, format: str) -> str:
    """The suffix of a result: the picture's own where it says the format that is wanted."""
    own = PurePosixPath(file).suffix
    kinds = {"jpg": (".jpg", ".jpeg"), "png": (".png",), "keep": WRITE_SUFFIXES}
    if own.lower() in kinds[format]:
        return own
    return ".jpg" if format == "keep" else f".{format}"  # what we only read is HEIC: photographs


def _fold(name: str) -> str:
    """What a file system that ignores case and Unicode form takes for the same name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
