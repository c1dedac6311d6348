"""Moments of all processes together: what synchronized layers normalize with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from .moments import Moments, merge


def is_joined() -> bool:
    """Whether this process belongs to a group of several."""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def gather(moments: Moments, group: Any = None) -> Moments:
    """Return the moments of all processes' samples together; differentiable.

    Each process sends its counts, means and (co)variances once, and merges what it gets by Chan's
    formula: exact also where the batches differ in size, and the same in every process. Without
    a process group, or alone in it, the moments come back as they are.

    Args:
        moments: of equal shape in all processes.
        group: a `torch.distributed` process group; all processes without it.
    """
    if not is_joined() or distributed.get_world_size(group) == 1:
        return moments
    spread = moments.var if moments.cov is None else moments.cov
    parts = (moments.count.to(moments.mean), moments.mean, spread)
    gathered: Any = _AllGather.apply
    rows = gathered(torch.cat([part.flatten() for part in parts]), group)
    return merge(_unpacked(row, moments) for row in rows)


def _unpacked(row: Tensor, like: Moments) -> Moments:
    shapes = [like.count.shape, like.mean.shape, (like.var if like.cov is None else like.cov).shape]
    flat = row.split([shape.numel() for shape in shapes])
    count, mean, spread = (part.reshape(shape) for part, shape in zip(flat, shapes, strict=True))
    if like.cov is None:
        return Moments(count, mean, spread, None, like.partition)
    return Moments(count, mean, spread.diagonal(dim1=1, dim2=2).clone(), spread, like.partition)


class _AllGather(torch.autograd.Function):
    """Rows of all processes, (P, K); the gradient of a row is summed over the processes."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, group: Any) -> Tensor:
        ctx.group = group
        rows = row.new_empty(distributed.get_world_size(group), row.numel())
        distributed.all_gather(list(rows.unbind()), row.contiguous(), group=group)
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        distributed.all_reduce(grad, group=ctx.group)
        return grad[distributed.get_rank(ctx.group)], None
