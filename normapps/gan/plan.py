"""`gan train --dry-run`: what would be trained, and how long that takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..engine.device import resolve_device
from ..engine.distributed import World
from ..measure.memory import peak_bytes, peak_device_bytes
from .options import TrainOptions
from .train import Job, read

_TIMED = 3
"""Steps that are timed, after one that warms up."""


@dataclass(frozen=True)
class Plan:
    """What a run of some options is.

    Attributes:
        data: what it learns from.
        pictures: how many.
        classes: how many are learnt, 0 for none.
        size, channels: of the pictures.
        steps: of the whole run.
        generator, discriminator: their parameters.
        flops: of a step, forward and backward, multiplications and additions apart.
        seconds: a step takes, the median of three.
        bytes: most memory so far; of the device where it is a GPU.
        device, dtype: what it was measured on and in.
    """

    data: str
    pictures: int
    classes: int
    size: int
    channels: int
    steps: int
    generator: int
    discriminator: int
    flops: int
    seconds: float
    bytes: int
    device: str
    dtype: str

    @property
    def left(self) -> float:
        """Seconds that the whole run takes."""
        return self.seconds * self.steps

    def lines(self) -> list[str]:
        """Return the plan in lines for a reader."""
        labels = f" of {self.classes} classes" if self.classes else ""
        return [
            f"data           {self.pictures} pictures{labels}, {self.size}×{self.size}×"
            f"{self.channels}, {self.data}",
            f"generator      {self.generator:,} parameters",
            f"discriminator  {self.discriminator:,} parameters",
            f"step           {self.seconds:.3g} s, {self.flops / 1e9:.4g} GFLOP, "
            f"{self.flops / 1e9 / self.seconds:.4g} GFLOP/s on {self.device} in {self.dtype}",
            f"memory         {self.bytes / 1e9:.3g} GB",
            f"whole          {self.steps} steps, {duration(self.left)}",
        ]


def plan(options: TrainOptions, say: Callable[[str], object] = print) -> Plan:
    """Read the pictures, take a few steps and tell what a run would be; nothing is written.

    Raises:
        InputError: pictures or options that cannot be used.
    """
    chosen = options.resolved()
    device = resolve_device(chosen.device)
    pool = read(chosen, say)
    job = Job(chosen, pool, World(), device, say)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(chosen.seed)
        with FlopCounterMode(display=False) as counted:
            job.trainer.step(0)
        if chosen.compile:
            job.compile()
        job.trainer.step(1)
        taken = [_seconds(job, 2 + turn) for turn in range(_TIMED)]
    return Plan(
        chosen.data,
        len(pool),
        len(job.shape.classes),
        chosen.size,
        job.shape.channels,
        chosen.steps or 0,
        _parameters(job.networks.generator),
        _parameters(job.networks.discriminator),
        counted.get_total_flops(),
        statistics.median(taken),
        peak_device_bytes(device) or peak_bytes(),
        str(device),
        str(job.trainer.dtype).removeprefix("torch."),
    )


def duration(seconds: float) -> str:
    """Return a time in words: `50 s`, `12 min`, `3.4 h`, `2.1 days`."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _seconds(job: Job, step: int) -> float:
    start = time.perf_counter()
    job.trainer.step(step)  # it ends by reading its losses, which waits for a GPU
    return time.perf_counter() - start


def _parameters(network: nn.Module) -> int:
    return sum(each.numel() for each in network.parameters())
