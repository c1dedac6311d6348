"""How much of a batch goes through a model at once, where each input is measured by itself.

Activations of up to 32 MiB lie in memory that the allocator keeps; larger ones come from the system
with every layer, page by page, and leave the cache before they are read again. So the pass over the
pieces of a large batch takes less time than the pass over the batch, which pays for measuring.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_PIECE_BYTES = 25 << 20
"""What the largest activation of a piece may take: less than glibc's limit of 32 MiB."""

_TOLERANCE = 1e-3
"""Of the largest output: more than kernels for another batch size differ by in float32."""


def piece_size(model: nn.Module, x: Tensor, y: Any, largest: int) -> int | None:
    """Return how many inputs should go through a model at once, None for whole batches.

    Runs the model on the last piece: pieces are right only where that gives the same as in the
    batch. Not on the first, to which a model that looks at a batch's beginning gives the same.

    Args:
        model: in inference mode.
        x: a batch that went through.
        y: what came out.
        largest: bytes of its largest activation.
    """
    size = max(1, len(x) * _PIECE_BYTES // max(1, largest))
    if x.device.type != "cpu" or size >= len(x) or not _splits(model, pieces(x, size)[-1], x, y):
        return None
    return size


def pieces(x: Tensor, size: int | None) -> tuple[Tensor, ...]:
    """Split a batch into pieces of about one size, none larger than `size`."""
    return (x,) if size is None else x.tensor_split(-(-len(x) // size))


def _splits(model: nn.Module, last: Tensor, x: Tensor, y: Any) -> bool:
    """Whether the last inputs of a batch alone give what they gave in it."""
    if not _is_a_row_each(y, x) or bool((y == y[:1]).all()):  # rows all alike tell nothing
        return False
    try:
        alone = model(last)
    except Exception:  # whatever it is: a model that wants whole batches is given them
        return False
    if not _is_a_row_each(alone, last) or alone.shape[1:] != y.shape[1:]:
        return False
    return torch.allclose(alone, y[-len(last) :], 0, _TOLERANCE * float(y.abs().max()))


def _is_a_row_each(y: Any, x: Tensor) -> bool:
    if not isinstance(y, Tensor) or not y.is_floating_point():
        return False
    return y.dim() > 0 and len(y) == len(x) and y.numel() > 0
