"""Drawing from a generator: latents by seed, three kinds of batch-norm statistics, grids.

Where published scores could not be reproduced, it was mostly the statistics: a generator's batch
norms draw with running ones (of training), with a batch's own, or with standing ones, accumulated
over many latents of the finished generator (Brock et al. 2019, appendix B). Standing statistics
are its population, so they are measured as any network's; exact, where the usual code averages.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError, unknown
from ..models.folder import MANIFEST, Manifest, load_model, read_manifest
from ..models.shipped import list_shipped, resolve_model
from ..models.sngan import SnganGenerator
from ..norm.population import Population, apply_, measure, population_layers
from ..norm.undo import Undo
from .sample_options import BN_MODES

GENERATOR, RUNNING = "generator", "running.safetensors"
"""The generator's model folder in a run, and in it the running statistics of training."""

CHUNK = 16
"""Pictures that are computed together. Always as many: kernels round otherwise for other numbers,
and a seed would not give the same picture in every batch."""

STANDING = 4096
"""Latents that standing statistics are measured over, unless told otherwise."""

_GAP = 2


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

    def use_(self, bn: str, *, standing: int | None = None, seed: int = 0) -> Undo:
        """Put the statistics of a mode into the generator's batch norms.

        Args:
            bn: one of `BN_MODES`. `standing` leaves those that the folder has, `batch` too:
                `sample` measures then.
            standing: number of latents to measure the standing ones over; None leaves them.
            seed: of these latents.

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
        return Undo() if standing is None else standing_(self.generator, standing, seed=seed)


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
                f"{path}: has no {GENERATOR}/ yet; `normapps gan train --resume -o {path}` goes on"
            )
    return resolve_model(spec)


def is_generator(model: nn.Module) -> TypeGuard[SnganGenerator]:
    """Whether a network is one that draws pictures of latents."""
    return isinstance(model, SnganGenerator)


def latents(seeds: Sequence[int], latent: int) -> Tensor:
    """Draw a latent for every seed; one seed always gives the same, beside whichever others.

    Returns:
        (N, latent) float32 on the CPU, z ~ N(0, I).
    """
    rows = [torch.randn(latent, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, latent)


def sample(
    generator: nn.Module,
    z: Tensor,
    y: Tensor | None = None,
    *,
    bn: str = "standing",
    device: torch.device | None = None,
    batch_size: int = CHUNK,
) -> Tensor:
    """Draw the pictures of latents; the generator stays as it is.

    Args:
        generator: called as `generator(z, y)`; the statistics in it are those that are used (see
            `Opened.use_`), but for `bn="batch"`.
        z: (N, latent).
        y: (N,) int64 classes, for a conditional generator.
        bn: `batch` draws with the statistics of the pictures that are computed together, so that
            a picture depends on its neighbours; the other modes do not.
        device: where to draw; None is the generator's own. The generator is moved there.
        batch_size: pictures computed together.

    Returns:
        (N, channels, S, S) uint8 on the CPU: ⌊128·(x + 1)⌋, which undoes x/128 − 1 + U(0, 1/128).

    Raises:
        InputError: an unknown mode; classes missing, or given to a generator without; latents of
            another size.
    """
    check_mode(generator, bn)
    _check_inputs(generator, z, y)
    if device is not None:
        generator.to(device)
    drawing = _with_batch_statistics(generator) if bn == "batch" else generator
    chunks: list[Tensor] = []
    with evaluating(generator):  # a copy stays as it is
        for start in range(0, len(z), batch_size):
            part = slice(start, start + batch_size)
            size = None if bn == "batch" else batch_size
            chunks.append(_chunk(drawing, z[part], None if y is None else y[part], size))
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.uint8)


def to_bytes(x: Tensor) -> Tensor:
    """Turn pictures in [−1, 1], of any shape, into uint8: ⌊128·(x + 1)⌋, at most 255.

    The values of a byte v that training sees are v/128 − 1 + U(0, 1/128): each comes back as v.
    """
    return ((x.float() + 1) * 128).floor().clamp(0, 255).to(torch.uint8)


def standing_(
    generator: nn.Module, count: int = STANDING, *, batch_size: int = 64, seed: int = 0
) -> Undo:
    """Measure a generator's statistics over many latents, and write them into its batch norms.

    Every batch is normalized with its own statistics, as in training, and all are pooled exactly.
    A conditional generator draws all classes equally often. A generator without running
    statistics is left alone.

    Args:
        generator: changed in place; `num_classes` and `latent` are read off it.
        count: number of latents.
        batch_size: drawn together; better as large as in training.
        seed: of the latents.

    Returns:
        A handle that takes it back.

    Raises:
        InputError: activations that are not finite.
    """
    if not has_statistics(generator):
        return Undo()
    drawing = _Indexed(generator, count, seed)
    batches = torch.arange(count).split(batch_size)
    if len(batches) > 1 and len(batches[-1]) == 1:  # alone it may have nothing to be measured by
        batches = (*batches[:-2], torch.cat(batches[-2:]))
    return apply_(drawing, measure(drawing, batches))


def has_statistics(generator: nn.Module) -> bool:
    """Whether a network has layers with running statistics."""
    return any(name.endswith("running_mean") for name, _ in generator.named_buffers())


def check_mode(generator: nn.Module, bn: str) -> None:
    """Check that a generator can draw with a mode's statistics.

    Raises:
        InputError: an unknown mode, or one that asks for batch norms of a generator without.
    """
    if bn not in BN_MODES:
        raise unknown("statistics", bn, BN_MODES)
    if bn != "standing" and not has_statistics(generator):
        raise InputError(f"--bn {bn}: the generator has no layer with running statistics")


def grid(images: Tensor, columns: int = 0, scale: int = 1) -> Image.Image:
    """Lay pictures out in rows, on white.

    Args:
        images: (N, C, H, W) uint8 of 1 or 3 channels.
        columns: pictures a row; 0 takes one row for up to 8 pictures, else about a square.
        scale: each pixel becomes scale·scale of them.

    Raises:
        InputError: no pictures, or another number of channels.
    """
    if len(images) == 0:
        raise InputError("a grid needs at least one picture")
    columns = columns or (len(images) if len(images) <= 8 else math.ceil(math.sqrt(len(images))))
    columns, rows = min(columns, len(images)), math.ceil(len(images) / columns)
    height, width = (side * scale + _GAP for side in images.shape[2:])
    tiles = [picture(image, scale) for image in images]
    page = Image.new(tiles[0].mode, (columns * width - _GAP, rows * height - _GAP), "white")
    for index, tile in enumerate(tiles):
        page.paste(tile, (index % columns * width, index // columns * height))
    return page


def picture(image: Tensor, scale: int = 1) -> Image.Image:
    """Turn one picture, (C, H, W) uint8 of 1 or 3 channels, into Pillow's, mode L or RGB.

    Raises:
        InputError: another number of channels.
    """
    channels, height, width = image.shape
    if channels not in (1, 3):
        raise InputError(f"pictures of {channels} channels cannot be shown; only of 1 or 3")
    pixels = image.cpu().numpy()
    whole = Image.fromarray(
        pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    )
    return whole.resize((width * scale, height * scale), Image.Resampling.NEAREST)


class _Indexed(nn.Module):
    """A generator that draws by number: latents from a store, classes in turn."""

    def __init__(self, generator: nn.Module, count: int, seed: int) -> None:
        super().__init__()
        self.generator = generator
        self.classes = int(getattr(generator, "num_classes", 0))
        latent: Any = getattr(generator, "latent")  # noqa: B009  not typed
        random = torch.Generator().manual_seed(seed)
        self.store = torch.randn(count, latent, generator=random)

    def forward(self, index: Tensor) -> Tensor:
        """Draw the pictures of the numbers (N,) int64."""
        z = self.store[index.cpu()].to(_place(self.generator))
        drawn: Tensor = self.generator(z, index % self.classes if self.classes else None)
        return drawn


def _chunk(generator: nn.Module, z: Tensor, y: Tensor | None, size: int | None) -> Tensor:
    """Draw up to `size` pictures, computed as if there were just so many."""
    count = len(z)
    wanted = torch.arange(size or count) % count
    place = _place(generator)
    z = z[wanted].to(place)
    y = None if y is None else y[wanted].to(place.device)
    return to_bytes(generator(z, y))[:count].cpu()


def _with_batch_statistics(generator: nn.Module) -> nn.Module:
    """A copy whose batch norms alone are in training mode."""
    drawing = copy.deepcopy(generator).eval()
    for layer in population_layers(drawing).values():
        layer.train()
    return drawing


def _place(generator: nn.Module) -> Tensor:
    """A tensor on the generator's device and of its dtype."""
    return next(each for each in generator.parameters() if each.is_floating_point())


def _check_inputs(generator: nn.Module, z: Tensor, y: Tensor | None) -> None:
    latent, classes = (
        getattr(generator, "latent", z.shape[-1]),
        getattr(generator, "num_classes", 0),
    )
    if z.dim() != 2 or z.shape[1] != latent:
        raise InputError(f"latents of {tuple(z.shape)}: the generator takes (N, {latent})")
    if (y is None) != (classes == 0):
        why = f"takes a class of {classes}; give y" if classes else "has no classes; leave out y"
        raise InputError(f"the generator {why}")
    if y is not None and len(y) != len(z):
        raise InputError(f"{len(y)} classes for {len(z)} latents: give one each")
