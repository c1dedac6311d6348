"""The statistics methods as streams: batch norm statistics that follow, and no gradient.

AdaBN batch by batch (Li et al. 2017; "batch norm adapt", Nado et al. 2020), a source that counts
as n samples (Schneider et al. 2020), running statistics (RoTTA's, Yuan et al. 2023), and all that
was seen pooled by count.
"""

from __future__ import annotations

from math import inf
from numbers import Real

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...norm.convert.selection import Patterns
from ...norm.nesting import detached_copy
from .base import Online, configure_model, streaming_layers


class Statistics(Online):
    """A network whose batch norms follow the stream by their rule; its parameters stay.

    Args:
        model: as `configure_model(model, rule=..., train="none")` returns it, or a network in
            inference mode, which then stays the source.
        episodic: forget the stream before every batch.
    """

    needs_gradient = False

    def __init__(self, model: nn.Module, *, episodic: bool = False) -> None:
        super().__init__(model, episodic=episodic)

    def step(self, x: Tensor) -> Tensor:
        """Return the logits (N, C) of a batch; the layers follow it."""
        return self.logits(x)


class BatchStatistics(Statistics):
    """The same where a batch has nothing but itself: one input's statistics are not a domain's."""

    least_batch = 2


def source(model: nn.Module) -> Statistics:
    """Make the method that does not adapt, to compare with: a copy in inference mode."""
    with torch.inference_mode(False):  # else the copy could never be changed outside of it
        return Statistics(detached_copy(model).eval().requires_grad_(False))


def adabn(model: nn.Module, *, include: Patterns = (), exclude: Patterns = ()) -> Statistics:
    """Make a copy that normalizes each batch with its own statistics (Nado et al. 2020).

    Args:
        include, exclude: shell patterns of names of norm layers; the others stay the source's.

    Raises:
        InputError: no batch norm, or none is chosen.
    """
    return _following(model, "batch", include, exclude)


def prior(
    model: nn.Module, n: float = 16, *, include: Patterns = (), exclude: Patterns = ()
) -> Statistics:
    """Make a copy that mixes each batch with the source (Schneider et al. 2020, eq. 4).

    Args:
        n: samples that the source counts for, 0 or more; with `inf` no bit changes.
        include, exclude: as `adabn`.

    Raises:
        InputError: as `adabn`; n negative.
    """
    return _following(model, "prior", include, exclude, prior=n)


def ema(
    model: nn.Module,
    momentum: float = 0.1,
    *,
    episodic: bool = False,
    include: Patterns = (),
    exclude: Patterns = (),
) -> Statistics:
    """Make a copy whose running statistics move with each batch, which uses the updated ones.

    Args:
        momentum: weight of a batch, torch's sense; with 0 no bit changes. RoTTA takes 0.05.
        episodic: begin at the source again before every batch.
        include, exclude: as `adabn`.

    Raises:
        InputError: as `adabn`; a momentum outside of [0, 1].
    """
    if not isinstance(momentum, Real) or not 0 <= momentum <= 1:
        raise InputError(f"momentum {momentum!r}: the weight of a batch, from 0 to 1")
    return _following(model, "ema", include, exclude, momentum=momentum, episodic=episodic)


def cumulative(
    model: nn.Module,
    n: float = 16,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
) -> Statistics:
    """Make a copy that pools all batches so far by count, and mixes them with the source.

    For a stream from one domain: after many samples the source has no weight any more.

    Args:
        n: samples that the source counts for, 0 or more.
        include, exclude: as `adabn`.

    Raises:
        InputError: as `adabn`; n negative.
    """
    return _following(model, "cumulative", include, exclude, prior=n)


def _following(
    model: nn.Module,
    rule: str,
    include: Patterns,
    exclude: Patterns,
    *,
    prior: float = 16,
    momentum: float = 0.1,
    episodic: bool = False,
) -> Statistics:
    with torch.inference_mode(False):
        configured = configure_model(
            detached_copy(model),
            rule=rule,
            prior=prior,
            momentum=momentum,
            train="none",
            include=include,
            exclude=exclude,
        )
    if not streaming_layers(configured):
        raise InputError(
            f"{type(model).__name__} has no batch norm among its chosen norm layers, whose"
            " statistics could follow: take tent, eata, sar or lame"
        )
    if prior == inf or momentum == 0:
        # by the source's own layers: torchvision's frozen ones round otherwise than torch's kernel
        return source(model)
    alone = rule == "batch" or (rule == "prior" and prior == 0)
    made = BatchStatistics if alone else Statistics
    return made(configured, episodic=episodic)
