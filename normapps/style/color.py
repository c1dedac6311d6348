"""Keeping a photo's colours: its chroma, or its colour statistics, given back after stylizing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.color import LUMA
from ..errors import InputError
from ..norm import INSTANCE, Moments, transport

MODES = ("none", "luma", "transport")


def preserve_color(output: Tensor, content: Tensor, mode: str) -> Tensor:
    """Give a stylized image colours of its content.

    Args:
        output, content: (N, 3, H, W) sRGB in [0, 1].
        mode: `none`; `luma` keeps the content's chroma (BT.601) under the output's brightness;
            `transport` moves the output's colour mean and covariance to the content's by the
            optimal map, so that new tones stay possible. (Gatys et al. 2016 recolour the style
            image before stylizing; recolouring the result serves stored styles and blends too.)

    Returns:
        (N, 3, H, W) in [0, 1].
    """
    if mode == "none":
        return output
    if mode == "luma":
        return _with_chroma(output, content).clamp(0, 1)
    if mode == "transport":
        own, wanted = (Moments.of(x, INSTANCE, full=True) for x in (output, content))
        return transport(output, own, wanted, "ot", 1e-4).clamp(0, 1)
    raise InputError(f"preserve_color '{mode}': choose one of {', '.join(MODES)}")


def _with_chroma(output: Tensor, content: Tensor) -> Tensor:
    """Shift each pixel of the content along grey until it has the output's luma.

    Where that leaves the gamut, its chroma shrinks towards grey just enough to stay inside.
    """
    luma = _luma(output)
    chroma = content - _luma(content)
    room = torch.where(chroma > 0, 1 - luma, luma) / chroma.abs().clamp_min(1e-6)
    return luma + chroma * room.amin(1, keepdim=True).clamp(max=1)


def _luma(image: Tensor) -> Tensor:
    weights = image.new_tensor(LUMA).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)
