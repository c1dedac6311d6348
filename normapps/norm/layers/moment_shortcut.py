"""Positional moments taken out in an encoder and put back in a decoder (Li et al. 2019).

What a position's channels have in common, their mean and deviation, tells about structure. In a
network that makes images PONO takes it out of the encoder's features, and the moment shortcut
gives it to the decoder's, past what lies between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...errors import InputError, unknown
from ..moments import Moments
from ..operations import restore, standardize
from ..partition import POSITION
from ..undo import Undo


def take_moments(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Moments]:
    """Return x (N, C, *S) standardized at each position, and the moments that were taken out.

    PONO, eq. 1–2. Differs from the authors' code, whose variance is unbiased: biased here, as in
    every layer norm, so that one channel alone gives 0 and not NaN.
    """
    moments = Moments.of(x, POSITION)
    return standardize(x, moments, eps), moments


def give_moments(x: Tensor, moments: Moments, eps: float = 1e-5) -> Tensor:
    """Return σ·x + μ at each position (eq. 3): undoes `take_moments` of the same features.

    Args:
        x: (N, C', *S), of any number of channels.
        moments: positional, of N·S positions.
        eps: as they were taken with.

    Raises:
        InputError: another number of positions.
    """
    return restore(x, moments, eps)


def shortcut_moments_(model: nn.Module, pairs: Mapping[str, str], eps: float = 1e-5) -> Undo:
    """Take the moments out of some modules' outputs, and put them into those of others.

    Each forward pass hands them on anew; nothing is learnt or stored, so the state dict stays. The
    outputs are (N, C, *S), of one size and batch in both of a pair; channels may differ. Gradients
    flow through the moments. Under gradient checkpointing both must lie within one checkpoint.

    Args:
        model: changed in place, by hooks.
        pairs: name of the module that gives its moments → name of the one that gets them.
        eps: added to the variances.

    Raises:
        InputError: an unknown or repeated name; in a forward pass, a getter without its giver, or
            of another size.

    Example:
        >>> shortcut_moments_(network, {"encoder.0": "decoder.2", "encoder.1": "decoder.1"})
    """
    modules = dict(model.named_modules())
    names = [*pairs, *pairs.values()]
    for index, name in enumerate(names):
        if name not in modules:
            raise unknown("module", name, modules)
        if name in names[:index]:
            raise InputError(f"module '{name}' stands in two pairs: moments go one way, once")
    undo = Undo()
    for giver, getter in pairs.items():
        way = _Way(giver, getter, eps)
        for name, hook in ((giver, _Take(way)), (getter, _Give(way))):
            undo.add(modules[name].register_forward_hook(hook).remove)
    return undo


class _Way:
    """Moments on their way from one module to another; an object, so that it is copied with both.

    A copy, also a pickled one, carries nothing.
    """

    def __init__(self, giver: str, getter: str, eps: float) -> None:
        self.giver, self.getter, self.eps = giver, getter, eps
        self.moments: Moments | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"moments": None}


class _Take:
    def __init__(self, way: _Way) -> None:
        self.way = way

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x, self.way.moments = take_moments(output, self.way.eps)
        return x


class _Give:
    def __init__(self, way: _Way) -> None:
        self.way = way

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        way = self.way
        moments, way.moments = way.moments, None
        if moments is None:
            raise InputError(
                f"'{way.getter}' ran before '{way.giver}', whose moments it is to get; turn the "
                "pair round, or choose modules that run once a forward pass"
            )
        positions = output.numel() // output.shape[1]
        if positions != len(moments.mean):
            raise InputError(
                f"'{way.getter}' gives {tuple(output.shape)}, {positions} positions, and "
                f"'{way.giver}' had {len(moments.mean)}; pair modules of one size"
            )
        return give_moments(output, moments, way.eps)
