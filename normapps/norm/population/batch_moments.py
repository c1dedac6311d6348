"""Batch moments without a gradient, at little more than the time that reading takes.

`Moments.of` takes several passes over memory and keeps what a gradient needs. Here a tensor is
taken in blocks that fit a cache and the blocks are merged in float64 (Chan et al. 1983); channels
in which that would lose digits, their mean being large beside their deviation, are measured anew
about a shift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..moments import Moments
from ..partition import BATCH
from ..precision import without_autocast

_BLOCK_BYTES = 8 << 20
"""Of the blocks of a contiguous tensor, each read twice: what a shared cache surely holds."""

_WIDTH = 128
"""Values up to which neighbouring rows are measured as one: that kernel is slow on short rows."""

_ROWS = 32768
"""The most rows that torch's channels_last kernel adds in float32 one after the other."""

_SAFE_RATIO = 1000.0
"""mean²/var up to which the rounding of that kernel's mean is no part of the variance."""


_SAFE_SQUARES = 10.0
"""mean²/var up to which a mean of squares in float32 is as good as one about a shift."""


@torch.no_grad()
def batch_moments(x: Tensor) -> Moments:
    """Return `Moments.of(x, BATCH)` without its graph, in a fraction of its time on a CPU.

    Args:
        x: (N, C, *S), a floating dtype; half precision is measured in float32.

    Raises:
        InputError: x is not floating, has no channel axis or an empty one.
    """
    if x.dim() < 2 or not x.is_floating_point() or x.numel() == 0:
        return Moments.of(x, BATCH)  # which says what is wrong
    with without_autocast(x):
        found = _measure(x)
    if found is None:
        return Moments.of(x, BATCH)
    channels = x.shape[1]
    mean, var = (part.to(torch.promote_types(x.dtype, torch.float32)) for part in found)
    count = mean.new_full((1,), x.numel() // channels)
    return Moments(count, mean.view(1, channels), var.view(1, channels), None, BATCH)


def _measure(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and variance (C,) by the way that suits the memory format; None: there is none."""
    kernel = hasattr(torch, "batch_norm_update_stats")
    if kernel and x.device.type == "cuda":
        return _kernel(x)
    if x.device.type != "cpu":
        return None
    last = x.movedim(1, -1)
    if kernel and last.is_contiguous():
        return _by_rows(x, last.view(-1, x.shape[1]))
    return _by_blocks(x.flatten(2)) if x.is_contiguous() else None


def _kernel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance by the kernel that trains a batch norm."""
    mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    return mean, var


def _by_rows(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Measure x with its channels last in memory, which as (M, C) are its rows.

    Most layers take the kernel and one look at what it gave: with the cache full of activations
    each further step in Python costs as much as reading a megabyte.
    """
    neighbours = _neighbours(*rows.shape)
    if neighbours == 1 and len(rows) <= _ROWS and x.dim() == 4 and not x.is_contiguous():
        mean, var = _kernel(_wide(x))
    else:
        mean, var = _by_blocks_of_rows(rows, neighbours)
    if torch.addcmul(_SAFE_RATIO * var, mean, mean, value=-1).amin() < 0:
        chosen = (mean.square() > _SAFE_RATIO * var).nonzero().flatten()
        exact = _exact(_wide(rows[:, chosen]))
        mean[chosen], var[chosen] = (each.to(mean.dtype) for each in exact)
    return mean, var


def _by_blocks_of_rows(rows: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    channels = rows.shape[1]
    merged = rows.view(-1, channels * neighbours)
    blocks = merged.tensor_split(-(-len(merged) // _ROWS))[::-1]  # as in `_by_blocks`
    found = [_kernel_of_rows(block) for block in blocks]
    return _pool(found, [len(block) for block in blocks], channels)


def _neighbours(samples: int, channels: int) -> int:
    """How many rows to take as one, a power of two: few that are wide pay for pooling them."""
    found = 1
    while samples % (2 * found) == 0 and 2 * found * channels <= _WIDTH and samples > 4096 * found:
        found *= 2
    return found


def _kernel_of_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    samples, channels = rows.shape
    return _kernel(_wide(rows).t().view(1, channels, samples, 1))


def _exact(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Measure few (M, C) rows in two passes and take the rounding of the mean back out."""
    mean = rows.mean(0)
    centred = rows - mean
    rest = centred.mean(0).double()
    return mean.double() + rest, centred.square_().mean(0).double() - rest.square()


def _by_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """Measure contiguous (N, C, S): sums and sums of squares of each row, pooled in float64."""
    n, channels, space = x.shape
    sums, norms = _wide(x[:0, :0]).new_empty(2, n, channels)
    each = max(1, min(n, _BLOCK_BYTES // (4 * channels * space)))
    for start in reversed(range(0, n, each)):  # what was written last is still in the cache
        block = slice(start, start + each)
        values = _wide(x[block])
        torch.sum(values, 2, out=sums[block])
        torch.linalg.vector_norm(values, 2, 2, out=norms[block])
    total = n * space
    mean = sums.sum(0, dtype=torch.float64).div_(total)
    squares = norms.double().square_().sum(0).div_(total)
    var = torch.addcmul(squares, mean, mean, value=-1)
    safe = (mean.square() <= _SAFE_SQUARES * var) & (var < torch.inf)  # a square may be too large
    if not safe.all():
        chosen = (~safe).nonzero().flatten()
        mean[chosen], var[chosen] = _about_a_shift(x[:, chosen])
    return mean, var


def _about_a_shift(x: Tensor) -> tuple[Tensor, Tensor]:
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


def _pool(
    found: list[tuple[Tensor, Tensor]], counts: list[int], channels: int
) -> tuple[Tensor, Tensor]:
    """Merge the means and variances (k * C,) of blocks, k times C channels each, in float64."""
    if len(found) == 1 and len(found[0][0]) == channels:
        return found[0]
    means, variances = (
        torch.stack(parts).double().view(len(found), -1, channels).movedim(1, 0)
        for parts in zip(*found, strict=True)
    )
    share = means.new_tensor(counts).div_(sum(counts) * len(means))
    mean = (share @ means).sum(0)
    return mean, (share @ (variances + (means - mean).square())).sum(0)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
