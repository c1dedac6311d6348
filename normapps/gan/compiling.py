"""Compiling the networks of a GAN, where that works."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from ..engine.distributed import World
from .trainer import GanTrainer
from .watch import Watch


def compile_(trainer: GanTrainer, say: Callable[[str], object]) -> bool:
    """Compile the networks of a trainer; where that fails, say so in a line and leave them.

    A step of a copy finds out, so that a failure leaves no trace in the networks. Compiled kernels
    round otherwise than torch's own: a run that goes on with another `--compile` is not the same to
    the bit.

    Args:
        trainer: changed in place.
        say: told why it stays as it is.

    Returns:
        Whether it is compiled.
    """
    trial = GanTrainer(
        copy.deepcopy(trainer.networks),
        trainer.feed,
        trainer.options,
        Watch(trainer.watch.data_spread),
        World(),
        trainer.device,
        trainer.dtype,
    )
    trial.compile()
    try:
        with torch.random.fork_rng(
            devices=[trainer.device] if trainer.device.type == "cuda" else []
        ):
            trial.step(0)
    except Exception as error:  # whatever a compiler raises, the networks run without it
        reason = next(iter(str(error).strip().splitlines()), "")
        say(f"--compile: cannot ({type(error).__name__}: {reason}); goes on uncompiled")
        return False
    trainer.compile()
    return True
