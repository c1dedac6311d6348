"""What networks cost here: time at several batch sizes, taken in turns, and their size.

Fewer multiplications are not less time (METHODS: ResNet-50 with 43 % fewer took 23 % less), so
time is measured, and in turns: a machine that slows down for a while slows all networks alike. The
ratio of two networks is taken round by round, and is therefore better known than either time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine.device import evaluating, place
from ..errors import InputError
from ..graph.graph import ChannelGraph, Keep
from ..graph.surgery import slim_model
from ..measure.latency import SECONDS, Latency, time_in_turns

BATCH_SIZES = (1, 32)


@dataclass(frozen=True)
class Footprint:
    """What a network weighs.

    Attributes:
        parameters: numbers that are learned.
        macs: multiply-accumulates of one input.
        bytes: of its tensors, as a safetensors file holds them.
    """

    parameters: int
    macs: int
    bytes: int


def footprint(model: nn.Module, macs: int) -> Footprint:
    """Weigh a network whose multiply-accumulates are known (`ChannelGraph.macs`)."""
    parameters = sum(each.numel() for each in model.parameters())
    return Footprint(parameters, macs, sum(map(_bytes, model.state_dict().values())))


def measure_latency(
    models: Mapping[str, nn.Module],
    inputs: Tensor,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    device: torch.device | str = "cpu",
    seconds: float = SECONDS,
) -> tuple[Latency, ...]:
    """Time networks against each other.

    Args:
        models: by name; copies on the device are timed, in evaluation mode, channels_last.
        inputs: (1, ...) floating, whose size and dtype the noise gets that they are fed.
        batch_sizes: inputs a call.
        device: where.
        seconds: what each batch size may take about; there are 5 rounds at least and 51 at most.

    Returns:
        One a batch size.

    Raises:
        InputError: no network, no batch size, or one below 1.
    """
    if not models or not batch_sizes or min(batch_sizes) < 1:
        raise InputError(
            f"{len(models)} networks at batch sizes {tuple(batch_sizes)}: give one network at least"
            " and batch sizes from 1"
        )
    where = torch.device(device)
    ready = {name: _ready(model, where) for name, model in models.items()}
    return tuple(_time_at(size, ready, inputs, where, seconds) for size in batch_sizes)


class Stopwatch:
    """Tells how long a network takes, always beside the base: what a latency target asks.

    A machine's speed drifts, and a target is sought over minutes. So a time is the base's first
    median times the ratio of the two in the present run.

    Args:
        base: a copy of it is kept on the device.
        inputs: as `measure_latency`.
        batch_size: inputs a call.
        device: where.
        seconds: what one measurement may take about.
    """

    def __init__(
        self,
        base: nn.Module,
        inputs: Tensor,
        *,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
        seconds: float = 2.0,
    ) -> None:
        self.device = torch.device(device)
        self.inputs, self.batch_size, self.seconds = inputs, batch_size, seconds
        self._base = _ready(base, self.device)
        self._reference = math.nan

    def __call__(self, model: nn.Module) -> float:
        """Return the seconds of a call."""
        pair = {"base": self._base, "model": _ready(model, self.device)}
        found = _time_at(self.batch_size, pair, self.inputs, self.device, self.seconds)
        if math.isnan(self._reference):
            self._reference = found.times["base"].median
        return self._reference / found.speedup("model").median


def latency_of(
    model: nn.Module,
    graph: ChannelGraph,
    inputs: Tensor,
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    seconds: float = 2.0,
) -> Callable[[Keep], float]:
    """Return what tells the seconds of a network without some channels: for a latency target.

    Args:
        model: with all channels; stays as it is.
        graph: of it.
        inputs, batch_size, device, seconds: as `Stopwatch`.
    """
    watch = Stopwatch(model, inputs, batch_size=batch_size, device=device, seconds=seconds)
    return lambda keep: watch(slim_model(model, graph, keep)[0])


def _ready(model: nn.Module, device: torch.device) -> nn.Module:
    return place(copy.deepcopy(model), device)


def _time_at(
    size: int,
    models: Mapping[str, nn.Module],
    inputs: Tensor,
    device: torch.device,
    seconds: float,
) -> Latency:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn((size, *inputs.shape[1:]), generator=generator).to(device, inputs.dtype)
    if batch.dim() == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)
    cases = {name: _case(model, batch) for name, model in models.items()}
    return time_in_turns(size, cases, seconds=seconds, synchronize=_waiting(device))


def _case(model: nn.Module, batch: Tensor) -> Callable[[], object]:
    def run() -> None:
        with evaluating(model):
            model(batch)

    return run


def _waiting(device: torch.device) -> Callable[[], object] | None:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else None


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
