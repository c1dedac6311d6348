"""What the trainings of translators have in common: networks, averages and their state."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ...engine.distributed import World
from ...engine.run import (
    flatten,
    optimizer_tensors,
    restore_optimizer,
    unflatten,
    update_average,
)
from .options import FrameOptions

BETAS = (0.5, 0.999)
"""Of Adam, as the papers of translation have it."""


class TranslationTask:
    """A `Task` of `engine.loop` that trains networks by name against each other.

    A subclass takes the steps, draws the samples and publishes the models. Each network has an
    optimizer of its own; gradients are averaged over the processes before a step, so that their
    weights stay the same without a wrapper, though a network is called several times a step.

    Args:
        networks: by name, on their device; changed in place.
        averaged: names of those whose parameters are averaged over the steps.
        options: rate, decay, precision.
        here: this process among all.
        device: where the networks lie.

    Attributes:
        networks, optimizers: by name.
        averages: the averaged networks by name, in eval mode.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        averaged: tuple[str, ...],
        options: FrameOptions,
        here: World,
        device: torch.device,
    ) -> None:
        self.networks, self.here, self.device = networks, here, device
        self._frame = options
        self.averages = {name: _copy(networks[name]) for name in averaged}
        self.optimizers: dict[str, Optimizer] = {
            name: Adam(network.parameters(), lr=options.lr, betas=BETAS)
            for name, network in networks.items()
        }

    def step(self, step: int) -> dict[str, float]:
        """Take one step of every network; return the losses by name."""
        raise NotImplementedError

    def grid(self) -> Tensor:
        """Return what the averaged networks make of fixed pictures: (3, H, W) uint8."""
        raise NotImplementedError

    def publish(self, folder: Path, step: int) -> None:
        """Write the averaged networks into the run folder as model folders."""
        raise NotImplementedError

    def change(self, names: tuple[str, ...], loss: Tensor, step: int) -> None:
        """Take a step of some networks down the gradient of a loss; the others stay.

        A gradient that is not finite changes nothing: the loop stops at the loss, and weights that
        are not numbers must not come into a checkpoint.
        """
        found = [parameter for name in names for parameter in self.networks[name].parameters()]
        # of these alone: the loss of a generator passes through a discriminator
        gradients = torch.autograd.grad(loss, found)
        flat = self.here.mean(torch.cat([each.flatten() for each in gradients]))
        if not bool(flat.isfinite().all()):
            return
        parts = flat.split([each.numel() for each in found])
        for parameter, part in zip(found, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        for name in names:
            optimizer = self.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = self.rate(name, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def rate(self, name: str, step: int) -> float:
        """Return the learning rate of a network at a step."""
        return learning_rate(step, self._frame)

    def update_averages(self, step: int) -> None:
        """Move the averages towards the networks."""
        for name, average in self.averages.items():
            update_average(average, self.networks[name], self._frame.ema, step)

    def autocast(self) -> torch.autocast:
        """Return the context in which the networks compute."""
        is_half = self._frame.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_half)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return networks with their buffers, averages and optimizers."""
        tensors: dict[str, Tensor] = {}
        for name, network in self.networks.items():
            tensors |= flatten(f"network.{name}", network.state_dict())
            tensors |= flatten(f"adam.{name}", optimizer_tensors(self.optimizers[name]))
        for name, average in self.averages.items():
            tensors |= flatten(f"average.{name}", average.state_dict())
        return tensors, {}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Become what `state` told."""
        for name, network in self.networks.items():
            network.load_state_dict(unflatten(f"network.{name}", tensors))
            restore_optimizer(self.optimizers[name], unflatten(f"adam.{name}", tensors))
        for name, average in self.averages.items():
            average.load_state_dict(unflatten(f"average.{name}", tensors))


def learning_rate(step: int, options: FrameOptions) -> float:
    """Return the rate of a step: constant, then linear to 0 over the second half (CycleGAN)."""
    return options.lr * min(1.0, 2 * (1 - step / options.steps))


def _copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).eval().requires_grad_(False)
