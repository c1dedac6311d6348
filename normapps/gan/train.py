"""`gan train`: from pictures to a run folder with a generator in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data.pool import Pool
from ..engine.device import resolve_device, resolve_dtype
from ..engine.distributed import World, world
from ..engine.loop import CHECKPOINT, Loop
from ..engine.run import has_checkpoint
from ..errors import InputError, UsageError
from ..files import atomic_path, write_text
from ..models.folder import save_model
from ..norm.population import Fingerprint, Population
from ..options import to_json
from ..training.identity import pictures_told
from .compiling import compile_
from .data import Draws, read_pool
from .networks import GENERATOR as BUILDER
from .networks import Shape, generator_arguments, make_networks
from .opening import GENERATOR, RUNNING
from .options import TrainOptions
from .pages import class_grid
from .room import room
from .run import SAMPLES
from .sampling import has_statistics, latents, sample, standing_
from .trainer import GanTrainer
from .watch import Watch, WatchError, spread

GOOD = "checkpoint/good.safetensors"
"""Where the newest checkpoint from before the watch grew uneasy lies, as long as it is uneasy."""
PICTURES = "pictures.safetensors"
"""The decoded pictures in a run folder, so that a run that goes on need not decode them again."""

_FEW = 100
"""Pictures below which a note says that they will be learned by heart."""

_ROWS, _COLUMNS = 10, 8
"""Of a grid in samples/: seeds from 0 on; of a conditional run a row a class, of its first ones."""
_MOST_SPREAD = 2000
"""Pictures that the data's spread is measured on."""

_SCORED = 2000
"""Latents behind the standing statistics that a score in training is measured with."""

Say = Callable[[str], object]


def train(
    options: TrainOptions,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    say: Say = print,
    ready: Callable[[], object] | None = None,
) -> Path:
    """Train a GAN, or continue what the folder holds, exactly.

    Everything random in step i comes from (seed, i, rank). Under torchrun each process draws its
    own pictures and gradients are averaged. The folder holds options.json, metrics.jsonl,
    samples/STEP.png, checkpoint/ and, at the end or after `stop_after`, generator/: a model folder
    with the averaged generator, standing statistics in it and those of training beside it.

    Args:
        options: what to learn from, and how.
        folder: the run's.
        resume: refuse a folder without a checkpoint; `run.resumed` gives the saved options.
        say: told what was read and left out, a line each.
        ready: called when all is read and the steps begin.

    Returns:
        The run's folder; `run.open_run` opens it.

    Raises:
        InputError: pictures or a folder that cannot be used, a run of other options in the folder,
            a full disk, or too little memory.
        WatchError: a number that is none, or a collapse: the last good checkpoint is kept.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    chosen, target = options.resolved(), Path(folder)
    device = resolve_device(chosen.device)
    with world(device) as here:
        device = torch.device("cuda", here.local_rank) if device.type == "cuda" else device
        told: Say = say if here.is_main else _silent
        # the folder is looked at before anything is read
        loop = Loop(
            target, chosen, chosen.steps or 1, chosen.fixed, chosen.seed, chosen.save_every,
            chosen.stop_after, here, device, chosen.overwrite,
        )  # fmt: skip
        if resume and not has_checkpoint(target / CHECKPOINT):
            raise InputError(f"{target}: has no checkpoint to resume from; train without --resume")
        with room(target, "gan train"), _quick(device):
            with _begun(target, chosen, here):
                pool = read(chosen, told, target / PICTURES)
                job = Job(chosen, pool, here, device, told)
            if ready is not None:
                ready()
            job.run(loop)
    return target


def read(options: TrainOptions, say: Say, cache: Path | None = None) -> Pool:
    """Read the pictures of a run.

    Args:
        options: which.
        say: told of them, a line each.
        cache: a file that keeps them decoded; None for none.

    Raises:
        UsageError: none are named.
        InputError: they cannot be used.
    """
    if not options.data:
        raise UsageError("--data: is missing; give a folder of pictures, or fashion-mnist")
    pool = read_pool(
        options.data,
        size=options.size,
        channels=options.channels,
        conditional=options.cond,
        split=options.split,
        limit=options.limit,
        workers=options.workers,
        max_bytes=options.max_bytes,
        cache=cache,
        say=say,
    )
    if len(pool) < _FEW:
        say(f"fewer than {_FEW} pictures are learned by heart: --augment color,translation helps")
    if not options.cond or pool.labels is not None:
        return pool
    raise InputError(f"{options.data}: has no classes to learn; leave out --cond")


class Job:
    """One training: its parts, and what it writes.

    Args:
        options: resolved.
        pool: the pictures.
        here, device: this process and where it computes.
        say: told of what the user should know.
    """

    def __init__(
        self, options: TrainOptions, pool: Pool, here: World, device: torch.device, say: Say
    ) -> None:
        self.options, self.here, self.device = options, here, device
        self.shape = Shape(pool.images.shape[1], tuple(pool.classes) if options.cond else ())
        self.networks = make_networks(options, self.shape, device)
        shown = Pool(pool.images, pool.labels, pool.classes) if options.cond else Pool(pool.images)
        self.identity: dict[str, Any] = {
            "pictures": pictures_told([shown], [], self.shape.classes)[0],
            "channels": self.shape.channels,
            "classes": list(self.shape.classes),
        }
        feed = Draws(shown, options.batch_size, options.seed, here, device, options.flip)
        part = pool.images[:: 1 + len(pool) // _MOST_SPREAD]
        watch = Watch(float(spread(part)) / 128, has_zero=options.loss != "wasserstein")
        self.trainer = GanTrainer(
            self.networks, feed, options, watch, here, device,
            resolve_dtype(options.precision, device), self.identity, self._score(shown),
        )  # fmt: skip
        self.say = say

    def _score(self, pool: Pool) -> Callable[[], dict[str, float]] | None:
        """What scores the averaged generator; the pictures are seen once."""
        if not self.options.score_every:
            return None
        from .evaluation.extractors import open_extractor
        from .evaluation.scorer import Scorer

        extractor = open_extractor(self.options.extractor, str(self.device))
        scorer = Scorer(extractor, pool)
        return partial(scorer, self.networks.average, standing=_SCORED)

    def compile(self) -> None:
        """Compile the networks where that works."""
        compile_(self.trainer, self.say)

    def run(self, loop: Loop) -> None:
        """Take the steps that are left; publish the generator where they stop."""
        self.folder = loop.folder
        if self.options.compile:
            self.compile()
        try:
            loop.run(self.trainer, self._after)
        except WatchError as error:
            raise WatchError(f"{error}; {self._rescued()}") from error
        if self.here.is_main:
            self.publish(loop.done)
        self.here.barrier()

    def _after(self, done: int) -> None:
        if not self.here.is_main:
            return
        self._guard()
        every = self.options.sample_every
        if every and (done % every == 0 or done == 1):
            self.draw(self.folder / SAMPLES / f"{done:06d}.png")

    def _guard(self) -> None:
        """Put the checkpoint from before a bad sign aside until the sign is gone."""
        latest, good = self.folder / CHECKPOINT, self.folder / GOOD
        if not self.trainer.watch.is_uneasy:
            good.unlink(missing_ok=True)
        elif latest.exists() and not good.exists():
            shutil.copyfile(latest, good)

    def _rescued(self) -> str:
        """Make the last good checkpoint the newest; say which there is."""
        latest, good = self.folder / CHECKPOINT, self.folder / GOOD
        if self.here.is_main and good.exists():
            good.replace(latest)
        return f"the last good checkpoint is {latest}" if latest.exists() else "no checkpoint yet"

    def draw(self, path: Path) -> None:
        """Write a grid of the averaged generator's pictures, with the batch's own statistics."""
        average, names = self.networks.average, self.shape.classes[:_ROWS]
        seeds = [*range(_COLUMNS)] * len(names) if names else [*range(_ROWS * _COLUMNS)]
        y = torch.arange(len(names)).repeat_interleave(_COLUMNS) if names else None
        bn = "batch" if has_statistics(average) else "standing"
        z = latents(seeds, self.options.latent)
        pictures = sample(average, z, y, bn=bn, batch_size=len(seeds))
        by_row = pictures.unflatten(0, (-1, _COLUMNS))
        with atomic_path(path) as temporary:
            class_grid(by_row, names).save(temporary)

    def publish(self, done: int) -> Path:
        """Write the averaged generator with standing statistics as a model folder."""
        average = self.networks.average
        with standing_(
            average, self.options.standing, batch_size=self.options.batch_size,
            seed=self.options.seed,
        ):  # fmt: skip
            return save_model(
                self.folder / GENERATOR,
                average,
                builder=BUILDER,
                arguments=generator_arguments(self.options, self.shape),
                preprocessing={"classes": list(self.shape.classes)},
                history=[self._entry(done)],
                overwrite=True,
                complete=self._add_running,
            )

    def _entry(self, done: int) -> dict[str, Any]:
        return {
            "trained": "normapps gan train",
            "normapps": __version__,
            "torch": str(torch.__version__),
            "step": done,
            "processes": self.here.size,
            "standing": self.options.standing,
            "pictures": self.identity["pictures"],
            "options": asdict(self.options),
        }

    def _add_running(self, folder: Path) -> None:
        """Write the running statistics of training, for the averaged weights."""
        (folder / RUNNING).unlink(missing_ok=True)
        if has_statistics(self.networks.generator):
            found = Population.of(self.networks.generator)
            mine = Fingerprint.of(self.networks.average)
            Population(found.layers, mine).save(folder / RUNNING)


@contextlib.contextmanager
def _begun(folder: Path, options: TrainOptions, here: World) -> Iterator[None]:
    """Make a folder a run's before something lies in it; not where what it needs is refused."""
    is_new = here.is_main and not (folder / "options.json").exists()
    was_there = folder.exists()
    if is_new:
        write_text(folder / "options.json", to_json(options))
    try:
        yield
    except BaseException:  # an interrupt too
        if is_new:
            for name in ("options.json", PICTURES):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else came into it
                if not was_there:
                    folder.rmdir()
        raise


@contextlib.contextmanager
def _quick(device: torch.device) -> Iterator[None]:
    """Let cuDNN look for the quickest kernels, as every step has the same sizes."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        yield


def _silent(line: str) -> None:
    """Say nothing: another process does."""
