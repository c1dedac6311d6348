"""Matrices and activations: a covariance measured, a matrix applied, without transposed copies.

Groups (G, D, M) of the batch lie apart in memory: the samples of a channel are not neighbours.
What is contiguous is therefore taken sample by sample, (N, G, D, S), and summed over N; what is
channels_last is a strided view (G, D, M) already. Gradients come in the memory format of x, which
autograd's own would leave: adding two of unlike formats costs more than the products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .partition import Partition
from .precision import without_autocast


def multiply(
    x: Tensor, partition: Partition, matrix: Tensor, shift: Tensor | None = None
) -> Tensor:
    """Return matrix·x + shift in each group, in the dtype of x, computed in float32 or better.

    Args:
        x: (N, C, *S). On the batch, channel_group and instance partitions the result keeps its
            memory format.
        matrix: (G, D, D), or (1, D, D) for every group.
        shift: (G, D) or (1, D).

    Raises:
        InputError: x has another number of groups or dimensions.
    """
    partition.check_fit(matrix, x.shape)
    groups, _, _ = partition.shape(x.shape)
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    matrix = matrix.to(precise).expand(groups, -1, -1)
    shift = None if shift is None else shift.to(precise).expand(groups, -1)
    given = precise, matrix, shift
    wanted = [each for each in given if each is not None and each.requires_grad]
    learns = torch.is_grad_enabled() and wanted
    if not learns or torch.compiler.is_exporting():  # a file holds operators, not our gradient
        return _product(*given, partition).to(x.dtype)
    apply: Any = _Product.apply
    y: Tensor = apply(*given, partition)
    return y.to(x.dtype)


def covariance(x: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
    """Return the means (G, D) and biased covariances (G, D, D) of (N, C, *S), in its dtype.

    Two passes. The gradient, ((∂C + ∂Cᵀ)(x−μ) + ∂μ)/M, is one product more.
    """
    apply: Any = _Covariance.apply
    mean, cov = apply(x, partition)
    return mean, cov


class _Product(torch.autograd.Function):
    """matrix·x + shift, of as many groups as x has."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Tensor, shift: Tensor | None, partition: Partition
    ) -> Tensor:
        ctx.partition = partition
        ctx.save_for_backward(x, matrix)
        y = _product(x, matrix, shift, partition)
        return y.data  # a view must not leave: activations work in place on what they get

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, matrix = ctx.saved_tensors
        of_x, of_matrix, of_shift = None, None, None
        if ctx.needs_input_grad[0]:
            of_x = multiply(_formatted(grad, x), ctx.partition, matrix.transpose(1, 2))
            if not torch.is_grad_enabled():  # with create_graph it has a gradient of its own
                of_x = of_x.data  # no view: the covariance's gradient is added in place
        if ctx.needs_input_grad[1]:
            of_matrix = _products(grad, x, ctx.partition)
        if ctx.needs_input_grad[2]:
            values, axes = ctx.partition.view(grad)
            of_shift = values.sum(axes).reshape(matrix.shape[:2])
        return of_x, of_matrix, of_shift, None


class _Covariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
        values, axes = partition.view(x)
        mean = values.mean(axes, keepdim=True)
        centred = (values - mean).reshape(x.shape)
        groups, width, samples = partition.shape(x.shape)
        mean = mean.reshape(groups, width)
        ctx.partition = partition
        ctx.save_for_backward(x, mean)
        return mean, _products(centred, centred, partition) / samples

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_cov: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        samples = ctx.partition.shape(x.shape)[2]
        both = (of_cov + of_cov.transpose(1, 2)) / samples
        with without_autocast(x):
            shift = of_mean / samples - (both @ mean.unsqueeze(2)).squeeze(2)
        return multiply(x, ctx.partition, both, shift), None


def _product(x: Tensor, matrix: Tensor, shift: Tensor | None, partition: Partition) -> Tensor:
    """matrix·x + shift."""
    pieces = _pieces(x, partition, x)
    parts, groups = pieces.shape[:2]
    rows, matrix = pieces.flatten(0, 1), _repeated(matrix, parts)
    last = rows.stride(1) == 1  # channels_last stays so
    sides = (rows.transpose(1, 2), matrix.transpose(1, 2)) if last else (matrix, rows)
    with without_autocast(x):
        if shift is None:  # a shift of 0 would be written, read and added
            y = torch.bmm(*sides)
        else:
            y = torch.baddbmm(_repeated(shift, parts).unsqueeze(1 if last else 2), *sides)
    y = y.transpose(1, 2) if last else y
    return _united(y.unflatten(0, (parts, groups)), partition, x)


def _repeated(values: Tensor, times: int) -> Tensor:
    """(G, ...) values once more for each piece."""
    return values.expand(times, *values.shape).flatten(0, 1)


def _products(a: Tensor, b: Tensor, partition: Partition) -> Tensor:
    """The sums (G, D, D) of a·bᵀ over the samples."""
    left, right = (_pieces(each, partition, b) for each in (a, b))
    with without_autocast(b):
        products = left.flatten(0, 1) @ right.flatten(0, 1).transpose(1, 2)
    total: Tensor = products.unflatten(0, left.shape[:2]).sum(0)
    return total


def _pieces(x: Tensor, partition: Partition, like: Tensor) -> Tensor:
    """The groups as (K, G, D, M/K), their samples in K pieces: K=N where that saves a copy."""
    _, width, samples = partition.shape(x.shape)
    n, c = x.shape[:2]
    # matrices larger than the samples that they meet would cost more than the copy
    if _is_over_batch(partition) and like.is_contiguous() and samples >= n * width:
        return x.reshape(n, c // width, width, -1)
    return partition.split(x).unsqueeze(0)


def _united(pieces: Tensor, partition: Partition, like: Tensor) -> Tensor:
    """Undo `_pieces`."""
    n, c, *space = like.shape
    if pieces.shape[0] > 1:
        return pieces.reshape(like.shape)
    groups = pieces.squeeze(0)
    if _is_over_batch(partition) and groups.stride(1) == 1:
        joined = groups.permute(2, 0, 1).reshape(n, *space, c).movedim(-1, 1)
    else:
        joined = partition.join(groups, like.shape)
    return joined.contiguous() if like.is_contiguous() else joined


def _formatted(x: Tensor, like: Tensor) -> Tensor:
    """x in the memory format of another activation."""
    if like.is_contiguous():
        return x.contiguous()
    if like.movedim(1, -1).is_contiguous():
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x


def _is_over_batch(partition: Partition) -> bool:
    return partition.kind in ("batch", "channel_group")
