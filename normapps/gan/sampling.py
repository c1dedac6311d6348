"""Drawing from a generator: latents by seed, three kinds of batch-norm statistics.

Where published scores could not be reproduced, it was mostly the statistics: a generator's batch
norms draw with running ones (of training), with a batch's own, or with standing ones, accumulated
over many latents of the finished generator (Brock et al. 2019, appendix B). Standing statistics
are its population, so they are measured as any network's; exact, where the usual code averages.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError, unknown
from ..norm.population import apply_, measure, population_layers
from ..norm.undo import Undo
from .sample_options import BN_MODES

CHUNK = 16
"""Pictures that are computed together. Always as many: kernels round otherwise for other numbers,
and a seed would not give the same picture in every batch."""

STANDING = 4096
"""Latents that standing statistics are measured over, unless told otherwise."""


def latents(seeds: Sequence[int], latent: int, truncation: float | None = None) -> Tensor:
    """Draw a latent for every seed; one seed always gives the same, beside whichever others.

    Args:
        seeds: of the rows.
        latent: numbers a row.
        truncation: cut the distribution off there; see `truncated`.

    Returns:
        (N, latent) float32 on the CPU, z ~ N(0, I).
    """
    rows = [torch.randn(latent, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    z = torch.stack(rows) if rows else torch.empty(0, latent)
    return z if truncation is None else truncated(z, truncation)


def truncated(z: Tensor, most: float) -> Tensor:
    """Turn normal latents into ones cut off at ±`most` (Brock et al. 2019, section 3.1).

    z ↦ Φ⁻¹(½ + (2Φ(most) − 1)·(Φ(z) − ½)) has just the distribution that is left when numbers
    beyond are drawn anew, as the paper does. Where we differ: nothing is drawn, so that a seed
    changes little by little with `most` and stays recognizable.

    Args:
        z: of any shape, from N(0, I).
        most: above 0.

    Returns:
        float32 in [−most, most].
    """
    share = torch.special.ndtr(z.double()) - 0.5
    inside = 2 * torch.special.ndtr(torch.tensor(most, dtype=torch.float64)) - 1
    found: Tensor = torch.special.ndtri(0.5 + inside * share).clamp(-most, most).float()
    return found


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
        y: (N,) int64 classes, for a conditional generator; or (N, classes) weights that mix them.
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
    generator: nn.Module,
    count: int = STANDING,
    *,
    batch_size: int = 64,
    seed: int = 0,
    truncation: float | None = None,
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
        truncation: cut the latents off there; see `truncated`.

    Returns:
        A handle that takes it back.

    Raises:
        InputError: activations that are not finite.
    """
    if not has_statistics(generator):
        return Undo()
    drawing = _Indexed(generator, count, seed, truncation)
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


class _Indexed(nn.Module):
    """A generator that draws by number: latents from a store, classes in turn."""

    def __init__(
        self, generator: nn.Module, count: int, seed: int, truncation: float | None
    ) -> None:
        super().__init__()
        self.generator = generator
        self.classes = int(getattr(generator, "num_classes", 0))
        latent: Any = getattr(generator, "latent")  # noqa: B009  not typed
        random = torch.Generator().manual_seed(seed)
        store = torch.randn(count, latent, generator=random)
        self.store = store if truncation is None else truncated(store, truncation)

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
