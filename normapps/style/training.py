"""Training a stylization network: photographs, paintings and a VGG-19 that judges.

The recipe is AdaIN's (Huang & Belongie 2017, sec. 6) with relative distances, a Gram term, a
reconstruction term (so that strength 0 returns the photograph) and a penalty on the lattice that
pixel-shuffle leaves. The map that moves the statistics is drawn anew in every step, so that one
network serves AdaIN, WCT, optimal transport and Cholesky. The network paints at twice the size at
which VGG judges, which makes its strokes bold enough for pictures seen from a distance.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.sources import PictureSource
from ..engine.device import place, resolve_device
from ..engine.distributed import World, world
from ..engine.loop import Loop
from ..engine.run import flatten, optimizer_tensors, restore_optimizer, unflatten, update_average
from ..errors import InputError
from ..files import atomic_path
from ..models.adain_tiny import AdainTiny
from ..models.folder import load_model, save_model
from ..models.shipped import resolve_model
from ..models.vgg import load_vgg19
from .color import pair_colors
from .detail import mix_detail
from .draws import Batch, Draws, as_tensor, look, sources
from .losses import (
    LAYERS,
    content_distance,
    gram_distance,
    lattice,
    structure_distance,
    style_distance,
)
from .options import TrainOptions
from .temporal import FURTHEST, shifted, unsteadiness

_SHAPE = ("width", "deep", "hidden")
_FIXED = (*_SHAPE, "model", "start", "seed", "hold_out", "crop", "paint", "reuse", "batch_size")
"""Options that a resumed run keeps; the others may change."""
_GRID = 4
_GRID_SIDE = 256


def train(
    options: TrainOptions, folder: Path, make_task: Callable[..., StyleTask] | None = None
) -> Path:
    """Train, or continue what `folder` holds; return the model folder with the averaged weights.

    Everything random in step i comes from (seed, i, rank), so a run that is interrupted and resumed
    takes the same steps as one that is not. Under torchrun each process draws its own pairs and
    gradients are averaged.

    Args:
        options: what to train on and how.
        folder: the run folder: options.json, metrics.jsonl, samples/, checkpoint/, model/.
        make_task: a `StyleTask` with terms of its own, of (options, world, device); None: as
            `options.model` says.

    Raises:
        InputError: a source, weight file or checkpoint cannot be used.
    """
    device = resolve_device(options.device)
    with world(device) as here:
        device = torch.device("cuda", here.local_rank) if device.type == "cuda" else device
        loop = Loop(
            folder,
            options,
            options.steps,
            _FIXED,
            options.seed,
            options.save_every,
            options.stop_after,
            here,
            device,
        )
        task = (make_task or _task(options))(options, here, device)

        def keep(done: int) -> None:
            if done % options.sample_every == 0 and here.is_main:
                task.draw_grid(folder / "samples" / f"{done:06d}.png")

        loop.run(task, keep)
        if here.is_main:
            task.publish(folder / "model", loop.done)
        here.barrier()
    return folder / "model"


def _task(options: TrainOptions) -> type[StyleTask]:
    if options.model == "adain-tiny":
        return StyleTask
    from .decoder_training import DecoderTask

    return DecoderTask


def learning_rate(step: int, options: TrainOptions) -> float:
    """Return the rate of a step: linear warm-up, a plateau, then a half cosine to 0."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    tail = max(1.0, options.steps * options.decay)
    done = max(0.0, step - (options.steps - tail)) / tail
    return options.lr * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))


def losses(
    output: Tensor, identity: Tensor, batch: Batch, seen: Sequence[Tensor], options: TrainOptions
) -> dict[str, Tensor]:
    """Return each term of the loss, unweighted, and `total`.

    Args:
        output: (N, 3, S, S) stylized.
        identity: (1, 3, S, S) the first content as it was shown, reconstructed.
        batch: what was stylized.
        seen: the judge's features of the output at `LAYERS`.
        options: the weights.
    """
    terms = {
        "content": content_distance(seen[-1], batch.wanted_content),
        "style": style_distance(seen, batch.wanted_style).mean(),
        "gram": gram_distance(seen, batch.wanted_style).mean(),
        "identity": F.l1_loss(identity, batch.shown[:1]),
        "structure": structure_distance(output, batch.content),
        "lattice": lattice(output).mean() + lattice(identity).mean(),
        "range": (output - output.clamp(0, 1)).abs().mean(),
    }
    weights = {
        "content": options.content_weight,
        "style": options.style_weight,
        "gram": options.gram_weight,
        "identity": options.identity_weight,
        "structure": options.structure_weight,
        "lattice": options.lattice_weight,
        "range": 10.0,
    }
    terms["total"] = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return terms


class StyleTask:
    """Network, average, optimizer and step of one run: a `Task` of `engine.loop`."""

    trainer = "normapps style train"

    def __init__(self, options: TrainOptions, here: World, device: torch.device) -> None:
        self.options, self.here, self.device = options, here, device
        self.model = place(self.fresh(), device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        trained = [each for each in self.model.parameters() if each.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=options.lr, fused=True)
        self.is_half = options.precision == "bfloat16"
        vgg = load_vgg19(options.vgg, LAYERS[-1])
        self.vgg = place(vgg, device, torch.bfloat16 if self.is_half else torch.float32)
        self.draws = Draws(options, self.vgg, self.show, here.rank, device)
        self.network = self._distributed()

    def fresh(self) -> nn.Module:
        """Return the network with the weights that a run begins with."""
        return _network(self.options)

    def show(self, content: Tensor, style: Tensor) -> Tensor:
        """Return contents (N, 3, S, S) in [0, 1] as the network is to get them."""
        return pair_colors(content, style)

    def finish(self, output: Tensor, shown: Tensor) -> Tensor:
        """Return what becomes of the network's output (N, 3, S, S), as `Stylizer` does it."""
        return mix_detail(output, shown)

    def step(self, step: int) -> dict[str, float]:
        """Take one optimizer step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.options)
        # all processes take the same map, so that they take the same time
        drawn = np.random.default_rng([self.options.seed, step, 0x3A9]).integers(2**32)
        method = self.options.methods[int(drawn) % len(self.options.methods)]
        batch = self.draws.batch(step)
        move = np.random.default_rng([self.options.seed, step, 0x517]).integers(0, FURTHEST + 1, 2)
        content, style = self._with_moved(batch, *move)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_half):
            output, identity = self.network(content, style, method)
        output, again = self.finish(output.float(), content).split(
            [len(batch.content), len(content) - len(batch.content)]
        )
        terms = self.terms(output, identity.float(), batch)
        if len(again):
            terms["temporal"] = unsteadiness(output[:1], again, *move)
            terms["total"] = terms["total"] + self.options.temporal_weight * terms["temporal"]
        self.optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        update_average(self.average, self.model, self.options.ema, step)
        values = torch.stack([*terms.values(), norm]).detach().tolist()
        return dict(zip([*terms, "grad_norm"], values, strict=True))

    def terms(self, output: Tensor, identity: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss and their `total`; see `losses`."""
        seen = look(self.vgg, output, self.options.paint)
        return losses(output, identity, batch, seen, self.options)

    def _with_moved(self, batch: Batch, down: int, right: int) -> tuple[Tensor, Tensor]:
        """The pairs, and the first once more with its photo moved if steadiness is asked for."""
        if not self.options.temporal_weight:
            return batch.shown, batch.style
        moved = shifted(batch.shown[:1], down, right)
        return torch.cat([batch.shown, moved]), torch.cat([batch.style, batch.style[:1]])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return weights, average and optimizer."""
        model, average = (
            flatten(name, each.state_dict())
            for name, each in (("model", self.model), ("average", self.average))
        )
        return {**model, **average, **optimizer_tensors(self.optimizer)}, {}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take them back."""
        self.model.load_state_dict(unflatten("model", tensors))
        self.average.load_state_dict(unflatten("average", tensors))
        restore_optimizer(self.optimizer, tensors)

    @torch.no_grad()
    def draw_grid(self, path: Path) -> None:
        """Write a grid: four photographs by four paintings, always the same."""
        from PIL import Image

        contents, styles = _fixed_pictures(self.options, self.device)
        rows = [torch.cat([torch.ones_like(styles[0]), *styles], 2)]
        for content in contents:
            shown = self.show(content.expand_as(styles), styles)
            outputs = self.finish(self.average(shown, styles)[0], shown)
            rows.append(torch.cat([content, *outputs.clamp(0, 1)], 2))
        pixels = (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        with atomic_path(path) as temporary:
            Image.fromarray(pixels).save(temporary)

    def publish(self, folder: Path, step: int) -> None:
        """Write the averaged weights as a model folder, in half precision and half the size."""
        save_model(
            folder,
            copy.deepcopy(self.average).half(),
            builder="adain-tiny",
            arguments={key: getattr(self.options, key) for key in _SHAPE},
            history=[{"step": step, "trained": self.trainer}],
            overwrite=True,
        )

    def _distributed(self) -> nn.Module:
        if self.here.size == 1:
            return self.model
        ids = [self.here.local_rank] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(self.model, device_ids=ids)


def _network(options: TrainOptions) -> AdainTiny:
    """A network with weights by the seed, or those of the model to start from."""
    torch.manual_seed(options.seed)
    network = AdainTiny(**{key: getattr(options, key) for key in _SHAPE})
    if not options.start:
        return network
    start = load_model(resolve_model(options.start))
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    if shapes != {name: value.shape for name, value in start.state_dict().items()}:
        raise InputError(
            f"--start {options.start}: has other shapes; give its own --width, --deep and --hidden"
        )
    network.load_state_dict(start.state_dict())
    return network


def _fixed_pictures(options: TrainOptions, device: torch.device) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng([options.seed, 0xF1CED])
    pair = []
    for source in sources(options):
        picks = np.linspace(0, len(source) - 1, _GRID).astype(int)
        pair.append(as_tensor([_readable(source, int(i), rng) for i in picks], device))
    return pair[0], pair[1]


def _readable(source: PictureSource, index: int, rng: np.random.Generator) -> np.ndarray:
    """Crop the picture of an index, or the first after it that is not damaged."""
    for shift in range(len(source)):
        with contextlib.suppress(InputError):
            return source.crop((index + shift) % len(source), rng, _GRID_SIDE, 1.0)
    raise InputError("no picture can be read; check --contents and --styles")
