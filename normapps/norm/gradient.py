"""Normalized gradients: centred, of length 1, or clipped by the size of what they change.

Functions of one gradient, in-place ones of a network's, and `normalize_gradients_`, which does it
before every step of an optimizer. They act on the gradient of the loss, so *before* weight decay
is added to it, and before momentum; a row is an output channel, as in `norm.weight`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import InputError, unknown
from .stepping import around_steps_
from .undo import Undo
from .weight.matrix import TRANSPOSED, Axes, in_float32

ROWS = Axes()
"""Outputs on axis 0, as all but transposed convolutions have them."""

Parameters = nn.Module | Iterable[Tensor]
"""A network, or its parameters; only of a network is it known which convolutions are transposed."""


def centralize(gradient: Tensor, axes: Axes = ROWS) -> Tensor:
    """Return a gradient with the mean of each row taken out (gradient centralization).

    Yong et al. 2020, eq. 1. What has no row of two elements or more, as a bias, stays as it is.
    Differs from the authors' code, which centres after weight decay (their SGD), and makes the
    gradient of a row of one element 0.

    Args:
        gradient: of any shape.
        axes: where its outputs are.
    """
    rows = _rows(gradient, axes)
    if gradient.dim() < 2 or rows.shape[1] < 2:
        return gradient
    return _stored(rows - rows.mean(1, keepdim=True), gradient, axes)


def block_normalize(gradient: Tensor) -> Tensor:
    """Return a gradient divided by its length, one of zeros as it is.

    Yu et al. 2017 (block-normalized gradient). A block is a tensor; in the paper a layer.

    Args:
        gradient: of any shape.
    """
    precise = in_float32(gradient)
    length = torch.linalg.vector_norm(precise).clamp_min(torch.finfo(precise.dtype).tiny)
    unit: Tensor = (precise / length).to(gradient.dtype)
    return unit


def clip_adaptive(
    gradient: Tensor, weight: Tensor, factor: float = 0.01, eps: float = 1e-3, axes: Axes = ROWS
) -> Tensor:
    """Return a gradient whose rows are at most `factor` times as long as those of the weight.

    Brock et al. 2021, eq. 3 (adaptive gradient clipping), with timm's numbers. A tensor of one
    axis or none is one row.

    Args:
        gradient, weight: of one shape.
        factor: λ, the largest ratio.
        eps: the least length that a row of the weight counts as, for weights that start at 0.
        axes: where the outputs are.
    """
    rows = _rows(gradient, axes)
    most = factor * _lengths(_rows(weight, axes)).clamp_min(eps)
    length = _lengths(rows)
    clipped = torch.where(length < most, rows, rows * (most / length.clamp_min(1e-6)))
    return _stored(clipped, gradient, axes)


def centralize_(parameters: Parameters) -> None:
    """`centralize` the gradients of a network or of parameters, in place."""
    _edit(parameters, lambda weight, grad, axes: centralize(grad, axes))


def block_normalize_(parameters: Parameters) -> None:
    """`block_normalize` the gradients of a network or of parameters, in place."""
    _edit(parameters, lambda weight, grad, axes: block_normalize(grad))


def clip_adaptive_(parameters: Parameters, factor: float = 0.01, eps: float = 1e-3) -> None:
    """`clip_adaptive` the gradients of a network or of parameters, in place.

    The paper spares the classifier: give the others' parameters, or see `normalize_gradients_`.
    """
    _edit(parameters, lambda weight, grad, axes: clip_adaptive(grad, weight, factor, eps, axes))


def normalize_gradients_(
    optimizer: Optimizer,
    module: nn.Module | None = None,
    *,
    centralize: bool = False,
    block_normalize: bool = False,
    clip: float | None = None,
    exclude: str | Sequence[str] = (),
) -> Undo:
    """Normalize the gradients of an optimizer's parameters before every step, from now on.

    In this order: clipped, centred, of length 1. The state dict is the optimizer's own; call this
    again for a new one or a copy. With a gradient scaler, unscale first.

    Args:
        optimizer: any of torch or timm, changed in place.
        module: the network, for its transposed convolutions; others need none.
        centralize: see the function.
        block_normalize: see the function.
        clip: `factor` of `clip_adaptive`.
        exclude: shell patterns of names of the network's parameters that are left alone, as the
            clipping's paper leaves the classifier (`fc.*`).

    Returns:
        A handle that takes it back.

    Raises:
        InputError: a clipping factor that is not above 0, a pattern that no parameter's name is
            like, or names without a network.
    """
    if clip is not None and not clip > 0:
        raise InputError(f"clip {clip}: must be above 0")
    if exclude and module is None:
        names = exclude if isinstance(exclude, str) else ", ".join(exclude)
        raise InputError(f"exclude {names}: names are known of a network; give that")
    edits = _edits(clip, centralize, block_normalize)
    known = {} if module is None else _transposed(module)
    spared = set() if module is None else _named(module, exclude)

    def before() -> None:
        for group in optimizer.param_groups:
            chosen = [each for each in group["params"] if id(each) not in spared]
            for edit in edits:
                _edit_each(chosen, known, edit)

    return around_steps_(optimizer, before) if edits else Undo()


Edit = Callable[[Tensor, Tensor, Axes], Tensor]
"""Weight, gradient, axes → the new gradient."""


def _edits(factor: float | None, has_no_mean: bool, has_unit_length: bool) -> list[Edit]:
    edits: list[Edit] = []
    if factor is not None:
        edits.append(lambda weight, grad, axes: clip_adaptive(grad, weight, factor, axes=axes))
    if has_no_mean:
        edits.append(lambda weight, grad, axes: centralize(grad, axes))
    if has_unit_length:
        edits.append(lambda weight, grad, axes: block_normalize(grad))
    return edits


@torch.no_grad()
def _edit(parameters: Parameters, edit: Edit) -> None:
    if isinstance(parameters, nn.Module):
        _edit_each(parameters.parameters(), _transposed(parameters), edit)
    else:
        _edit_each(parameters, {}, edit)


def _edit_each(parameters: Iterable[Tensor], known: Mapping[int, Axes], edit: Edit) -> None:
    for weight in parameters:
        if weight.grad is not None:
            weight.grad.copy_(edit(weight.detach(), weight.grad, known.get(id(weight), ROWS)))


def _transposed(module: nn.Module) -> dict[int, Axes]:
    layers = [layer for layer in module.modules() if isinstance(layer, TRANSPOSED)]
    return {id(layer._parameters.get("weight")): Axes.of(layer) for layer in layers}


def _named(module: nn.Module, patterns: str | Sequence[str]) -> set[int]:
    """The ids of the parameters with such names."""
    named, found = dict(module.named_parameters()), set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = fnmatch.filter(named, pattern)
        if not names:
            raise unknown("parameter", pattern, named)
        found |= {id(named[name]) for name in names}
    return found


def _rows(tensor: Tensor, axes: Axes) -> Tensor:
    return in_float32(tensor.reshape(1, -1) if tensor.dim() < 2 else axes.matrix(tensor))


def _stored(rows: Tensor, like: Tensor, axes: Axes) -> Tensor:
    shaped = rows.reshape(like.shape) if like.dim() < 2 else axes.stored(rows, like.shape)
    return shaped.to(like.dtype)


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return lengths
