"""Batch norm for a stream: a population, a batch, or both decide at test time.

What the test-time methods have in common: batch statistics (TENT, Wang et al. 2021), a source that
counts as N samples (Schneider et al. 2020), and running statistics that move before they are used
(RoTTA's robust batch norm, Yuan et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from ...errors import InputError, unknown
from ..distributed import gather, is_joined
from ..moments import Moments
from ..partition import BATCH
from ..recovery import recover, standardization
from .base import LAYOUTS, NormLayer, Taxonomy
from .batch import BatchNorm
from .ledger import Heard, Ledger, merge_heard_
from .tracking import Tracked
from .whitening import keep_precise

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

    One value a channel has a mean but no variance: with a source, the source's variance stays; in
    `batch` such a batch is refused. Gradients flow through the batch's part. The running moments
    stay the source's, but for `ema`; what the stream was like is kept beside, in buffers that are
    no keys of a state dict, until `settle_` makes it the population. A stack that folds positions
    into the batch (timm's LeViT) must be told the true number of samples by `batch_samples`.

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
        ledger: where the layer writes what it has heard, if that is open, instead of merging it.

    Raises:
        InputError: an unknown rule, a negative prior, or a rule with a source where the layer has
            no running statistics.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, stream",
        "standardize",
        "affine",
        "Schneider et al. 2020",
        "2 passes; inference 1, 0 when folded",
    )
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
        self.ledger: Ledger | None = None
        self._register_seen(carried.get("device"), carried.get("dtype"))

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

    @property
    def measures_alone(self) -> bool:
        """Whether a batch is normalized with nothing but its own moments."""
        return self.rule == "batch" or (self.rule == "prior" and self.prior == 0)

    @property
    def least_samples(self) -> int:
        """How many samples a channel the layer can measure; with a source, one."""
        return 2 if self.measures_alone else 1

    @property
    def remedy(self) -> str:
        """What helps where there are too few samples."""
        if self.training and self.measures_alone:
            return "give larger batches, or let the source count too (prior above 0, rule 'ema')"
        return super().remedy

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        if self.uses_population:
            return self._by_kernel(x, self.running_mean, self.running_var, False, 0.0)
        if self.measures_alone and not (self.sync and is_joined()):
            return self._by_batch(x)
        standard = standardization(self.moments(x), self.eps)
        return recover(x, standard, self.weight, self.bias)

    def joined(self, measured: Moments, samples: int, x: Tensor) -> Moments:
        """Return what the rule normalizes (N, C, *S) with, and remember the batch.

        Args:
            measured: this process's moments of x.
            samples: how many values a channel they are measured from.

        Raises:
            InputError: too few of them, in all processes alike.
        """
        inputs = self._inputs(x)
        if self.sync and is_joined():
            each = samples // inputs if inputs else max(1, math.prod(x.shape[2:]))
            measured = gather(measured, self.process_group)
            samples = int(measured.count[0])
            inputs = samples // each
        self.check_samples(samples, x)
        if self.rule == "ema":
            return self._moved(measured)
        whole = self._seen()
        if self.rule == "cumulative" and self.follows:
            whole = whole.merge(measured)
        self._keep(measured.mean[0], _unbiased(measured).var[0], samples, inputs)
        if self.rule == "cumulative":
            return self._mixed(whole, self.seen_samples)
        return measured if self.measures_alone else self._mixed(measured, inputs)

    def settle_(self) -> None:
        """Make what the rule would use for the whole stream the population; forget the stream.

        `batch` takes the stream's moments, merged over all batches, `prior` and `cumulative` mix
        them with the source's. Nothing changes in `ema`, which moved the population all along, in
        `source`, and where no batch has come.
        """
        if self.rule in ("batch", "prior", "cumulative") and int(self.seen_samples):
            self._write(self._mixed(self._seen(), self.seen_samples))
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

    def _register_seen(self, device: Any, dtype: torch.dtype | None) -> None:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        for name in _SEEN[:2]:
            zeros = torch.zeros(self.num_features, device=device, dtype=wide)
            self.register_buffer(name, zeros, persistent=False)
        for name in _SEEN[2:]:  # integers, so that no cast of the network rounds them
            zero = torch.zeros(1, device=device, dtype=torch.long)
            self.register_buffer(name, zero, persistent=False)

    def _by_batch(self, x: Tensor) -> Tensor:
        """Normalize by torch's kernel, whose update of running moments gives those of the batch."""
        samples = x.numel() // self.num_features
        self.check_samples(samples, x)
        if not self._remembers:
            return self._by_kernel(x, None, None, True, 0.0)
        if not self._kernel_is_precise(x):
            with torch.no_grad():
                found = _unbiased(Moments.of(x, BATCH))
            self._keep(found.mean[0], found.var[0], samples, self._inputs(x))
            return self._by_kernel(x, None, None, True, 0.0)
        mean, var = self.seen_mean.new_zeros(2, self.num_features).unbind()
        y = self._by_kernel(x, mean, var, True, 1.0)
        self._keep(mean, var, samples, self._inputs(x))
        return y

    def _kernel_is_precise(self, x: Tensor) -> bool:
        """Whether the kernel takes running moments of the dtype of ours, not those of a half."""
        own = next((each for each in (self.weight, self.running_mean) if each is not None), None)
        return (x if own is None else own).dtype == self.seen_mean.dtype

    @property
    def _remembers(self) -> bool:
        return self.follows and self.training

    def _inputs(self, x: Tensor) -> int:
        return len(x) if self.batch_samples is None else self.batch_samples

    def _seen(self) -> Moments:
        mean, var = self.seen_mean[None], self.seen_var[None]
        return Moments(self.seen_count.to(mean), mean, var, None, BATCH)

    def _keep(self, mean: Tensor, var: Tensor, count: int, inputs: int) -> None:
        """Merge a batch's (C,) mean and unbiased variance into the stream's, now or later."""
        if not self._remembers:
            return
        heard = Heard(self, mean.detach(), var.detach(), count, inputs)
        if self.ledger is not None and self.ledger.is_open and self.rule != "cumulative":
            self.ledger.heard.append(heard)
        else:
            merge_heard_([heard])

    def _mixed(self, stream: Moments, inputs: int | Tensor) -> Moments:
        """Mix the source with the stream's part, n of the rule; linearly, as the paper does."""
        if self.running_mean is None:
            return _unbiased(stream)
        own = self.population().to(stream.mean)
        total = self.prior + inputs if self.rule != "batch" else inputs
        share = inputs / total
        if isinstance(share, Tensor):
            share = share.to(own.mean).nan_to_num()  # 0/0: nothing but the source so far
        mean = own.mean.lerp(stream.mean, share)
        return self._measured(stream, own, mean, own.var.lerp(_unbiased(stream).var, share))

    def _moved(self, batch: Moments) -> Moments:
        own = self.population().to(batch.mean)
        if not self._remembers:
            return own
        share = self.next_share(own.mean)
        mean, var = own.mean.lerp(batch.mean, share), own.var.lerp(batch.var, share)
        moved = self._measured(batch, own, mean, var)
        self._write(moved)
        return moved

    def _measured(self, part: Moments, own: Moments, mean: Tensor, var: Tensor) -> Moments:
        """One value has no variance: where there is no more, the source's stays."""
        var = torch.where(part.count[:, None] > 1, var, own.var)
        return Moments(part.count, mean, var, None, BATCH)

    @torch.no_grad()
    def _write(self, moments: Moments) -> None:
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.copy_(moments.mean.flatten())
            self.running_var.copy_(moments.var.flatten())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StreamingNorm:
        """Follow a cast, but keep the stream's moments in float32 or better."""
        before = {name: self._buffers[name] for name in _SEEN[:2]}
        parent: Any = super()
        parent._apply(fn, recurse)
        keep_precise(self, before)
        return self


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
