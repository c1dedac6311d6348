"""Compiling the networks of a GAN, their weights handed in from outside.

A compiled graph is a function of the weights and of what goes in. The weights are read before it,
and with that normalized, once a step as without compiling: graphs hold plain convolutions, and u
and v move by the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from ..engine.distributed import World
from .networks import plain_networks
from .trainer import GanTrainer
from .watch import Watch

Graph = Callable[..., Tensor]
"""A network as a function of its weights by name and its inputs."""


def compile_(trainer: GanTrainer, say: Callable[[str], object]) -> bool:
    """Compile the networks of a trainer; where that does not pay or fails, say so in a line.

    Compiled kernels round otherwise than torch's own: a run that goes on with another `--compile`
    is not the same to the bit.

    Args:
        trainer: changed in place.
        say: told why it stays as it is.

    Returns:
        Whether it is compiled.
    """
    if trainer.device.type != "cpu":
        return try_(trainer, say)
    say(
        "--compile: is for a GPU; on a CPU compiling takes minutes and saves next to nothing, as "
        "convolutions stay as they are; goes on uncompiled"
    )
    return False


def try_(trainer: GanTrainer, say: Callable[[str], object]) -> bool:
    """Compile the networks of a trainer as `compile_` does, on a CPU too.

    A step of a copy finds out whether it fails, so that a failure leaves no trace.
    """
    graphs = make_graphs(trainer)
    trial = GanTrainer(
        copy.deepcopy(trainer.networks),
        trainer.feed,
        trainer.options,
        Watch(trainer.watch.data_spread),
        World(),
        trainer.device,
        trainer.dtype,
    )
    use_(trial, *graphs)
    try:
        with torch.random.fork_rng(
            devices=[trainer.device] if trainer.device.type == "cuda" else []
        ):
            trial.step(0)
    except Exception as error:  # whatever a compiler raises, the networks run without it
        reason = next(iter(str(error).strip().splitlines()), "")
        say(f"--compile: cannot ({type(error).__name__}: {reason}); goes on uncompiled")
        return False
    use_(trainer, *graphs)
    return True


def make_graphs(trainer: GanTrainer) -> tuple[Graph, Graph | None]:
    """Return generator and discriminator as compiled functions; nothing is compiled until a call.

    Shapes are static: every step has the same. None stands for a gradient-normalized
    discriminator, which stays as it is, since torch compiles no second derivatives.
    """
    torch.compiler.reset()  # graphs of earlier runs in this process count towards torch's limit
    generator, discriminator = plain_networks(trainer.networks.generator, trainer.options)
    if trainer.options.d_norm == "gn":
        return _graph(generator), None
    return _graph(generator), _graph(discriminator)


def use_(trainer: GanTrainer, drawing: Graph, judging: Graph | None) -> None:
    """Have a trainer draw and judge by graphs of `make_graphs`, with its own networks' weights."""
    networks = trainer.networks
    trainer.generate = _bound(drawing, networks.generator)
    if judging is not None:
        trainer.judge = _bound(judging, networks.discriminator)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers under the names of the network without parametrizations.

    Parametrized ones are computed, differentiably: a spectrally normalized weight is divided by its
    norm here.
    """
    found: dict[str, Tensor] = {}
    for path, module in network.named_modules():
        if isinstance(module, parametrize.ParametrizationList) or ".parametrizations." in path:
            continue
        start = f"{path}." if path else ""
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        found |= {start + name: value for name, value in own}
        if parametrize.is_parametrized(module):
            lists: Any = module.parametrizations
            found |= {start + name: getattr(module, name) for name in lists}
    return found


def _graph(plain: nn.Module) -> Graph:
    def run(weights: dict[str, Tensor], *given: Tensor | None) -> Tensor:
        out: Tensor = functional_call(plain, weights, given)
        return out

    compiled: Graph = torch.compile(run, dynamic=False)
    return compiled


def _bound(graph: Graph, network: nn.Module) -> Callable[..., Tensor]:
    def call(*given: Tensor | None) -> Tensor:
        return graph(weights_of(network), *given)

    return call
