"""Ways from seed to seed, spherical, or from class to class, as a grid or an animation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, features
from torch import Tensor

from ..data.write import writable_format
from ..engine.device import resolve_device
from ..errors import InputError
from ..files import check_writable
from .drawing import Drawing, drawn_with, save_picture, using_
from .opening import Opened, open_generator
from .pages import class_grid
from .sample_options import InterpolateOptions, choose_classes
from .sampling import latents, sample

ANIMATED = (".gif", ".webp")
"""Suffixes of files that hold an animation."""

_PARALLEL = 1e-4  # of the sine: below it the arc between two directions is a line, or undefined


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Interpolate along the great circle between two latents (Shoemake 1985; White 2016, sec. 2.1).

    sin((1−t)θ)/sin θ · â + sin(tθ)/sin θ · b̂, times (1−t)‖a‖ + t‖b‖, where θ is the angle between
    the two. A straight line between two normal latents goes through vectors that are shorter than
    any the generator was trained on. Where we differ from the paper: the length goes linearly from
    one's to the other's, and vectors that are parallel, opposite or zero are joined by a line.

    Args:
        a, b: (D,).
        t: (N,) in [0, 1]; 0 gives a and 1 gives b.

    Returns:
        (N, D).
    """
    a, b, t = a.double(), b.double(), t.double().unsqueeze(1)
    lengths = a.norm(), b.norm()
    tiny = torch.finfo(torch.float64).tiny
    first, second = (x / length.clamp_min(tiny) for x, length in zip((a, b), lengths, strict=True))
    angle = torch.arccos((first @ second).clamp(-1, 1))
    line = torch.lerp(a, b, t)
    if torch.sin(angle) < _PARALLEL or min(lengths) == 0:
        return line.float()
    along = (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)
    arc = along * torch.lerp(*lengths, t)
    return torch.where(t == 0, a, torch.where(t == 1, b, arc)).float()


def way(z: Tensor, frames: int, loop: bool = False) -> Tensor:
    """Go from latent to latent in `frames` steps each, to the last one or round to the first.

    Args:
        z: (N, D) of two or more.
        frames: steps from one to the next; the first of them is the latent itself.
        loop: go on from the last one to the first, which is not repeated.

    Returns:
        ((N − 1) · frames + 1, D), or (N · frames, D) with `loop`.
    """
    t = torch.arange(frames, dtype=torch.float64) / frames
    ends = [*range(1, len(z)), *([0] if loop else [])]
    steps = [slerp(z[start], z[end], t) for start, end in enumerate(ends)]
    return torch.cat(steps if loop else [*steps, z[-1:]])


def mixtures(classes: Sequence[int], count: int, frames: int, loop: bool = False) -> Tensor:
    """Go from class to class as `way` does from latent to latent, along straight lines.

    Conditional layers take weights of classes and mix their scales and shifts by them, which is
    what the authors do to morph between classes (Miyato & Koyama 2018, section 5.1).

    Args:
        classes: two or more, by number.
        count: classes in all.
        frames, loop: as `way`.

    Returns:
        (L, count) float32, rows that sum to 1.
    """
    corners = torch.eye(count)[[*classes, *([classes[0]] if loop else [])]]
    t = torch.arange(frames).unsqueeze(1) / frames
    steps = [torch.lerp(start, end, t) for start, end in pairwise(corners)]
    return torch.cat(steps if loop else [*steps, corners[-1:]])


def interpolate(
    spec: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: InterpolateOptions | None = None,
) -> Drawing:
    """Draw the way from seed to seed.

    Args:
        spec: the generator, as `open_generator` takes it.
        out: `.gif` or `.webp` becomes an animation, of all classes (between classes: of all
            seeds) below one another; another picture file a grid of the same, a row from each seed
            (class) to the next.
        options: which seeds, and how.

    Raises:
        InputError: no such generator, class or statistics; fewer than two classes to go between;
            a file that exists or cannot be written.
    """
    options = options or InterpolateOptions()
    writable_format(out)
    check_writable(out, options.overwrite)
    is_animation = Path(out).suffix.lower() in ANIMATED
    if is_animation and Path(out).suffix.lower() == ".webp" and not features.check("webp"):
        raise InputError(f"{out}: this Pillow has no WebP; write a .gif")
    opened = open_generator(spec)
    classes = choose_classes(options.classes, opened.classes, len(opened.classes))
    if options.between == "classes" and len(set(classes)) < 2:
        raise InputError(
            "--between classes: needs two of them; give --class twice, or leave it out"
        )
    names = tuple(opened.classes[number] for number in classes)
    drawn = _drawn(opened, classes, options)
    size = (_animate if is_animation else _lay_out)(drawn, names, out, options)
    count = drawn.shape[0] * drawn.shape[1]
    return Drawing(
        Path(out),
        tuple(options.numbers),
        names,
        drawn_with(opened, options),
        count,
        size,
    )


def _drawn(opened: Opened, classes: Sequence[int], options: InterpolateOptions) -> Tensor:
    """The way, once a class (between classes: once a seed): (ways, frames, C, H, W) uint8."""
    z = latents(options.numbers, opened.latent, options.truncation)
    ways: list[tuple[Tensor, Tensor | None]]
    if options.between == "classes":
        y = mixtures(classes, len(opened.classes), options.frames, options.loop)
        ways = [(each.expand(len(y), -1), y) for each in z]
    else:
        z = way(z, options.frames, options.loop)
        ways = [(z, torch.full((len(z),), number)) for number in classes] or [(z, None)]
    device = resolve_device(options.device)
    with using_(opened, options):
        drawn = [sample(opened.generator, *each, bn=options.bn, device=device) for each in ways]
    return torch.stack(drawn)


def _lay_out(
    drawn: Tensor,
    names: Sequence[str],
    out: str | os.PathLike[str],
    options: InterpolateOptions,
) -> tuple[int, int]:
    """A row a stretch, with the seed or class at both of its ends."""
    around = torch.cat([drawn, drawn[:, :1]], 1) if options.loop else drawn
    starts = range(0, around.shape[1] - 1, options.frames)
    parts = [around[:, start : start + options.frames + 1] for start in starts]
    rows = torch.cat(parts, 1)
    if options.between == "classes":
        ends = zip(names, [*names[1:], names[0]], strict=True)
        names = [f"{start} to {end}" for start, end in ends][: len(parts)] * len(drawn)
        rows = torch.stack(parts, 1).flatten(0, 1)
    page = class_grid(rows, names, options.frames + 1, options.scale, options.labels)
    save_picture(page, out, overwrite=options.overwrite)
    return page.size


def _animate(
    drawn: Tensor,
    names: Sequence[str],
    out: str | os.PathLike[str],
    options: InterpolateOptions,
) -> tuple[int, int]:
    """A frame a step, repeated for ever."""
    shown = names if options.between == "seeds" else ()
    pages = [
        _indexed(class_grid(each, shown, 0, options.scale, options.labels), out)
        for each in drawn.split(1, 1)
    ]
    how = {"save_all": True, "append_images": pages[1:], "duration": options.duration, "loop": 0}
    save_picture(pages[0], out, overwrite=options.overwrite, **how)
    return pages[0].size


def _indexed(page: Image.Image, out: str | os.PathLike[str]) -> Image.Image:
    """A frame as the format takes it: GIF holds 256 colours, chosen frame by frame."""
    is_gif = Path(out).suffix.lower() == ".gif"
    return page.quantize(256) if is_gif and page.mode == "RGB" else page
