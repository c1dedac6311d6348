"""`normapps gan sample`: a generator's pictures as one grid, or as a file each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..data.inputs import is_folder_output
from ..data.write import writable_format
from ..engine.device import resolve_device
from ..errors import InputError
from ..files import atomic_path, check_folder, check_writable
from ..norm.undo import Undo
from .opening import Opened, open_generator
from .pages import class_grid, grid, picture
from .sample_options import DrawOptions, SampleOptions, choose_classes
from .sampling import STANDING, has_statistics, latents, sample

MOST_IN_GRID = 10_000
"""Pictures that one picture file holds at most."""

_PART = 256
"""Pictures that are drawn before they are written."""


@dataclass(frozen=True)
class Drawing:
    """What was drawn.

    Attributes:
        out: the picture file, or the folder of pictures.
        seeds: a picture, or one a class, for each.
        classes: names of the classes drawn, one a row of a grid; empty without classes.
        statistics: of the batch norms, in words.
        pictures: how many.
        size: (width, height) of a file in pixels.
    """

    out: Path
    seeds: tuple[int, ...]
    classes: tuple[str, ...]
    statistics: str
    pictures: int
    size: tuple[int, int]


def draw(
    spec: str | os.PathLike[str],
    out: str,
    options: SampleOptions | None = None,
    progress: Callable[[str, int], object] = lambda name, total: None,
) -> Drawing:
    """Draw seeds (and classes) into one grid, or into a file each.

    Args:
        spec: the generator, as `open_generator` takes it.
        out: a picture file; or a folder (it exists, ends in `/` or has no suffix), which gets
            `seed0003.png`, or `seed0003-NAME.png` of a class.
        options: what is drawn.
        progress: told of each file that is written, and how many there will be.

    Raises:
        InputError: no such generator, class or statistics; a file that exists or cannot be
            written: found out before anything is drawn.
    """
    options = options or SampleOptions()
    is_folder = is_folder_output(out, 1)
    if not is_folder:
        writable_format(out)
        check_writable(out, options.overwrite)
    opened = open_generator(spec)
    chosen = choose_classes(options.classes, opened.classes, len(opened.classes))
    seeds, numbers = (list(dict.fromkeys(each)) for each in (options.numbers, chosen))
    names = tuple(opened.classes[number] for number in numbers)
    count = len(seeds) * max(1, len(numbers))
    if not is_folder and count > MOST_IN_GRID:
        raise InputError(
            f"--seeds {options.seeds}: {count:,} pictures are too many for a grid, the most are "
            f"{MOST_IN_GRID:,}; end -o in / for a file each"
        )
    if is_folder:
        size = _draw_files(opened, Path(out), seeds, numbers, options, progress)
    else:
        size = _draw_grid(opened, out, seeds, numbers, options)
    words = drawn_with(opened, options)
    return Drawing(Path(out), tuple(seeds), names, words, count, size)


def words_of(bn: str, standing: int | None = None) -> str:
    """Say in words which statistics a generator draws with; see `Opened.use_`."""
    if bn == "batch":
        return "batch statistics: a picture depends on those that it is drawn with"
    return f"{bn} statistics" + (f" of {standing:,} latents" if standing else "")


def drawn_with(opened: Opened, options: DrawOptions) -> str:
    """Say in words which statistics and latents pictures are drawn with."""
    if options.truncation is None:
        return words_of(options.bn, options.standing)
    is_measured = options.bn == "standing" and has_statistics(opened.generator)
    words = words_of(options.bn, (options.standing or STANDING) if is_measured else None)
    return f"{words}, latents cut off at ±{options.truncation:g}"


def save_picture(
    image: Image.Image,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    **how: object,
) -> None:
    """Write a picture of Pillow's in the format of the suffix, all of it or nothing.

    Args:
        image: of mode L or RGB.
        path: the file; its folder is made.
        overwrite: replace an existing one.
        how: further options of Pillow's for the format.

    Raises:
        InputError: an unknown suffix, a file that exists, a place that cannot be written.
    """
    kind = writable_format(path)
    with atomic_path(path, overwrite=overwrite) as temporary:
        try:
            image.save(temporary, kind, **how)
        except (OSError, ValueError) as error:  # a full disk; a side longer than the format's
            raise InputError(
                f"{os.fspath(path)}: cannot be written ({error}); make room or write elsewhere"
            ) from error


def _draw_grid(
    opened: Opened, out: str, seeds: Sequence[int], classes: Sequence[int], options: SampleOptions
) -> tuple[int, int]:
    """All seeds of a class in a row, or all seeds in rows; returns (width, height)."""
    z, y = _inputs(opened, seeds, classes, options.truncation)
    with using_(opened, options):
        drawn = sample(opened.generator, z, y, bn=options.bn, device=resolve_device(options.device))
    scale = options.scale or 2
    if classes:
        by_class = drawn.unflatten(0, (len(classes), len(seeds)))
        names = [opened.classes[number] for number in classes]
        page = class_grid(by_class, names, options.columns or 0, scale, options.labels)
    else:
        page = grid(drawn, options.columns or 0, scale)
    save_picture(page, out, overwrite=options.overwrite)
    return page.size


def _draw_files(
    opened: Opened,
    folder: Path,
    seeds: Sequence[int],
    classes: Sequence[int],
    options: SampleOptions,
    progress: Callable[[str, int], object],
) -> tuple[int, int]:
    check_folder(folder)
    z, y = _inputs(opened, seeds, classes, options.truncation)
    paths = [folder / name for name in _file_names(seeds, classes, opened.classes)]
    for path in paths:
        check_writable(path, options.overwrite)
    # the pictures of a batch belong together where they share its statistics
    part = len(z) if options.bn == "batch" else _PART
    size = 0, 0
    with using_(opened, options):
        for start in range(0, len(z), part):
            of = slice(start, start + part)
            labels = None if y is None else y[of]
            device = resolve_device(options.device)
            drawn = sample(opened.generator, z[of], labels, bn=options.bn, device=device)
            for image, path in zip(drawn, paths[of], strict=True):
                whole = picture(image, options.scale or 1)
                save_picture(whole, path, overwrite=options.overwrite)
                size = whole.size
                progress(path.name, len(paths))
    return size


def using_(opened: Opened, options: DrawOptions) -> Undo:
    """Put the statistics that are asked for into a generator; see `Opened.use_`."""
    return opened.use_(options.bn, standing=options.standing, truncation=options.truncation)


def _inputs(
    opened: Opened, seeds: Sequence[int], classes: Sequence[int], truncation: float | None
) -> tuple[Tensor, Tensor | None]:
    """Latents (N, latent) and labels (N,), class after class, every seed in each."""
    z = latents(seeds, opened.latent, truncation)
    if not classes:
        return z, None
    y = torch.tensor(classes).repeat_interleave(len(seeds))
    return z.repeat(len(classes), 1), y


def _file_names(seeds: Sequence[int], classes: Sequence[int], names: Sequence[str]) -> list[str]:
    """`seed0003.png` a seed, or `seed0003-NAME.png`, in the order of `_inputs`."""
    stems = [f"seed{seed:04d}" for seed in seeds]
    if not classes:
        return [f"{stem}.png" for stem in stems]
    shown = _distinct(names)
    return [f"{stem}-{shown[number]}.png" for number in classes for stem in stems]


def _distinct(names: Sequence[str]) -> list[str]:
    """Class names as a file's name may have them; numbers where two would be the same."""
    plain = [re.sub(r"[^\w.-]+", "_", name).strip("_.") for name in names]
    is_clear = len({name.casefold() for name in plain}) == len(plain) and all(plain)
    return plain if is_clear else [str(number) for number in range(len(names))]
