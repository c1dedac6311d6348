"""Differentiable augmentation of what a discriminator sees (Zhao et al. 2020, DiffAugment).

For few pictures: real and fake ones are both changed before D, also in the generator's step, where
the gradient flows through the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import unknown

SHIFT = 0.125
"""Farthest translation, a share of the side."""
HOLE = 0.5
"""Side of what is cut out, a share of the picture's."""

Generator = torch.Generator | None


def diff_augment(x: Tensor, policy: str, generator: Generator = None) -> Tensor:
    """Change every picture by draws of its own, differentiably.

    - `color`: brightness + U(−½, ½), then saturation · U(0, 2), then contrast · U(½, 1½);
    - `translation`: by up to an eighth of the side, 0 (mid-grey) comes in;
    - `cutout`: 0 in a square of half the side, centred anywhere.

    Args:
        x: (N, C, H, W) in [−1, 1]; what comes out has its shape, and with `color` may leave the
            range.
        policy: names out of `POLICIES` with commas between them, applied in that order; nothing
            is done if empty.
        generator: draws everything; torch's own on the device of x if not given.

    Raises:
        InputError: an unknown name.
    """
    for change in list(_changes(policy)):
        x = change(x, generator)
    return x


def check_policy(policy: str) -> None:
    """Check the names of a policy.

    Raises:
        InputError: an unknown name.
    """
    list(_changes(policy))


def _changes(policy: str) -> Iterator[_Change]:
    for name in filter(None, (each.strip() for each in policy.split(","))):
        if name not in POLICIES:
            raise unknown("augmentation", name, POLICIES)
        yield from POLICIES[name]


def _brightness(x: Tensor, generator: Generator) -> Tensor:
    return x + (_uniform(x, generator) - 0.5)


def _saturation(x: Tensor, generator: Generator) -> Tensor:
    grey = x.mean(1, keepdim=True)
    return torch.lerp(grey, x, 2 * _uniform(x, generator))


def _contrast(x: Tensor, generator: Generator) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, x, 0.5 + _uniform(x, generator))


def _translation(x: Tensor, generator: Generator) -> Tensor:
    for axis in (2, 3):
        side = x.shape[axis]
        reach = int(SHIFT * side + 0.5)
        source = _positions(x, axis) + _integers(x, -reach, reach, generator)
        is_inside = (source >= 0) & (source < side)
        # clamped, then masked: what the border pixel gets back for those outside is 0
        x = x.gather(axis, source.clamp(0, side - 1).expand_as(x)) * is_inside
    return x


def _cutout(x: Tensor, generator: Generator) -> Tensor:
    is_hole = torch.ones((), dtype=torch.bool, device=x.device)
    for axis in (2, 3):
        side = x.shape[axis]
        hole = int(HOLE * side + 0.5)
        center = _integers(x, 0, side - hole % 2, generator)
        from_start = _positions(x, axis) - (center - hole // 2)
        is_hole = is_hole & (from_start >= 0) & (from_start < hole)
    return x * ~is_hole


def _uniform(x: Tensor, generator: Generator) -> Tensor:
    """One number from U(0, 1) a picture, (N, 1, 1, 1)."""
    drawn = torch.rand(len(x), generator=generator, device=_place(x, generator))
    return drawn.to(x).reshape(-1, 1, 1, 1)


def _integers(x: Tensor, low: int, high: int, generator: Generator) -> Tensor:
    """One integer from low to high, both included, a picture, (N, 1, 1, 1)."""
    place: Any = {"generator": generator, "device": _place(x, generator)}
    return torch.randint(low, high + 1, (len(x),), **place).to(x.device).reshape(-1, 1, 1, 1)


def _place(x: Tensor, generator: Generator) -> torch.device:
    return x.device if generator is None else generator.device


def _positions(x: Tensor, axis: int) -> Tensor:
    """0, 1, 2… along an axis of (N, C, H, W), for broadcasting."""
    shape = [1] * 4
    shape[axis] = -1
    return torch.arange(x.shape[axis], device=x.device).reshape(shape)


_Change = Callable[[Tensor, Generator], Tensor]
POLICIES: dict[str, tuple[_Change, ...]] = {
    "color": (_brightness, _saturation, _contrast),
    "translation": (_translation,),
    "cutout": (_cutout,),
}
"""Name → the changes that it stands for."""
