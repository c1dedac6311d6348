"""Training a stylization network: photographs, paintings and a VGG-19 that judges.

The recipe is AdaIN's (Huang & Belongie 2017, sec. 6) with relative distances, a Gram term, a
reconstruction term (so that strength 0 returns the photograph) and a penalty on the lattice that
pixel-shuffle leaves. In a share of the steps the network paints at twice the size at which VGG
judges, which makes its strokes bold enough for pictures that are looked at from a distance.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.sources import PictureSource
from ..engine.device import place, resolve_device
from ..engine.distributed import World, world
from ..engine.progress import TrainingProgress
from ..engine.run import (
    Metrics,
    StopRequest,
    flatten,
    has_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    unflatten,
    update_average,
)
from ..errors import InputError
from ..files import atomic_path, write_text
from ..models.adain_tiny import AdainTiny
from ..models.folder import save_model
from ..models.vgg import Vgg19, load_vgg19
from ..options import flag, from_json, to_json
from .losses import LAYERS, content_distance, gram_distance, lattice, style_distance
from .options import TrainOptions

_CHECKPOINT = "checkpoint/latest.safetensors"
_FIXED = ("width", "deep", "hidden", "seed", "hold_out", "crop", "double", "batch_size")
"""Options that a resumed run keeps; the others may change."""
_TRIES = 10
_SPREAD = 1.6
"""Crops show between the whole shorter side and 1/1.6 of it."""


@dataclass(frozen=True)
class Batch:
    """One step's pictures: (N, 3, S, S) in [0, 1], painted at S and judged at S / `scale`."""

    content: Tensor
    style: Tensor
    scale: int


def train(options: TrainOptions, folder: Path) -> Path:
    """Train, or continue what `folder` holds; return the model folder with the averaged weights.

    Everything random in step i comes from (seed, i, rank), so a run that is interrupted and resumed
    takes the same steps as one that is not. Under torchrun each process draws its own pairs and
    gradients are averaged.

    Args:
        options: what to train on and how.
        folder: the run folder: options.json, metrics.jsonl, samples/, checkpoint/, model/.

    Raises:
        InputError: a source, weight file or checkpoint cannot be used.
    """
    device = resolve_device(options.device)
    _check_folder(folder)
    with world(device) as here:
        device = torch.device("cuda", here.local_rank) if device.type == "cuda" else device
        trainer = _Trainer(options, folder, device, here)
        trainer.run()
        return trainer.publish()


def _check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that holds something else than a run."""
    if (folder / "options.json").exists():
        from_json(TrainOptions, folder / "options.json")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and no training run; choose another folder")


def learning_rate(step: int, options: TrainOptions) -> float:
    """Return the rate of a step: linear warm-up, a plateau, then a half cosine to 0."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    tail = max(1.0, options.steps * options.decay)
    done = max(0.0, step - (options.steps - tail)) / tail
    return options.lr * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))


def batches(
    options: TrainOptions, first: int, rank: int, device: torch.device
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, batch) from step `first` on; a step's pictures depend on seed and rank only."""
    contents, styles = _sources(options)
    for step in range(first, options.steps):
        # a seed sequence ignores trailing zeros, so rank 0 must not be one
        rng = np.random.default_rng([options.seed, step, 1 + rank])
        shared = np.random.default_rng([options.seed, step])
        scale = 2 if shared.random() < options.double else 1
        side = options.crop * scale
        pair = [
            [_draw(source, rng, side) for _ in range(options.batch_size)]
            for source in (contents, styles)
        ]
        yield step, Batch(_tensor(pair[0], device), _tensor(pair[1], device), scale)


def _draw(source: PictureSource, rng: np.random.Generator, side: int) -> np.ndarray:
    """Crop a random picture; a damaged one is named in a warning and another one drawn."""
    for _ in range(_TRIES):
        try:
            return source.crop(int(rng.integers(len(source))), rng, side, _SPREAD)
        except InputError as error:
            warnings.warn(str(error), stacklevel=2)
    raise InputError(f"{_TRIES} pictures in a row cannot be read; check --contents and --styles")


def losses(
    output: Tensor, identity: Tensor, batch: Batch, vgg: Vgg19, options: TrainOptions
) -> dict[str, Tensor]:
    """Return each term of the loss, unweighted, and `total`.

    Args:
        output: (N, 3, S, S) stylized.
        identity: (1, 3, S, S) the first content, reconstructed.
        batch: what was stylized.
        vgg: the judge, in any precision.
        options: the weights.
    """
    judged = [_shrink(x, batch.scale) for x in (output, batch.content, batch.style)]
    with torch.no_grad():
        wanted = _features(vgg, torch.cat([judged[1], judged[2]]))
        n = len(output)
        content, style = wanted[-1][:n], [layer[n:] for layer in wanted]
    got = _features(vgg, judged[0])
    terms = {
        "content": content_distance(got[-1], content),
        "style": style_distance(got, style).mean(),
        "gram": gram_distance(got, style).mean(),
        "identity": F.l1_loss(identity, batch.content[:1]),
        "lattice": lattice(output).mean() + lattice(identity).mean(),
        "range": (output - output.clamp(0, 1)).abs().mean(),
    }
    weights = {
        "content": options.content_weight,
        "style": options.style_weight,
        "gram": options.gram_weight,
        "identity": options.identity_weight,
        "lattice": options.lattice_weight,
        "range": 10.0,
    }
    terms["total"] = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return terms


def check_resumable(options: TrainOptions, folder: Path) -> None:
    """Refuse to continue a run with options that would make it another run.

    Raises:
        InputError: naming the first flag that differs from the run's own.
    """
    before = from_json(TrainOptions, folder / "options.json")
    for name in _FIXED:
        old, new = getattr(before, name), getattr(options, name)
        if old != new:
            raise InputError(f"{folder}: was started with {flag(name)} {old}, not {new}")


class _Trainer:
    """Model, average, optimizer and step of one run."""

    def __init__(
        self, options: TrainOptions, folder: Path, device: torch.device, here: World
    ) -> None:
        self.options, self.folder, self.device, self.here = options, folder, device, here
        torch.manual_seed(options.seed)
        model = AdainTiny(options.width, options.deep, options.hidden)
        self.model = place(model, device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.lr, fused=True)
        self.precision = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
        vgg = load_vgg19(options.vgg, LAYERS[-1])
        self.vgg = place(vgg, device, self.precision)
        self.step = 0
        if has_checkpoint(folder / _CHECKPOINT):
            check_resumable(options, folder)
            self._resume()

    def run(self) -> None:
        """Take the steps that are left."""
        if self.here.is_main:
            write_text(self.folder / "options.json", to_json(self.options))
        network = self._distributed()
        last = self.step + (self.options.stop_after or self.options.steps)
        metrics = Metrics(self.folder, self.step) if self.here.is_main else None
        shown = TrainingProgress(self.options.steps, self.step, self.here.is_main)
        with shown as progress, StopRequest() as stop:
            for step, batch in batches(self.options, self.step, self.here.rank, self.device):
                if step >= last or stop.requested:
                    break
                values = self._take(network, batch)
                progress.update(step + 1, values)
                if metrics is not None:
                    metrics.add(step, values)
                self._keep()
        if metrics is not None:
            metrics.close()
        self.save()
        if stop.requested:
            raise KeyboardInterrupt

    def _take(self, network: nn.Module, batch: Batch) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.options)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16
        ):
            output, identity = network(batch.content, batch.style)
        terms = losses(output.float(), identity.float(), batch, self.vgg, self.options)
        self.optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        means = self.here.mean(torch.stack([*terms.values(), norm]).detach()).tolist()
        if not math.isfinite(sum(means)):
            raise InputError(f"step {self.step}: the loss is not finite; resume with a lower --lr")
        self.optimizer.step()
        update_average(self.average, self.model, self.options.ema, self.step)
        self.step += 1
        return dict(zip([*terms, "grad_norm"], means, strict=True))

    def _distributed(self) -> nn.Module:
        if self.here.size == 1:
            return self.model
        ids = [self.here.local_rank] if self.device.type == "cuda" else None
        network: nn.Module = nn.parallel.DistributedDataParallel(self.model, device_ids=ids)
        return network

    def _keep(self) -> None:
        if self.step % self.options.save_every == 0:
            self.save()
        if self.step % self.options.sample_every == 0 and self.here.is_main:
            self._sample()

    def save(self) -> None:
        """Write the checkpoint."""
        if not self.here.is_main:
            return
        tensors = {
            **flatten("model", self.model.state_dict()),
            **flatten("average", self.average.state_dict()),
            **optimizer_tensors(self.optimizer),
        }
        save_checkpoint(self.folder / _CHECKPOINT, tensors, {"step": self.step})

    def _resume(self) -> None:
        tensors, values = load_checkpoint(self.folder / _CHECKPOINT)
        self.model.load_state_dict(unflatten("model", tensors))
        self.average.load_state_dict(unflatten("average", tensors))
        restore_optimizer(self.optimizer, tensors)
        self.step = int(values["step"])

    @torch.no_grad()
    def _sample(self) -> None:
        """Write a grid: four photographs by four paintings, always the same."""
        from PIL import Image

        fixed = _fixed_pictures(self.options, self.device)
        rows = []
        for content in fixed.content:
            outputs, _ = self.average(content.expand_as(fixed.style), fixed.style)
            rows.append(torch.cat([content, *outputs.clamp(0, 1)], 2))
        top = torch.cat([torch.ones_like(fixed.style[0]), *fixed.style], 2)
        grid = torch.cat([top, *rows], 1).permute(1, 2, 0)
        pixels = (grid * 255).round().byte().cpu().numpy()
        with atomic_path(self.folder / "samples" / f"{self.step:06d}.png") as temporary:
            Image.fromarray(pixels).save(temporary)

    def publish(self) -> Path:
        """Write the averaged weights as a model folder, in half precision and half the size."""
        folder = self.folder / "model"
        arguments = {key: getattr(self.options, key) for key in ("width", "deep", "hidden")}
        if self.here.is_main:
            history = [{"step": self.step, "trained": "normapps style train"}]
            save_model(
                folder,
                copy.deepcopy(self.average).half(),
                builder="adain-tiny",
                arguments=arguments,
                history=history,
                overwrite=True,
            )
        self.here.barrier()
        return folder


def _sources(options: TrainOptions) -> tuple[PictureSource, PictureSource]:
    contents, styles = (
        PictureSource(places, options.hold_out) for places in (options.contents, options.styles)
    )
    return contents, styles


def _fixed_pictures(options: TrainOptions, device: torch.device) -> Batch:
    rng = np.random.default_rng([options.seed, 0xF1CED])
    pair = []
    for source in _sources(options):
        picks = np.linspace(0, len(source) - 1, 4).astype(int)
        pair.append(_tensor([_readable(source, int(i), rng) for i in picks], device))
    return Batch(pair[0], pair[1], 1)


def _readable(source: PictureSource, index: int, rng: np.random.Generator) -> np.ndarray:
    """Crop the picture of an index, or the first after it that is not damaged."""
    for shift in range(len(source)):
        with contextlib.suppress(InputError):
            return source.crop((index + shift) % len(source), rng, 256, 1.0)
    raise InputError("no picture can be read; check --contents and --styles")


def _features(vgg: Vgg19, image: Tensor) -> list[Tensor]:
    dtype = vgg.input.weight.dtype
    features: list[Tensor] = vgg(image.to(dtype, memory_format=torch.channels_last), LAYERS)
    return features


def _shrink(image: Tensor, scale: int) -> Tensor:
    return F.avg_pool2d(image, scale) if scale > 1 else image


def _tensor(squares: list[np.ndarray], device: torch.device) -> Tensor:
    stacked = torch.from_numpy(np.stack(squares)).to(device)
    return (stacked.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)
