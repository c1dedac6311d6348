"""Pictures of folders, tar and ZIP files and text lists as one numbered list, for training."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from ..errors import InputError
from .archive import Member, archive_members, is_picture
from .images import SUFFIXES, Picture, read_image

LISTS = (".txt", ".lst", ".list", ".csv", ".tsv")
"""The suffixes of text files that list pictures."""

_LINE = re.compile(
    rf"(?P<path>.*(?:{'|'.join(map(re.escape, SUFFIXES))}))(?:[\s,;]+(?P<label>.*))?", re.IGNORECASE
)


class _Named(io.BytesIO):
    """Bytes under a name, so that errors can name them."""

    name: str


class PictureSource:
    """Every picture below the given folders and inside the given archives, sorted, and of lists.

    A list is a text file with one of the `LISTS` suffixes: a path a line, relative to the list's
    folder, and after a space, tab or comma a label if there is one; lines that begin with `#` are
    comments, and CSV may have a header. Its pictures stay in its order.

    Args:
        places: folders, uncompressed tar files, ZIP files, lists, or single pictures.
        hold_out: every how many-th picture of each place is kept out for evaluation (0: none).
        held: take just those that are kept out.
        within: take just those below this folder of each place, such as `train`.

    Raises:
        InputError: a place is missing, or holds no picture.
    """

    def __init__(
        self, places: Sequence[str], hold_out: int = 0, held: bool = False, within: str = ""
    ) -> None:
        members = [
            member
            for place in places
            for i, member in enumerate(_members(Path(place), within))
            if not hold_out or (i % hold_out == hold_out - 1) == held
        ]
        if not members:
            raise InputError(
                f"{', '.join(places)}: no picture is left with 1 of {hold_out} held out"
            )
        self._members = members

    def __len__(self) -> int:
        return len(self._members)

    def name(self, index: int) -> str:
        """Return the picture's name, as its folder or archive knows it."""
        return self._members[index].name

    def where(self, index: int) -> tuple[str, int]:
        """Return a picture's file, links resolved, and the offset of its bytes in an archive."""
        member = self._members[index]
        return str(member.path.resolve()), member.offset

    def label(self, index: int) -> str:
        """Return the label that a list gives to the picture; empty where there is none."""
        return self._members[index].label

    def load(self, index: int) -> np.ndarray:
        """Decode one picture: (H, W, 3) uint8 sRGB.

        Raises:
            InputError: the picture is damaged; the line names it.
        """
        return self.picture(index).pixels

    def picture(self, index: int) -> Picture:
        """Decode one picture with what else its file tells, such as its alpha.

        Raises:
            InputError: the picture is damaged; the line names it.
        """
        return read_image(self.file(index), flag="")  # no command that takes sets has one

    def file(self, index: int) -> io.BytesIO:
        """Return one picture's bytes, not decoded; its `name` says where they are from.

        Raises:
            InputError: they cannot be read.
        """
        member = self._members[index]
        file = _Named(member.read())
        file.name = str(member)
        return file

    def crop(self, index: int, rng: np.random.Generator, side: int, spread: float) -> np.ndarray:
        """Cut a random square out of one picture at a random scale, mirrored half the time.

        Args:
            index: which picture.
            rng: source of the scale, place and mirroring.
            side: of the result, pixels.
            spread: the shorter side is scaled to `side` times 1…`spread` before the cut.

        Returns:
            (side, side, 3) uint8.
        """
        pixels = self.load(index)
        short = min(pixels.shape[:2]) / rng.uniform(1, spread)
        top, left = (rng.uniform(0, size - short) for size in pixels.shape[:2])
        box = (left, top, left + short, top + short)
        cut = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC, box=box)
        square = np.asarray(cut)
        return square[:, ::-1] if rng.random() < 0.5 else square


def _members(place: Path, within: str = "") -> list[Member]:
    if place.is_dir():
        paths = sorted(p for p in place.rglob("*") if is_picture(p) and p.is_file())
        found = [Member(path, str(path.relative_to(place))) for path in paths]
    elif place.is_file():
        found = _file_members(place)
    else:
        raise InputError(f"{place}: no such folder, archive, list or picture")
    if within:
        found = [member for member in found if PurePath(member.name).is_relative_to(within)]
    if not found:
        raise InputError(f"{place / within}: holds no picture ({', '.join(sorted(SUFFIXES))})")
    return found


def _file_members(place: Path) -> list[Member]:
    if place.suffix.lower() in LISTS:
        return _listed(place)
    return [Member(place, place.name)] if is_picture(place) else archive_members(place)


def _listed(place: Path) -> list[Member]:
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{place}: cannot be read as a list of pictures ({error})") from error
    found: list[Member] = []
    has_header = place.suffix.lower() in (".csv", ".tsv")
    for line in filter(None, map(str.strip, lines)):
        parts = _LINE.fullmatch(line)
        if line.startswith("#") or (has_header and not found and not parts):
            continue
        name, label = (parts["path"], parts["label"] or "") if parts else (line, "")
        found.append(Member(place.parent / name, name, label=label.strip()))
    return found
