"""Batch moments without a gradient, at little more than the time that reading takes.

`Moments.of` takes several passes over memory and keeps what a gradient needs. Here a tensor is
taken in blocks that fit a cache, each measured about a shift of its own, and the blocks' moments
are merged in float64 (Chan et al. 1983).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..moments import Moments
from ..partition import BATCH
from ..precision import without_autocast

_BLOCK_BYTES = 2 << 20
"""Of the blocks of a contiguous tensor: what a core's share of the cache holds."""

_ROWS = 4096
"""Rows a call of torch's channels_last kernel, which adds in float32 one row after the other."""

_SAFE_RATIO = 1000.0
"""mean²/var up to which the rounding of that kernel's mean is no part of the variance."""


@torch.no_grad()
def batch_moments(x: Tensor) -> Moments:
    """Return `Moments.of(x, BATCH)` without its graph, in a fraction of its time on a CPU.

    Args:
        x: (N, C, *S), a floating dtype; half precision is measured in float32.

    Raises:
        InputError: x is not floating, has no channel axis or an empty one.
    """
    _, channels, samples = BATCH.shape(x.shape)
    with without_autocast(x):
        found = _measure(x, x.movedim(1, -1))
    if found is None:
        return Moments.of(x, BATCH)
    mean, var = (part.to(torch.promote_types(x.dtype, torch.float32)) for part in found)
    count = mean.new_full((1,), samples)
    return Moments(count, mean.view(1, channels), var.view(1, channels), None, BATCH)


def _measure(x: Tensor, last: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and variance (C,) by the way that suits the memory format; None: there is none."""
    known = x.is_floating_point() and x.device.type in ("cpu", "cuda")
    kernel = hasattr(torch, "batch_norm_update_stats")
    if known and kernel and x.device.type == "cuda":
        return _kernel(x)
    if known and kernel and last.is_contiguous():
        return _by_rows(last.flatten(0, -2))
    if known and x.is_contiguous():
        return _by_blocks(x.flatten(2))
    return None


def _kernel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance by the kernel that trains a batch norm."""
    mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    return mean, var


def _by_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Measure (M, C) rows, as channels_last holds them."""
    pieces = rows.t()[None, :, :, None].split(_ROWS, 2)
    blocks = [_kernel(_wide(piece)) for piece in pieces]
    mean, var = blocks[0]
    if len(blocks) > 1:
        sizes = torch.tensor([piece.shape[2] for piece in pieces], dtype=torch.float64)
        mean, var = _pool(sizes, *(torch.stack(part) for part in zip(*blocks, strict=True)))
    doubtful = mean.square() > _SAFE_RATIO * var
    if doubtful.any():
        chosen = doubtful.nonzero().flatten()
        mean, var = mean.double(), var.double()
        mean[chosen], var[chosen] = _exact(_wide(rows[:, chosen]))
    return mean, var


def _exact(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Measure few (M, C) rows in two passes and take the rounding of the mean back out."""
    mean = rows.mean(0)
    centred = rows - mean
    rest = centred.mean(0).double()
    return mean.double() + rest, centred.square_().mean(0).double() - rest.square()


def _by_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """Measure contiguous (N, C, S) in one pass about the first sample's mean.

    A sample is 1/N of the values, so the square of the shift's distance from the mean is at most
    N−1 variances: the difference below loses no more than a factor N of the precision.
    """
    n, channels, space = x.shape
    shift = _wide(x[0]).mean(1, keepdim=True)
    sums, norms = shift.new_empty(2, n, channels)
    each = max(1, min(n, _BLOCK_BYTES // (4 * channels * space)))
    kept = shift.new_empty(each, channels, space)  # one for all: new memory costs more than sums
    for start in range(0, n, each):
        block = slice(start, start + each)
        centred = torch.sub(x[block], shift, out=kept[: min(each, n - start)])
        torch.sum(centred, 2, out=sums[block])
        torch.linalg.vector_norm(centred, 2, 2, out=norms[block])
    total = n * space
    distance = sums.double().sum(0) / total
    var = norms.double().square().sum(0) / total - distance.square()
    return shift.flatten().double() + distance, var.clamp_min(0)


def _pool(sizes: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Merge blocks (K, C) of `sizes` (K,) to mean and variance (C,) in float64."""
    share = (sizes / sizes.sum()).unsqueeze(1)
    means, variances = means.double(), variances.double()
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
