"""Weak augmentation of batches in memory: crop, shift, mirror, light; on bytes, where they lie.

On whole batches of tensors, so that it runs on the device that the network runs on. kornia has
the same operations but draws from torch's global random state; here every draw comes from the
generator given, in one order, so that a run resumed goes on with the same pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

_LUMA = (0.299, 0.587, 0.114)


def augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    crop: float = 0.8,
    shift: float = 0.0,
    flip: float = 0.5,
    jitter: float = 0.0,
) -> Tensor:
    """Crop, shift, mirror and light each picture of a batch differently.

    The number of random draws depends on the batch's length only, not on the strengths.

    Args:
        images: (N, C, H, W) uint8.
        generator: where the draws come from, of any device.
        crop: smallest side of the window that is scaled up to the whole, as a share in (0, 1];
            1 leaves the pictures whole. Bilinear; the window keeps the shape of the picture.
        shift: largest displacement, as a share of the side in [0, 0.5]; beyond the edge the
            picture is mirrored.
        flip: probability in [0, 1] of mirroring left and right.
        jitter: in [0, 1): brightness, contrast and (of 3 channels) saturation are multiplied by
            factors between 1 − jitter and 1 + jitter.

    Returns:
        uint8 of the same shape; `images` itself where every strength is 0 (crop 1).

    Raises:
        InputError: another dtype or shape, or a strength out of range.
    """
    _check(images, crop, shift, flip, jitter)
    draws = torch.rand(9, len(images), generator=generator, device=generator.device)
    draws = draws.to(images.device)
    if crop == 1 and not (shift or flip or jitter):
        return images
    found = images.to(torch.float32)
    if crop < 1 or shift or flip:
        found = _moved(found, draws[:6], crop, shift, flip)
    if jitter:
        found = _lit(found, 1 + jitter * (2 * draws[6:] - 1))
    return found.round_().clamp_(0, 255).to(torch.uint8)


def _moved(images: Tensor, draws: Tensor, crop: float, shift: float, flip: float) -> Tensor:
    """Crop, shift and mirror in one resampling; coordinates run from −1 to 1."""
    side = crop + (1 - crop) * draws[0]
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = torch.where(draws[1] < flip, -side, side)
    theta[:, 1, 1] = side
    for axis in (0, 1):
        inside = (1 - side) * (2 * draws[2 + axis] - 1)
        theta[:, axis, 2] = inside + 2 * shift * (2 * draws[4 + axis] - 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _lit(images: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, then contrast about the mean luma, then saturation about the luma."""
    brightness, contrast, saturation = factors[:, :, None, None, None]
    images = (images * brightness).clamp(0, 255)
    middle = _luma(images).mean((2, 3), keepdim=True)
    images = (middle + contrast * (images - middle)).clamp(0, 255)
    grey = _luma(images)
    return grey + saturation * (images - grey) if images.shape[1] == 3 else images


def _luma(images: Tensor) -> Tensor:
    """(N, 1, H, W) luma of ITU-R 601; of other than 3 channels their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    weights = images.new_tensor(_LUMA)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def _check(images: Tensor, crop: float, shift: float, flip: float, jitter: float) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise InputError(
            f"images are {tuple(images.shape)} {images.dtype}; they must be (N, C, H, W) uint8"
        )
    if not 0 < crop <= 1:
        raise InputError(f"crop {crop}: must be above 0 and at most 1")
    if not 0 <= shift <= 0.5:
        raise InputError(f"shift {shift}: must be between 0 and 0.5")
    if not 0 <= flip <= 1:
        raise InputError(f"flip {flip}: must be between 0 and 1")
    if not 0 <= jitter < 1:
        raise InputError(f"jitter {jitter}: must be at least 0 and below 1")
