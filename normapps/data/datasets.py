"""Data sets known by name, found where a package or the user has put them; nothing is fetched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

VARIABLE = "NORMAPPS_DATASETS"
"""The environment variable that names folders of data sets, separated as in PATH."""

SYSTEM = "/usr/share/datasets"
"""Where Debian's packages of data sets put them."""


@dataclass(frozen=True)
class Dataset:
    """A data set that has a name.

    Attributes:
        package: the Debian package that installs it.
        classes: names of its classes by number.
    """

    package: str
    classes: tuple[str, ...]


DATASETS = {
    "fashion-mnist": Dataset(
        "dataset-fashion-mnist",
        (
            "t-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle-boot",
        ),
    )
}
"""By the name of the data set, which is that of its folder, too."""


def find_dataset(data: str, places: Sequence[str | os.PathLike[str]] = ()) -> Path:
    """Return where data lies: a path as it is, the folder of a data set known by name.

    Args:
        data: a path, or a key of `DATASETS`; a path of that name goes first.
        places: folders to look into before those of `VARIABLE` and `SYSTEM`.

    Raises:
        InputError: a data set that is in none of the places; the line names the package.
    """
    path = Path(data)
    if data not in DATASETS or path.exists():
        return path
    named = [place for place in os.environ.get(VARIABLE, "").split(os.pathsep) if place]
    tried = [Path(place) for place in (*places, *named, SYSTEM)]
    for place in tried:
        if (place / data).is_dir():
            return place / data
    raise InputError(
        f"{data}: is not in {' or '.join(map(str, tried))}; install Debian's package "
        f"{DATASETS[data].package}, or give --data the folder of its files"
    )


def class_names(place: Path, count: int) -> tuple[str, ...]:
    """Return the names of `count` classes that files number: those known, else the numbers."""
    folder = place if place.is_dir() else place.resolve().parent
    known = DATASETS.get(folder.name)
    if known is not None and len(known.classes) == count:
        return known.classes
    return tuple(map(str, range(count)))
