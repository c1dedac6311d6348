"""The finest lines of a painted picture: some of the photo's own stand for the brush's.

A small network draws hatching into flat regions and loses the lines of faces. Replacing a share of
what a 5×5 mean leaves of the grey gives more of the photo back, for less of the style, than
training with heavier weights does (`benchmarks/retouch.py` has the figures).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.color import LUMA
from .color import bands, rows_of
from .rendering import as_dtype
from .stylize_options import DETAIL

REACH = 2
"""Pixels that the mean looks to each side."""


def fine_detail(grey: Tensor) -> Tensor:
    """Return (N, 1, H, W) less its 5×5 mean, at an edge of the pixels that there are.

    By sums of planes, which on a CPU are faster than pooling.
    """
    return grey - _mean(_mean(grey, 2), 3)


def grey_of(image: Tensor) -> Tensor:
    """Return the brightness (N, 1, H, W) of (N, 3, H, W) sRGB, as BT.601 weighs it."""
    red, green, blue = image.split(1, 1)
    grey: Tensor = red * LUMA[0]
    return grey.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def mix_detail(drawn: Tensor, photo: Tensor, share: float = DETAIL) -> Tensor:
    """Let `share` of the fine detail of the grey be the photo's: (N, 3, H, W), not clamped.

    Args:
        drawn, photo: (N, 3, H, W) float, about [0, 1].
        share: 0 leaves `drawn` as it is.
    """
    drawn, photo = drawn.contiguous(), photo.contiguous()  # several times faster
    missing = grey_of(photo) - grey_of(drawn)
    return torch.add(drawn, fine_detail(missing), alpha=share)


@torch.inference_mode()  # in which `drawn` may have been made
def keep_detail_(drawn: Tensor, photo: Tensor, share: float = DETAIL) -> None:
    """Do what `mix_detail` does to a picture of any size, in place, a band of rows at a time.

    Args:
        drawn: (1, 3, H, W) uint8, or float in [0, 1]; changed.
        photo: of the same shape, uint8 or float in [0, 1].
        share: 0 leaves `drawn` as it is.
    """
    above = drawn.new_empty(1, 3, 0, drawn.shape[3])
    for band in bands(drawn):
        outer = slice(band.start - above.shape[2], min(drawn.shape[2], band.stop + REACH))
        # what lies above the band is changed already
        before = torch.cat([above, drawn[..., band.start : outer.stop, :]], 2)
        above = before[..., : band.stop - outer.start, :][..., -REACH:, :]
        whole, seen = slice(None), photo[..., outer, :]
        mixed = mix_detail(rows_of(before, whole, drawn), rows_of(seen, whole, drawn), share)
        inner = mixed[..., band.start - outer.start : band.stop - outer.start, :]
        drawn[..., band, :] = as_dtype(inner.clamp(0, 1), drawn.dtype)


def _mean(grey: Tensor, dim: int) -> Tensor:
    """The mean of five neighbours along a dimension."""
    size = grey.shape[dim]
    padded = F.pad(grey, (0, 0, REACH, REACH) if dim == 2 else (REACH, REACH))
    total = padded.narrow(dim, 0, size) + padded.narrow(dim, 1, size)
    for start in range(2, 2 * REACH + 1):
        total += padded.narrow(dim, start, size)
    place = torch.arange(size, device=grey.device)
    counts = (place + REACH).clamp(max=size - 1) - (place - REACH).clamp(min=0) + 1
    return total / counts.view([-1, 1] if dim == 2 else [-1])
