"""Images distilled from a network's batch norms: calibration without a picture.

ZeroQ (Cai et al. 2020): noise is optimized until the mean and the deviation of what every batch
norm reads are those that it stored in training. Differs from the paper's code: the moments are
those of the whole batch, as training measured them, instead of each image's; each channel's
differences count in units of its own stored deviation and each layer alike, because raw squares
are those of the few layers with large activations; and the noise is smooth at first, with the
spectrum of photographs (amplitude 1/frequency).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..norm.moments import Moments
from ..norm.partition import BATCH
from ..norm.population.listening import inference, listening
from ..norm.population.statistics import partition_of, population_layers, stored_moments

Progress = Callable[[int, int], object]
"""Called with the steps done and their number in all, which falls where a batch stops early."""

_LOWEST = 1 / 50
"""Share of the first step size below which a batch is finished."""

_PATIENCE = 10
"""Steps without a lower loss after which the step size is halved."""

_GAIN = 1e-3
"""Share by which a loss is lower to count as lower."""

_LONGEST = 160
"""Letters of somebody else's message that are shown."""


@dataclass(frozen=True, eq=False)
class Distilled:
    """Images and how they came about.

    Attributes:
        images: (count, C, H, W) float32 on the CPU, in the network's normalized input space.
        losses: for each batch the loss before every step; see `distill`.
    """

    images: Tensor
    losses: tuple[tuple[float, ...], ...]

    def curve(self) -> tuple[float, ...]:
        """Return the mean loss of all batches by step; one that has stopped keeps its lowest."""
        longest = max(len(each) for each in self.losses)
        filled = [(*each, *[min(each)] * (longest - len(each))) for each in self.losses]
        return tuple(sum(step) / len(filled) for step in zip(*filled, strict=True))


def distill(
    model: nn.Module,
    count: int,
    size: int | tuple[int, int],
    *,
    channels: int = 3,
    steps: int = 100,
    lr: float = 0.1,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Distilled:
    """Optimize noise until the inputs of all batch norms have the statistics that these stored.

    The loss is the mean over layers, and over the channels of each, of
    ((μ − μ̂)² + (σ − σ̂)²) / σ̂², with the moments μ, σ of the batch and the layer's own μ̂, σ̂ (its
    `eps` in both deviations). The images themselves count as one more layer, of mean 0 and
    deviation 1. Adam; the step size is halved where the loss stays, and a batch stops once it is
    a fiftieth of the first.

    Args:
        model: with its batch norms, not folded; on any device, where the work is done. It comes
            back as it was, and so does torch's random state.
        count: images.
        size: pixels of a side, or (height, width).
        channels: of the images.
        steps: at most, for each batch; the paper takes 500.
        lr: of Adam; the paper's 0.5 is for its own loss.
        batch_size: images whose moments are taken together; all batches are of nearly the same
            size.
        seed: the same images come out of the same one, on one machine.
        progress: told of every step.

    Raises:
        InputError: the model has no batch norm, or none is reached, it fails on such images, gives
            activations that are not finite, or a number is not positive.
    """
    height, width = (size, size) if isinstance(size, int) else size
    _check(count=count, height=height, width=width, channels=channels, steps=steps, lr=lr)
    _check(batch_size=batch_size)
    layers = _layers(model)
    like = next(each for each in model.parameters() if each.is_floating_point())
    matching = _Matching(model, layers, lr)
    counter = _Counter(math.ceil(count / batch_size), steps, progress)
    with _random_state(like), inference(model), _without_weight_gradients(model):
        torch.manual_seed(seed)
        noise = smooth_noise(count, channels, height, width, torch.Generator().manual_seed(seed))
        found = [
            matching.run(part.to(like.device), steps, counter)
            for part in noise.tensor_split(counter.batches)
        ]
    images, losses = zip(*found, strict=True)
    return Distilled(torch.cat(images), losses)


def smooth_noise(
    count: int, channels: int, height: int, width: int, generator: torch.Generator
) -> Tensor:
    """Draw Gaussian noise with the spectrum of photographs, amplitude 1/frequency (Field 1987).

    Returns:
        (count, channels, height, width) float32 with mean 0 and deviation 1 over each image's
        channel.
    """
    white = torch.randn(count, channels, height, width, generator=generator)
    rows = torch.fft.fftfreq(height)[:, None]
    columns = torch.fft.rfftfreq(width)[None]
    amplitude = 1 / torch.hypot(rows, columns).clamp_min(1 / max(height, width))
    smooth = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(height, width))
    centred = smooth - smooth.mean((2, 3), keepdim=True)
    size = centred.square().mean((2, 3), keepdim=True).sqrt()
    images: Tensor = centred / size.clamp_min(torch.finfo(size.dtype).tiny)
    return images


class _Matching:
    """A network's stored statistics, and images that are drawn to them."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], lr: float) -> None:
        self.model, self.layers, self.lr = model, layers, lr
        self.own = {name: _on(stored_moments(layer), layer) for name, layer in layers.items()}

    def run(self, noise: Tensor, steps: int, counter: _Counter) -> tuple[Tensor, tuple[float, ...]]:
        """Optimize one batch; return the images of the lowest loss, and the losses."""
        images = noise.clone().requires_grad_()
        adam = torch.optim.Adam([images], self.lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            adam, factor=0.5, patience=_PATIENCE, threshold=_GAIN
        )
        losses: list[float] = []
        best = noise
        for step in range(steps):
            loss = self.loss(images)
            (images.grad,) = torch.autograd.grad(loss, images)
            losses.append(_finite(loss))
            if losses[-1] == min(losses):
                best = images.detach().clone()
            adam.step()
            plateau.step(losses[-1])
            counter.step()
            if adam.param_groups[0]["lr"] < self.lr * _LOWEST:
                counter.skip(steps - step - 1)
                break
        return best.cpu(), tuple(losses)

    @torch.enable_grad()
    def loss(self, images: Tensor) -> Tensor:
        """How far the moments of all layers are from the stored ones, a scalar."""
        found = self.listen(images)
        pairs = [
            _apart(found[name], self.own[name], float(getattr(self.layers[name], "eps", 1e-5)))
            for name in found
        ]
        standard = torch.zeros(1, images.shape[1], device=images.device)
        wanted = Moments(standard[:, 0], standard, standard + 1)
        pairs.append(_apart(Moments.of(images, BATCH), wanted, 0.0))
        return torch.stack(pairs).mean()

    def listen(self, images: Tensor) -> dict[str, Moments]:
        """The moments of what each layer reads, over all of its calls."""
        found: dict[str, Moments] = {}

        def hear(name: str, x: Tensor) -> None:
            moments = Moments.of(x, partition_of(self.layers[name]))
            found[name] = found[name].merge(moments) if name in found else moments

        like = next(each for each in self.model.parameters() if each.is_floating_point())
        with listening(self.layers, hear):
            _forward(self.model, images.to(like.dtype))
        if not found:
            raise InputError(
                f"{type(self.model).__name__}: its forward calls none of its batch norms; give"
                " pictures instead"
            )
        return found


class _Counter:
    """Tells of steps over all batches."""

    def __init__(self, batches: int, steps: int, progress: Progress | None) -> None:
        self.batches, self._progress = batches, progress
        self._done, self._total = 0, batches * steps

    def step(self) -> None:
        self._done += 1
        self._tell()

    def skip(self, steps: int) -> None:
        self._total -= steps
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total)


def _apart(found: Moments, wanted: Moments, eps: float) -> Tensor:
    """The squared differences of mean and deviation in units of the wanted one, a channel's mean.

    Args:
        found, wanted: of (G, D) channels.
        eps: that the layer adds to a variance.
    """
    std = wanted.std(eps)
    shift = (found.mean - wanted.mean) / std
    stretch = found.std(eps) / std - 1
    return (shift.square() + stretch.square()).mean()


def _on(moments: Moments, layer: nn.Module) -> Moments:
    return moments.diagonal().to(layer.get_buffer("running_mean").device)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    try:
        return population_layers(model)
    except InputError as error:
        raise InputError(
            f"{type(model).__name__} has no batch norm whose statistics images could be distilled"
            " from: give pictures, or distill before folding"
        ) from error


def _forward(model: nn.Module, images: Tensor) -> None:
    try:
        model(images)
    except Exception as error:  # somebody else's code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        short = reason if len(reason) < _LONGEST else f"{reason[: _LONGEST - 1]}…"
        raise InputError(
            f"{type(model).__name__}: fails on images of {tuple(images.shape)} ({short}); give the"
            " size that it takes"
        ) from error


def _finite(loss: Tensor) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise InputError(
            f"distillation: the loss is {value}; look for NaN or infinity in the weights and the"
            " running statistics, or lower lr"
        )
    return value


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{name} {value}: must be positive")


@contextmanager
def _random_state(like: Tensor) -> Iterator[None]:
    """Leave the generators as they are, whatever a forward draws."""
    devices = [like.device] if like.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _without_weight_gradients(model: nn.Module) -> Iterator[None]:
    """Keep nothing for gradients that nobody reads."""
    wanted = [each for each in model.parameters() if each.requires_grad]
    try:
        for each in wanted:
            each.requires_grad_(False)
        yield
    finally:
        for each in wanted:
            each.requires_grad_(True)
