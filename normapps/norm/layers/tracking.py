"""Layers with a population: batch moments in training, running moments at inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ..distributed import gather, is_joined
from ..moments import Moments
from ..partition import BATCH, INSTANCE, Partition
from .base import NormLayer, Recovery


class Tracked(Recovery, total=False):
    """The options of every layer with a population and a recovery; see `Tracking`."""

    sync: bool
    process_group: Any


class Tracking(NormLayer):
    """A layer that measures each batch in training and keeps what it measured.

    The running mean and (co)variance move by `momentum` (torch's sense: the weight of the new;
    None averages all batches). As in torch, `running_var` is unbiased and the variance that a
    batch is normalized with is not.

    Attributes:
        frozen: normalize with the population in training too, and leave it as it is.
        sync: measure the batches of all processes together.
        process_group: of which processes; all of them if None.
    """

    momentum: float | None
    track_running_stats: bool
    frozen: bool
    sync: bool
    process_group: Any
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def track(self, momentum: float | None, sync: bool, process_group: Any = None) -> None:
        """Set how the layer tracks; the buffers are the subclass's."""
        self.momentum = momentum
        self.sync = sync
        self.process_group = process_group
        self.frozen = False

    def track_variance(self, like: dict[str, Any]) -> None:
        """Register the buffers of a diagonal population, standard normal at first."""
        self.register_buffer("running_mean", torch.zeros(self.num_features, **like))
        self.register_buffer("running_var", torch.ones(self.num_features, **like))
        counter = torch.tensor(0, dtype=torch.long, device=like.get("device"))
        self.register_buffer("num_batches_tracked", counter)

    @property
    def uses_population(self) -> bool:
        """Whether the next forward pass normalizes with the running moments."""
        return (self.frozen or not self.training) and self.running_mean is not None

    def moments(self, x: Tensor, measured: Moments | None = None) -> Moments:
        """Return what to normalize (N, C, *S) with; in training, measure and remember it.

        Args:
            measured: this process's moments of x where they are known already.

        Raises:
            InputError: too few samples to measure; with `sync`, in all processes alike.
        """
        if self.uses_population:
            return self.population()
        partition = self.partition()
        samples = partition.shape(x.shape)[2]
        if measured is None:
            measured = self.measure(x, partition)
        return self.joined(measured, samples, x)

    def joined(self, measured: Moments, samples: int, x: Tensor) -> Moments:
        """Return the moments of all processes, checked and in training remembered.

        Args:
            measured: this process's moments of x.
            samples: how many each of them is measured from.

        Raises:
            InputError: too few samples, in all processes alike.
        """
        if self.sync and is_joined():
            measured = gather(measured, self.process_group)
            if samples < self.least_samples:  # the others may have more; reading waits for a GPU
                samples = int(measured.count.max())
        self.check_samples(samples, x)
        if self.training and self.running_mean is not None:
            self.remember(measured.detach())
        return measured

    def pass_empty(self, x: Tensor) -> Tensor:
        """Return (0, C, *S); a layer that measures takes part in what other processes measure.

        Raises:
            InputError: the layer measures batches, and all processes together have too few.
        """
        if not self.uses_population and self.partition() != INSTANCE:
            # by its gradient, of 0, this process takes part in the others' backward pass too
            x = x + self.joined(self.no_moments(x), 0, x).mean.sum().to(x.dtype)
        return super().pass_empty(x)

    def no_moments(self, x: Tensor) -> Moments:
        """Return the moments, of count 0, that stand for an empty batch (0, C, *S)."""
        width = self.partition().shape((1, *x.shape[1:]))[1]
        rows = self.num_features if self.running_mean is None else self.running_mean.numel()
        zero = x.to(torch.promote_types(x.dtype, torch.float32)).sum().expand(rows // width, width)
        return Moments(zero.new_zeros(len(zero)), zero, zero, None, self.partition())

    def partition(self) -> Partition:
        """Return the partition whose moments are tracked."""
        return BATCH

    def measure(self, x: Tensor, partition: Partition) -> Moments:
        """Measure this process's batch (N, C, *S)."""
        return Moments.of(x, partition)

    def population(self) -> Moments:
        """Return the running moments in float32 or better; their count is not known, and 0.

        Raises:
            InputError: the layer tracks none.
        """
        if self.running_mean is None or self.running_var is None:
            raise InputError(f"{type(self).__name__} tracks no population")
        mean, var = (_precise(each)[None] for each in (self.running_mean, self.running_var))
        return Moments(mean.new_zeros(1), mean, var, None, BATCH)

    @property
    def least_samples(self) -> int:
        """How many samples a channel the layer can measure."""
        return 2

    def check_samples(self, samples: int, x: Tensor) -> None:
        """Check that a batch that is measured holds enough samples.

        Raises:
            InputError: it does not.
        """
        if samples < self.least_samples:
            when = "in training" if self.training else "without a population"
            raise InputError(
                f"{type(self).__name__} got {tuple(x.shape)} {when}: {samples} sample(s) a "
                f"channel, needs {self.least_samples}; {self.remedy}"
            )

    @property
    def remedy(self) -> str:
        """What helps where there are too few samples."""
        if not self.training:
            return "give larger batches, or keep a population (track_running_stats=True)"
        return "give larger batches (drop_last=True), or freeze the layer (freeze_norm_)"

    @torch.no_grad()
    def remember(self, measured: Moments) -> None:
        """Move the running moments towards a batch's, whose variance is made unbiased."""
        share = self.next_share(measured.mean)
        unbiased = measured.count / (measured.count - 1).clamp_min(1)
        _move(self.running_mean, measured.mean.flatten(), share)
        _move(self.running_var, (measured.var * unbiased[:, None]).flatten(), share)

    def next_share(self, like: Tensor) -> Tensor:
        """Count one more batch and return the weight that it gets, a tensor without axes."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if self.momentum is not None or self.num_batches_tracked is None:
            return like.new_full((), self.momentum or 0.0)  # filled there: a copy would wait
        return self.num_batches_tracked.to(like).reciprocal()


def _move(running: Tensor | None, new: Tensor, share: Tensor) -> None:
    if running is not None:
        running.lerp_(new.to(running), share.to(running))


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
