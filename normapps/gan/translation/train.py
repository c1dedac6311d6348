"""The run of a translator's training, whatever it learns from: steps, samples, models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...engine.device import resolve_device
from ...engine.distributed import World, world
from ...engine.loop import CHECKPOINT, Loop, check_fixed, check_folder
from ...engine.run import has_checkpoint
from ...errors import UsageError
from ...files import atomic_path
from ..room import room
from .options import FrameOptions, TranslateOptions, check_kind
from .task import TranslationTask

MakeTask = Callable[[World, torch.device], TranslationTask]
"""Makes what is trained, in each process on its device."""


def train_unpaired(
    options: TranslateOptions, folder: Path, say: Callable[[str], object] = print
) -> Path:
    """Train translators between two domains without pairs, or continue what the folder holds.

    The folder gets `options.json`, `metrics.jsonl`, `samples/`, `checkpoint/` and, whenever it
    stops, `generator/` (source to target) and `generator-back/`: model folders of the averages.

    Args:
        options: the domains and the recipe.
        folder: the run folder.
        say: told what was read and left out, a line each.

    Returns:
        `folder / "generator"`.

    Raises:
        UsageError: a domain is missing.
        InputError: pictures or a folder that cannot be used, or a loss that is not finite.
        KeyboardInterrupt: after Ctrl-C, with checkpoint and models written.
    """
    from .trainer import UnpairedTask
    from .unpaired import read_domains

    for name in ("source", "target"):
        if not getattr(options, name):
            raise UsageError(f"--{name} is missing; name a folder, zip or tar of pictures")
    check_run(options, folder)
    domains = read_domains(options, say)
    return run_training(options, folder, partial(UnpairedTask, options, domains))


def check_run(options: FrameOptions, folder: Path) -> None:
    """Refuse, before any picture is read, a folder that cannot hold this run.

    Raises:
        InputError: it holds something else, or a run of other options that is to be kept.
    """
    check_kind(folder, type(options))
    check_folder(folder, type(options))
    if has_checkpoint(folder / CHECKPOINT) and not options.overwrite:
        check_fixed(folder, options, options.fixed)


def run_training(options: FrameOptions, folder: Path, make: MakeTask) -> Path:
    """Take the steps of a run, draw samples on the way, publish the models.

    Args:
        options: of the run.
        folder: the run folder; made, or continued if it holds a run of the same options.
        make: makes the task, its fresh weights from torch's random state, which is seeded.

    Raises:
        InputError: the folder holds something else, a loss is not finite, the disk is full, or
            memory too small.
        KeyboardInterrupt: after Ctrl-C, with checkpoint and models written.
    """
    device = resolve_device(options.device)
    with world(device) as here, room(folder, "translate train"):
        device = torch.device("cuda", here.local_rank) if device.type == "cuda" else device
        with _seeded(options.seed):
            task = make(here, device)
        loop = Loop(
            folder, options, options.steps, options.fixed, options.seed, options.save_every,
            options.stop_after, here, device, options.overwrite,
        )  # fmt: skip
        try:
            loop.run(task, partial(_after, task, options, folder, here))
        except KeyboardInterrupt:
            _publish(task, folder, loop.done, here)
            raise
        _publish(task, folder, loop.done, here)
    return folder / "generator"


def _publish(task: TranslationTask, folder: Path, done: int, here: World) -> None:
    """Also of a run that stopped on its way: its models tell of how many steps they are."""
    if here.is_main:
        task.publish(folder, done)
    here.barrier()


def write_grid(pixels: Tensor, path: Path) -> None:
    """Write a picture (3, H, W) uint8 as PNG."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy()).save(temporary)


def _after(
    task: TranslationTask, options: FrameOptions, folder: Path, here: World, done: int
) -> None:
    if here.is_main and (done % options.sample_every == 0 or done == options.steps):
        write_grid(task.grid(), folder / "samples" / f"{done:06d}.png")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw weights from a seed; torch's random state comes back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
