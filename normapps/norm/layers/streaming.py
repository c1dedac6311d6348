"""Batch norm for a stream: a population, a batch, or both decide at test time.

What the test-time methods have in common: batch statistics (TENT, Wang et al. 2021), a source that
counts as N samples (Schneider et al. 2020), and running statistics that move before they are used
(RoTTA's robust batch norm, Yuan et al. 2023).
"""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from ...errors import InputError, unknown
from ..distributed import gather, is_joined
from ..moments import Moments, mix
from ..operations import standardize
from ..partition import BATCH
from ..recovery import affine as recover
from .base import LAYOUTS, NormLayer, Taxonomy
from .batch import BatchNorm
from .tracking import Tracked

RULES = ("batch", "prior", "ema", "cumulative", "source")

_SEEN = ("seen_mean", "seen_var", "seen_count", "seen_samples")


class StreamingNorm(BatchNorm):
    """Batch norm whose training mode follows a stream by a rule; inference uses the population.

    The rules, of the source (the running moments), a batch of n samples and the stream so far:

    - `batch`: the batch's moments, by torch's kernel.
    - `prior`: N/(N+n)·source + n/(N+n)·batch. The variance of the batch is unbiased, as the
      stored one is and in the paper's code. With N = 0 the same as `batch`, biased.
    - `cumulative`: the same with all batches so far, merged by count, in the batch's place.
    - `ema`: running ← (1−m)·running + m·batch, of biased variances as in RoTTA's code, and the
      updated value normalizes.
    - `source`: the running moments.

    Gradients flow through the batch's part. The running moments stay the source's, but for `ema`;
    what the stream was like is kept beside, in buffers that are no keys of a state dict, until
    `settle_` makes it the population. A stack that folds positions into the batch (timm's LeViT)
    must be told the true number of samples by `batch_samples`.

    Args:
        num_features: channels C.
        rule: one of `RULES`.
        prior: N, samples that the source counts for.
        momentum: m of `ema`; None averages all batches.
        eps, affine, track_running_stats, bias, sync, process_group: see `BatchNorm`.
        layout, act, drop: see `NormLayer`.

    Attributes:
        batch_samples: n, where it is not the length of the input.
        follows: remember the batches; False for passes that show a batch once more.
        was_frozen: the layer was frozen before somebody had it follow a stream.

    Raises:
        InputError: an unknown rule, a negative prior, or a rule with a source where the layer has
            no running statistics.
    """

    taxonomy: ClassVar = Taxonomy("batch, stream", "standardize", "affine", "Schneider et al. 2020")
    seen_mean: Tensor
    seen_var: Tensor
    seen_count: Tensor
    seen_samples: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        rule: str = "batch",
        prior: float = 16.0,
        **carried: Unpack[Tracked],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **carried)
        if rule not in RULES:
            raise unknown("rule", rule, RULES)
        if not 0 <= prior < math.inf:
            raise InputError(f"prior {prior}: give a number of samples, 0 or more")
        if rule != "batch" and not track_running_stats:
            raise InputError(f"rule '{rule}' needs running statistics, and the layer keeps none")
        self.rule, self.prior = rule, prior
        self.batch_samples: int | None = None
        self.follows = True
        self.was_frozen = False
        like = torch.zeros(num_features, device=carried.get("device"))
        for name in _SEEN:
            rows = like if name in ("seen_mean", "seen_var") else like[:1]
            self.register_buffer(name, rows.clone(), persistent=False)

    @classmethod
    def for_layout(cls, layout: str) -> type[NormLayer]:
        """Return the subclass that is torch's class for a layout, too.

        Raises:
            InputError: an unknown layout.
        """
        if layout not in LAYOUTS:
            raise unknown("layout", layout, LAYOUTS)
        kinds = {"1d": StreamingNorm1d, "2d": StreamingNorm2d, "3d": StreamingNorm3d}
        return kinds.get(layout, cls)

    @property
    def uses_population(self) -> bool:
        """Whether the next forward pass normalizes with the running moments."""
        # not by super(): torch 2.13's compiler takes what that returns for true
        fixed = self.frozen or not self.training or self.rule == "source"
        return fixed and self.running_mean is not None

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        if self.uses_population:
            return self._by_kernel(x, self.running_mean, self.running_var, False, 0.0)
        alone = not (self.sync and is_joined())
        if alone and (self.rule == "batch" or (self.rule == "prior" and self.prior == 0)):
            return self._by_batch(x)
        chosen = self.moments(x)
        if not torch.is_grad_enabled():
            mean, var = chosen.mean.flatten(), chosen.var.flatten()
            return self._by_kernel(x, mean.to(x.dtype), var.to(x.dtype), False, 0.0)
        return recover(standardize(x, chosen, self.eps), self.weight, self.bias)

    def moments(self, x: Tensor, measured: Moments | None = None) -> Moments:
        """Return what the rule normalizes (N, C, *S) with, and remember the batch.

        Raises:
            InputError: fewer than two values a channel.
        """
        batch = Moments.of(x, BATCH) if measured is None else measured
        samples, values = self._samples(x), x.numel() // self.num_features
        if self.sync and is_joined():
            batch = gather(batch, self.process_group)
            values = int(batch.count[0])
            samples = samples * values * self.num_features // max(1, x.numel())
        self.check_samples(values, x)
        if self.rule == "ema":
            return self._moved(batch)
        earlier = self._seen()
        self._keep(batch.detach(), samples)
        if self.rule == "cumulative" and self.follows:
            batch, samples = earlier.merge(batch), int(self.seen_samples)
        elif self.rule == "cumulative":
            batch, samples = self._seen(), int(self.seen_samples)
        if self.rule == "batch" or not (weights := self._weights(samples))[0]:
            return batch
        return mix((self.population(), _unbiased(batch)), weights)

    def settle_(self) -> None:
        """Make what the rule would use for the whole stream the population; forget the stream.

        `batch` takes the stream's moments, merged over all batches, `prior` and `cumulative` mix
        them with the source's. Nothing changes in `ema`, which moved the population all along, in
        `source`, and where no batch has come.
        """
        samples = float(self.seen_samples)
        if samples and self.rule not in ("ema", "source") and self.running_mean is not None:
            weights = (0.0, 1.0) if self.rule == "batch" else self._weights(samples)
            self._write(mix((self.population(), _unbiased(self._seen())), weights))
        for name in _SEEN:
            getattr(self, name).zero_()

    def stream_state(self) -> dict[str, Tensor]:
        """Return what the layer knows of the stream beside its state dict: the buffers `seen_*`."""
        return {name: getattr(self, name) for name in _SEEN}

    @torch.no_grad()
    def load_stream_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `stream_state` returned."""
        for name in _SEEN:
            getattr(self, name).copy_(state[name])

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows in the brackets."""
        return f"{super().extra_repr()}, rule={self.rule}, prior={self.prior}"

    def _by_batch(self, x: Tensor) -> Tensor:
        """Normalize by torch's kernel, whose update of running moments gives those of the batch."""
        values = x.numel() // self.num_features
        self.check_samples(values, x)
        like = x if self.running_mean is None else self.running_mean
        mean, var = (like.new_zeros(self.num_features) for _ in range(2))
        y = self._by_kernel(x, mean, var, True, 1.0)
        biased = var * ((values - 1) / values)
        count = mean.new_full((1,), values)
        self._keep(Moments(count, mean[None], biased[None], None, BATCH), self._samples(x))
        return y

    def _samples(self, x: Tensor) -> int:
        return len(x) if self.batch_samples is None else self.batch_samples

    def _weights(self, samples: float) -> tuple[float, float]:
        return self.prior / (self.prior + samples), samples / (self.prior + samples)

    def _seen(self) -> Moments:
        mean, var = self.seen_mean[None], self.seen_var[None]
        return Moments(self.seen_count, mean, var, None, BATCH)

    @torch.no_grad()
    def _keep(self, batch: Moments, samples: int) -> None:
        if not self.follows:
            return
        whole = self._seen().merge(batch.to(self.seen_mean))
        self.seen_mean.copy_(whole.mean.flatten())
        self.seen_var.copy_(whole.var.flatten())
        self.seen_count.copy_(whole.count)
        self.seen_samples.add_(samples)

    def _moved(self, batch: Moments) -> Moments:
        own = self.population()
        if not self.follows:
            return own
        share = self.next_share(own.mean)
        mean = own.mean.lerp(batch.mean, share)
        var = own.var.lerp(batch.var, share)
        moved = Moments(own.count, mean, var, None, BATCH)
        self._write(moved)
        return moved

    @torch.no_grad()
    def _write(self, moments: Moments) -> None:
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.copy_(moments.mean.flatten())
            self.running_var.copy_(moments.var.flatten())


class StreamingNorm1d(StreamingNorm, nn.BatchNorm1d):
    """`StreamingNorm` of (N, C) or (N, C, L)."""

    own_layout: ClassVar[str] = "1d"


class StreamingNorm2d(StreamingNorm, nn.BatchNorm2d):
    """`StreamingNorm` of (N, C, H, W)."""

    own_layout: ClassVar[str] = "2d"


class StreamingNorm3d(StreamingNorm, nn.BatchNorm3d):
    """`StreamingNorm` of (N, C, D, H, W)."""

    own_layout: ClassVar[str] = "3d"


def _unbiased(moments: Moments) -> Moments:
    factor = moments.count / (moments.count - 1).clamp_min(1)
    var = moments.var * factor[:, None]
    return Moments(moments.count, moments.mean, var, None, moments.partition)
