"""Opening a generator: by its run, its model folder, or a shipped one's name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from torch import nn

from ..errors import InputError
from ..models.folder import MANIFEST, Manifest, load_model, read_manifest
from ..models.shipped import list_shipped, resolve_model
from ..models.sngan import SnganGenerator
from ..norm.population import Population, apply_
from ..norm.undo import Undo
from .sampling import STANDING, check_mode, standing_

GENERATOR, RUNNING = "generator", "running.safetensors"
"""The generator's model folder in a run, and in it the running statistics of training."""


@dataclass(frozen=True)
class Opened:
    """A generator and what its folder says of it.

    Attributes:
        generator: in eval mode, with standing statistics in its batch norms.
        folder: its model folder.
        name: what it was opened by.
        classes: names of the classes by number; numbers where no names are known; empty for a
            generator without classes.
        running: the running statistics of training, where the folder has them.
        manifest: of the folder.
    """

    generator: SnganGenerator
    folder: Path
    name: str
    classes: tuple[str, ...]
    running: Population | None
    manifest: Manifest

    @property
    def latent(self) -> int:
        """How many numbers a latent has."""
        return self.generator.latent

    def use_(
        self,
        bn: str,
        *,
        standing: int | None = None,
        seed: int = 0,
        truncation: float | None = None,
    ) -> Undo:
        """Put the statistics of a mode into the generator's batch norms.

        Args:
            bn: one of `BN_MODES`. `standing` leaves those that the folder has, `batch` too:
                `sample` measures then.
            standing: number of latents to measure the standing ones over; None leaves them, but
                takes `STANDING` where latents are cut off: theirs are others.
            seed: of these latents.
            truncation: where latents are cut off; see `sampling.truncated`.

        Raises:
            InputError: an unknown mode, or the folder has no running statistics.
        """
        check_mode(self.generator, bn)
        if bn == "running":
            if self.running is None:
                raise InputError(
                    f"{self.folder}: has no {RUNNING}, statistics of training; use --bn standing"
                )
            # measured in training, and so under the weights that are averaged here
            return apply_(self.generator, self.running, strict=False)
        if bn == "batch" or (standing is None and truncation is None):
            return Undo()
        return standing_(self.generator, standing or STANDING, seed=seed, truncation=truncation)


def open_generator(spec: str | os.PathLike[str]) -> Opened:
    """Open a generator by the run that trained it, its model folder, or a shipped one's name.

    Raises:
        InputError: there is none, or what is there is no generator.
    """
    folder = generator_folder(spec)
    manifest = read_manifest(folder)
    generator = load_model(folder)
    if not is_generator(generator):
        raise InputError(
            f"{folder}: is no generator but a {manifest.builder}; give a run of `gan train`"
        )
    count = generator.num_classes
    named = tuple(map(str, manifest.preprocessing.get("classes", ())))
    classes = named if len(named) == count else tuple(map(str, range(count)))
    path = folder / RUNNING
    running = Population.load(path) if path.is_file() else None
    return Opened(generator, folder, os.fspath(spec), classes, running, manifest)


def generator_folder(spec: str | os.PathLike[str]) -> Path:
    """Return the model folder of a run, or the folder or shipped model that is named.

    Raises:
        InputError: there is none, or a run that has not written its generator yet.
    """
    path = Path(spec).expanduser()
    if os.fspath(spec) not in list_shipped() and path.is_dir():
        if (path / GENERATOR / MANIFEST).is_file():
            return path / GENERATOR
        if (path / "options.json").is_file() and not (path / MANIFEST).is_file():
            raise InputError(
                f"{path}: has no {GENERATOR}/ yet; `normapps gan train --resume -o {path} "
                "--stop-after 1` writes it"
            )
    return resolve_model(spec)


def is_generator(model: nn.Module) -> TypeGuard[SnganGenerator]:
    """Whether a network is one that draws pictures of latents."""
    return isinstance(model, SnganGenerator)
