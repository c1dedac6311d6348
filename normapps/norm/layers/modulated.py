"""What the layers share whose scale and shift depend on a condition."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from ...errors import InputError, unknown
from ..condition import ConditionalLayer
from ..partition import BATCH, INSTANCE, Partition
from ..recovery import recover, standardization
from .base import AffineNorm, Recovery, check_elements, place_of
from .tracking import Tracked, Tracking


class Modulated(Tracked, total=False):
    """The options of every layer that a condition modulates; see `ModulatedNorm`."""

    base: str


class ModulatedNorm(ConditionalLayer, Tracking, AffineNorm):
    """Batch or instance standardization, then a recovery that a condition decides.

    A subclass says by `modulation` what the condition does to `weight` and `bias`, which are what
    a norm layer without condition has. So a pretrained scale and shift can be loaded, and with a
    modulation that starts at 0 the layer starts as that norm layer.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of a batch in the running moments; None averages all batches.
        affine, bias: have `weight`, and `bias`.
        base: `batch`, with a population, or `instance`, without.
        sync, process_group: measure the batch of all processes together; see `Tracking`.
        layout, act, drop: see `NormLayer`.

    Raises:
        InputError: an unknown base.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        base: str = "batch",
        sync: bool = False,
        process_group: Any = None,
        **carried: Unpack[Recovery],
    ) -> None:
        if base not in ("batch", "instance"):
            raise unknown("base", base, ("batch", "instance"))
        super().__init__(num_features, eps, affine, **carried)
        self.base = base
        self.track(momentum, sync and base == "batch", process_group)
        if base == "batch":
            self.track_variance(place_of(carried))
        else:
            self.running_mean = self.running_var = self.num_batches_tracked = None

    def partition(self) -> Partition:
        """Return the partition of `base`."""
        return BATCH if self.base == "batch" else INSTANCE

    def check_samples(self, samples: int, x: Tensor) -> None:
        """Check that a batch, or with the base `instance` a sample, can be measured.

        Raises:
            InputError: it cannot.
        """
        if self.base == "instance":
            check_elements(self, samples, x)
        else:
            super().check_samples(samples, x)

    def modulation(self, x: Tensor, condition: Any) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and shift of (N, C, *S): each (C,), (1, C), (N, C) or None.

        Raises:
            InputError: the condition does not fit.
        """
        raise NotImplementedError

    def normalize_by(self, x: Tensor, condition: Any) -> Tensor:
        """Normalize and recover (N, C, *S) under a condition.

        Raises:
            InputError: the condition does not fit; in training, too few samples.
        """
        scale, shift = self.modulation(x, condition)
        return recover(x, standardization(self.moments(x), self.eps), scale, shift)

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows in the brackets."""
        return f"{super().extra_repr()}, base={self.base}"


def modulated(change: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight + first half of a change, and bias + second half.

    Args:
        change: (N, 2C, *S).
        weight, bias: (C,), or None for 1 and 0.
    """
    scale, shift = change.chunk(2, 1)
    shape = (1, -1, *[1] * (change.dim() - 2))
    scale = scale + (1 if weight is None else weight.reshape(shape))
    return scale, shift if bias is None else shift + bias.reshape(shape)


def check_latent(layer: AffineNorm, latent: Any, features: int, x: Tensor) -> Tensor:
    """Check a latent (N, features), or (1, features) for all samples of x, and return it.

    Raises:
        InputError: it is something else.
    """
    if isinstance(latent, Tensor) and latent.is_floating_point():
        if latent.shape in ((x.shape[0], features), (1, features)):
            return latent
        got = f"a latent of {tuple(latent.shape)}"
    else:
        got = f"{latent.dtype} labels" if isinstance(latent, Tensor) else type(latent).__name__
    raise InputError(
        f"{type(layer).__name__} got {got}, needs a floating latent of ({x.shape[0]}, {features})"
    )
