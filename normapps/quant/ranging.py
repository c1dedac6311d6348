"""Where the ranges of activations come from: pictures, statistics, or pictures made from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..models.preprocessing import Preprocessing
from .calibration import measure_ranges
from .distill import distill
from .options import QuantizeOptions
from .pictures import Progress, Seen, as_arrays
from .statistics_ranges import statistics_ranges
from .steps import Prepared

Ranges = dict[str, tuple[float, float]]

_NOISE = 8
"""Noises at a time that run through the network where there are only statistics."""


def distilled_images(
    model: nn.Module,
    inputs: torch.Tensor,
    options: QuantizeOptions,
    device: torch.device,
    progress: Progress | None,
) -> np.ndarray:
    """Make the images that `--distill` asks for, (N, C, H, W) float32.

    Args:
        model: with its batch norms; it comes back as it was, on the CPU.
        inputs: of the size that they get.
        options: `distill` and `seed` count.
        device: where.
        progress: told of every step.
    """

    def tell(_: int, total: int) -> None:
        if progress is not None:
            progress("distilling", total)

    _, channels, height, width = inputs.shape
    model.to(device)
    try:
        found = distill(
            model,
            options.distill,
            (height, width),
            channels=channels,
            seed=options.seed,
            progress=tell,
        )
    finally:
        model.to("cpu")
    return np.asarray(found.images.numpy())


def find_ranges(
    path: Path,
    prepared: Prepared,
    preprocessing: Preprocessing,
    options: QuantizeOptions,
    seen: Seen | None,
    images: np.ndarray | None,
) -> Ranges:
    """Return the range of every tensor that int8 rounds.

    Args:
        path: the float network.
        prepared: that it was made of; its statistics count where there are no pictures.
        preprocessing: tells what values a picture has.
        options: `ranges`, `batch_size` and `seed` count.
        seen: pictures, of which some may calibrate.
        images: distilled ones.

    Raises:
        InputError: no batch norm tells of statistics, or a range that is not finite.
    """
    method = options.ranges
    if images is not None:
        return measure_ranges(path, _parted(images, options.batch_size), method=method)
    if seen is not None and seen.calibrating:
        return measure_ranges(path, as_arrays(seen.calibration()), method=method)
    if not prepared.statistics:
        raise InputError(
            "--data-free: no batch norm was folded into a layer before it, so nothing tells of the"
            " activations; give --data"
        )
    known = {
        name: (moments.mean[0].cpu().numpy(), moments.var[0].sqrt().cpu().numpy())
        for name, moments in prepared.statistics.items()
    }
    return statistics_ranges(
        path,
        known,
        (_NOISE, *prepared.inputs.shape[1:]),
        mean=preprocessing.mean,
        std=preprocessing.std,
        seed=options.seed,
    )


def _parted(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield images[start : start + size]
