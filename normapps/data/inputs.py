"""From the arguments of a batch command to its input files, and from those to its outputs.

Two results never get one file, and the same arguments give the same names again, so that a job
can be repeated.
"""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, takewhile
from pathlib import Path

from ..errors import InputError, UsageError
from .images import SUFFIXES, WRITE_SUFFIXES

STDIO = "-"


@dataclass(frozen=True)
class Input:
    """One picture to work on.

    Attributes:
        path: the file, or None for standard input.
        name: its path under the folder that was given, so that the tree can be kept; for a
            single file its file name, for standard input `stdin`.
    """

    path: Path | None
    name: Path


Planned = tuple[Input, int, Path | None]
"""An input, the number of its style, and the file to write (None: standard output)."""


def find_inputs(
    arguments: Sequence[str],
    *,
    suffixes: Sequence[str] = SUFFIXES,
) -> list[Input]:
    """Find the pictures that files, globs, folders and `-` name, in the order of the arguments.

    Folders are searched recursively and in sorted order, without hidden files. A file named as
    such is taken whatever its suffix, also when it is missing: reading it gives the reason.

    Args:
        arguments: what the user gave.
        suffixes: what counts as a picture in folders and globs; case does not matter.

    Raises:
        InputError: nothing given, or a folder or glob without a picture.
    """
    if not arguments:
        raise InputError("no pictures given; name files, folders, globs or -")
    endings = tuple(suffix.lower() for suffix in suffixes)
    found: dict[str, Input] = {}
    for argument in arguments:
        for item in _expand(argument, endings):
            key = STDIO if item.path is None else os.path.abspath(item.path)
            found.setdefault(key, item)
    return list(found.values())


def is_folder_output(out: str, results: int) -> bool:
    """Whether `out` names a folder: it exists as one, ends in `/`, holds several results.

    A name without a suffix is a folder too, because no picture can be written under it.
    """
    if out == STDIO:
        return False
    if out.endswith(("/", os.sep)) or Path(out).is_dir():
        return True
    return results > 1 or not Path(out).suffix


def plan_outputs(
    inputs: Sequence[Input], styles: Sequence[str], out: str, *, multiple: bool
) -> list[Planned]:
    """Give every result its file.

    In a folder, a result is called as its input, with `--<style>` before the suffix for several
    styles. An input that would take a name already taken gets the name of its own folder in
    front, or a number behind. Names that differ only in case count as the same.

    Args:
        inputs: what `find_inputs` returned.
        styles: the names of the styles.
        out: a file, a folder or `-`.
        multiple: every input with every style; otherwise one result an input, numbered 0.

    Returns:
        One entry a result, all styles of one input after each other.

    Raises:
        UsageError: several results and an `out` that can hold only one.
    """
    shown = _distinct(styles) if multiple else [""]
    results = len(inputs) * len(shown)
    if out == STDIO and results > 1:
        raise UsageError(f"-o -: standard output cannot hold {results} results; name a folder")
    if not is_folder_output(out, results):
        target = None if out == STDIO else Path(out)
        return [(item, index, target) for item in inputs for index in range(len(shown))]
    _check_folder(out, results)
    endings = [f"--{name}" for name in shown] if len(shown) > 1 else [""]
    return [
        (item, index, path)
        for item, paths in zip(inputs, _place(inputs, endings, Path(out)), strict=True)
        for index, path in enumerate(paths)
    ]


def _expand(argument: str, endings: tuple[str, ...]) -> Iterator[Input]:
    if argument == STDIO:
        yield Input(None, Path("stdin"))
        return
    path = Path(argument)
    if path.is_dir():
        items = list(_walk(path, endings))
    elif os.path.lexists(path) or not glob.has_magic(argument):
        items = [Input(path, Path(path.name))]
    else:
        items = list(_match(argument, endings))
    if not items:
        raise InputError(f"{argument}: no pictures there ({' '.join(endings)}); check the path")
    yield from items


def _match(pattern: str, endings: tuple[str, ...]) -> Iterator[Input]:
    """The glob's pictures, named by their path under the part of the glob that is fixed."""
    fixed = Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    for match in sorted(glob.glob(pattern, recursive=True)):
        path = Path(match)
        if path.is_dir():
            for item in _walk(path, endings):
                yield Input(item.path, _inner(path.relative_to(fixed) / item.name))
        elif path.name.lower().endswith(endings):
            yield Input(path, _inner(path.relative_to(fixed)))


def _walk(folder: Path, endings: tuple[str, ...]) -> Iterator[Input]:
    paths = []
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(endings) and not name.startswith("."):
                paths.append(Path(place, name))
    for path in sorted(paths, key=lambda path: path.relative_to(folder).parts):
        yield Input(path, path.relative_to(folder))


def _inner(name: Path) -> Path:
    """The name without `..`: a result must not leave the output folder."""
    plain = Path(os.path.normpath(name))
    return Path(plain.name) if ".." in plain.parts else plain


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be searched ({error.strerror})") from error


def _check_folder(out: str, results: int) -> None:
    path = Path(out)
    if path.is_dir() or out.endswith(("/", os.sep)):
        return
    if path.exists():
        raise UsageError(f"-o {out}: is a file, and a folder is needed; name another")
    if path.suffix.lower() in SUFFIXES:
        raise UsageError(
            f"-o {out}: one file cannot hold {results} results; name a folder, -o {path.stem}/"
        )


def _distinct(styles: Sequence[str]) -> list[str]:
    """Style names fit for file names, numbered where two are the same."""
    names: list[str] = []
    taken: set[str] = set()
    for style in styles:
        plain = re.sub(r'[\x00-\x1f/\\:*?"<>|]+', "-", style).strip("-. ") or "style"
        numbered = (f"{plain}-{number}" for number in count(2))
        name = next(name for name in chain((plain,), numbered) if _fold(name) not in taken)
        taken.add(_fold(name))
        names.append(name)
    return names


def _place(inputs: Sequence[Input], endings: Sequence[str], folder: Path) -> list[list[Path]]:
    """The files of every input, none twice and none called like another's folder.

    Names are given out to the deepest first, because a folder cannot give way to a file, then to
    those that keep their suffix.
    """

    def rank(index: int) -> tuple[int, bool]:
        name = inputs[index].name
        return -len(name.parts), _suffix(inputs[index]) != name.suffix

    taken: set[str] = set()
    numbers: dict[str, int] = {}
    placed: dict[int, list[Path]] = {}
    for index in sorted(range(len(inputs)), key=rank):
        item = inputs[index]
        for stem in _stems(item, numbers):
            names = [item.name.parent / f"{stem}{end}{_suffix(item)}" for end in endings]
            if not any(key in taken for key in map(_key, names)):
                break
        taken.update(map(_key, [*names, *item.name.parents]))
        placed[index] = [folder / name for name in names]
    return [placed[index] for index in range(len(inputs))]


def _suffix(item: Input) -> str:
    suffix = item.name.suffix
    if suffix.lower() in WRITE_SUFFIXES:
        return suffix
    return ".jpg" if suffix.lower() in (".heic", ".heif") else ".png"


def _stems(item: Input, numbers: dict[str, int]) -> Iterator[str]:
    """The name itself, with its folder in front, then numbered, without end.

    `numbers` remembers the next number of every name, so that many clashes stay cheap.
    """
    stem = item.name.stem
    yield stem
    root = _root_name(item)
    if root:
        yield f"{root}-{stem}"
    key = _fold(item.name.with_suffix("").as_posix())
    while True:
        numbers[key] = numbers.get(key, 1) + 1
        yield f"{stem}-{numbers[key]}"


def _root_name(item: Input) -> str:
    """The name of the folder that was given, or that holds the file that was given."""
    if item.path is None:
        return ""
    return Path(os.path.abspath(item.path)).parents[len(item.name.parts) - 1].name


def _key(name: Path) -> str:
    return _fold(name.as_posix())


def _fold(name: str) -> str:
    """What a file system that ignores case and Unicode form takes for the same name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
