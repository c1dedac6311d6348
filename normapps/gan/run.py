"""A run of `gan train` on disk: where things lie, and what can be opened of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..engine.loop import CHECKPOINT
from ..engine.run import has_checkpoint, load_checkpoint, unflatten
from ..errors import InputError
from ..models.folder import load_model
from ..options import from_json
from .networks import Shape, make_discriminator
from .opening import generator_folder
from .options import TrainOptions
from .resuming import resumed_options

SAMPLES = "samples"
"""The folder of grids, `STEP.png`, in a run folder."""


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: the run's.
        options: resolved, as they were saved.
    """

    folder: Path
    options: TrainOptions

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.options.steps or 0

    @property
    def done(self) -> int:
        """Steps taken, as the checkpoint tells; 0 without one."""
        return int(self._checkpoint[1].get("step", 0))

    @property
    def is_finished(self) -> bool:
        """Whether all steps are taken."""
        return self.done >= self.steps

    @property
    def shape(self) -> Shape:
        """What the networks take: channels, and names of the classes that are learnt.

        Raises:
            InputError: the run has no checkpoint.
        """
        told = self._told()[1]["identity"]
        return Shape(int(told["channels"]), tuple(told["classes"]))

    def generator(self) -> nn.Module:
        """Return the averaged generator with standing statistics, in eval mode on the CPU.

        Raises:
            InputError: it is not written yet, or is damaged.
        """
        return load_model(generator_folder(self.folder))

    def discriminator(self) -> nn.Module:
        """Return the discriminator of the checkpoint, normalized, in eval mode on the CPU.

        Raises:
            InputError: the run has no checkpoint.
        """
        tensors = self._told()[0]
        network = make_discriminator(self.options, self.shape)
        network.load_state_dict(unflatten("discriminator", tensors))
        return network.eval()

    def _told(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not self._checkpoint[1]:
            raise InputError(f"{self.folder}: has no checkpoint; start the run again")
        return self._checkpoint

    @functools.cached_property
    def _checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = self.folder / CHECKPOINT
        return load_checkpoint(path) if has_checkpoint(path) else ({}, {})


def open_run(folder: str | Path) -> Run:
    """Open a run folder of `gan train`; networks are read when they are asked for.

    Raises:
        InputError: it is no such folder.
    """
    path = Path(folder)
    if not (path / "options.json").is_file():
        raise InputError(f"{path}: is no run of gan train, it has no options.json")
    return Run(path, from_json(TrainOptions, path / "options.json").resolved())


def resumed(folder: Path, options: TrainOptions, given: Sequence[str]) -> TrainOptions:
    """Return the options with which a run goes on, see `resumed_options`.

    Args:
        folder: of the run.
        options: as they were given.
        given: names of those that were given and not left at their defaults.

    Raises:
        InputError: the folder holds no run, or none that has a checkpoint.
        UsageError: an option that would make it another run, or `overwrite`.
    """
    run = open_run(folder)
    if not has_checkpoint(folder / CHECKPOINT):
        raise InputError(f"{folder}: has no checkpoint to resume from; train without --resume")
    return resumed_options(run.options, options, given, options.fixed)
