"""Ways from seed to seed: spherical interpolation of latents, as a grid or an animation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, features
from torch import Tensor

from ..data.write import writable_format
from ..engine.device import resolve_device
from ..errors import InputError
from ..files import check_writable
from .drawing import Drawing, save_picture, words_of
from .sample_options import InterpolateOptions, choose_classes
from .sampling import Opened, grid, latents, open_generator, sample

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


def interpolate(
    spec: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: InterpolateOptions | None = None,
) -> Drawing:
    """Draw the way from seed to seed.

    Args:
        spec: the generator, as `open_generator` takes it.
        out: `.gif` or `.webp` becomes an animation, of all classes side by side; another picture
            file a grid, a row from each seed to the next (for every class).
        options: which seeds, and how.

    Raises:
        InputError: no such generator, class or statistics; a file that exists or cannot be
            written.
    """
    options = options or InterpolateOptions()
    writable_format(out)
    check_writable(out, options.overwrite)
    is_animation = Path(out).suffix.lower() in ANIMATED
    if is_animation and Path(out).suffix.lower() == ".webp" and not features.check("webp"):
        raise InputError(f"{out}: this Pillow has no WebP; write a .gif")
    opened = open_generator(spec)
    classes = choose_classes(options.classes, opened.classes, len(opened.classes))
    drawn = _drawn(opened, classes, options)
    size = (_animate if is_animation else _lay_out)(drawn, out, options)
    names = tuple(opened.classes[number] for number in classes)
    count = drawn.shape[0] * drawn.shape[1]
    return Drawing(
        Path(out),
        tuple(options.numbers),
        names,
        words_of(options.bn, options.standing),
        count,
        size,
    )


def _drawn(opened: Opened, classes: Sequence[int], options: InterpolateOptions) -> Tensor:
    """The way, once a class: (classes or 1, frames, C, H, W) uint8."""
    z = way(latents(options.numbers, opened.latent), options.frames, options.loop)
    device = resolve_device(options.device)
    labels: list[Tensor | None] = [torch.full((len(z),), number) for number in classes]
    found = []
    with opened.use_(options.bn, standing=options.standing):
        for y in labels or [None]:
            found.append(sample(opened.generator, z, y, bn=options.bn, device=device))
    return torch.stack(found)


def _lay_out(
    drawn: Tensor, out: str | os.PathLike[str], options: InterpolateOptions
) -> tuple[int, int]:
    """A row a stretch, with the seed at both of its ends."""
    rows = []
    for of_class in drawn:
        around = torch.cat([of_class, of_class[:1]]) if options.loop else of_class
        starts = range(0, len(around) - 1, options.frames)
        rows += [around[start : start + options.frames + 1] for start in starts]
    page = grid(torch.cat(rows), options.frames + 1, options.scale)
    save_picture(page, out, overwrite=options.overwrite)
    return page.size


def _animate(
    drawn: Tensor, out: str | os.PathLike[str], options: InterpolateOptions
) -> tuple[int, int]:
    """A frame a step, repeated for ever."""
    pages = [
        _indexed(grid(drawn[:, frame], 0, options.scale), out) for frame in range(drawn.shape[1])
    ]
    how = {"save_all": True, "append_images": pages[1:], "duration": options.duration, "loop": 0}
    save_picture(pages[0], out, overwrite=options.overwrite, **how)
    return pages[0].size


def _indexed(page: Image.Image, out: str | os.PathLike[str]) -> Image.Image:
    """A frame as the format takes it: GIF holds 256 colours, chosen frame by frame."""
    is_gif = Path(out).suffix.lower() == ".gif"
    return page.quantize(256) if is_gif and page.mode == "RGB" else page
