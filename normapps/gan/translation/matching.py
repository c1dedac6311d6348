"""Which map belongs to which picture: the one of the same name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True)
class Pair:
    """A map and a picture of one name: their places in the two lists."""

    name: str
    label_map: int
    picture: int


def match(maps: Sequence[str], pictures: Sequence[str]) -> tuple[list[Pair], list[str]]:
    """Pair two lists of files by their names without suffixes.

    Folders are part of a name unless the files of each list have different names without them.

    Args:
        maps, pictures: paths, relative to what holds them.

    Returns:
        The pairs, sorted by name, and a line for each file that has no partner or whose name
        another file before it has.
    """
    key = _stem if _are_distinct(maps) and _are_distinct(pictures) else _path
    lines: list[str] = []
    ours, theirs = _places(maps, key, lines), _places(pictures, key, lines)
    names = sorted(ours.keys() & theirs.keys())
    for name in sorted(ours.keys() ^ theirs.keys()):
        is_map = name in ours
        file, other = (maps[ours[name]], "picture") if is_map else (pictures[theirs[name]], "map")
        lines.append(f"{file}: there is no {other} called '{name}'; left out")
    return [Pair(name, ours[name], theirs[name]) for name in names], lines


def _places(files: Sequence[str], key: Callable[[str], str], lines: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for index, file in enumerate(files):
        before = found.setdefault(key(file), index)
        if before != index:
            lines.append(f"{file}: {files[before]} has the same name; left out")
    return found


def _stem(name: str) -> str:
    return PurePath(name).stem


def _path(name: str) -> str:
    return PurePath(name).with_suffix("").as_posix()


def _are_distinct(names: Sequence[str]) -> bool:
    return len({_stem(name) for name in names}) == len(names)
