"""Paired translation: a SPADE generator, and a critic that sees map and picture together.

Park et al. 2019, section 4 and appendix A: hinge loss, feature matching (Wang et al. 2018, eq. 4),
two rates. Differs from the paper: no VGG loss (its weights are not shipped), one generator pass a
step serves both losses, and what is kept is an average over the steps with batch statistics
measured for it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from ...engine.device import place
from ...engine.distributed import World
from ...errors import InputError
from ...models.folder import save_model
from ...models.spade import MapDiscriminator, SpadeGenerator, one_hot
from ...norm.layers.spatial import SpatialNorm
from ...norm.population import apply_, measure
from ...norm.weight import refresh_, remove_spectral_norm_
from .losses import discriminator_loss, generator_loss
from .paired import PairDraws, PairPool, to_network
from .paired_options import HINGE, PairedOptions
from .task import TranslationTask, learning_rate
from .unpaired import to_bytes

BETAS = (0.0, 0.999)
"""Of both Adams, the paper's β1 = 0."""
_SHOWN = 8
_MEASURED = 256
"""Maps that the averaged generator's batch statistics are measured over, at most."""


class PairedTask(TranslationTask):
    """A `Task` that trains a SPADE generator on pairs.

    Args:
        options: the recipe.
        pool: all pairs; every `options.hold_out`-th is for the samples only.
        here: this process among all.
        device: where networks and batches lie.
    """

    def __init__(
        self, options: PairedOptions, pool: PairPool, here: World, device: torch.device
    ) -> None:
        self.options, self.legend, self._identity = options, pool.legend, pool.identity()
        self.classes = len(pool.legend.values)
        networks = _networks(options, self.classes, here, device)
        super().__init__(networks, ("generator",), options, here, device)
        for name, network in networks.items():
            self.optimizers[name] = Adam(network.parameters(), lr=options.lr, betas=BETAS)
        self._rates = {
            "generator": options,
            "judge": dataclasses.replace(options, lr=options.d_lr),
        }
        self.train, held = pool.split(options.hold_out)
        self.held = held if len(held) else self.train
        self._draws = PairDraws(
            self.train, options.batch_size, options.seed, here, device, options.flip
        )

    def rate(self, name: str, step: int) -> float:
        """Return the rate of a network at a step."""
        return learning_rate(step, self._rates[name])

    def step(self, step: int) -> dict[str, float]:
        """Take one step of both networks.

        Returns:
            `d`, `adversarial` and `features`, unweighted; and `distance`, the mean absolute
            difference between generated and real pictures of the batch, of a range of 2.
        """
        indices, real = self._draws.batch(step)
        label_map = one_hot(indices, self.classes)
        with self.autocast():
            fake = self.networks["generator"](label_map, self._latents(len(real)))
        judged = self._judge(label_map, real, fake.detach())
        self.change(("judge",), judged, step)
        adversarial, features = self._please(label_map, real, fake)
        self.change(("generator",), adversarial + self.options.feature_weight * features, step)
        self.update_averages(step)
        distance = F.l1_loss(fake.detach().float(), real)
        values = torch.stack([judged.detach(), adversarial.detach(), features.detach(), distance])
        return dict(zip(("d", "adversarial", "features", "distance"), values.tolist(), strict=True))

    def _latents(self, count: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Draw on the CPU, from the step's random state, whatever the device."""
        if not self.options.latent:
            return None
        return torch.randn(count, self.options.latent, generator=generator).to(self.device)

    def _both(
        self, label_map: Tensor, fake: Tensor, real: Tensor
    ) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Return the discriminator's layers for generated and real pictures, in one pass."""
        with self.autocast():
            found = self.networks["judge"](torch.cat([fake, real]), label_map.repeat(2, 1, 1, 1))
        halves = [[layer.chunk(2) for layer in scale] for scale in found]
        ours, theirs = ([[pair[i] for pair in scale] for scale in halves] for i in (0, 1))
        return ours, theirs

    def _judge(self, label_map: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        ours, theirs = self._both(label_map, fake, real)
        return discriminator_loss(HINGE, [s[-1] for s in theirs], [s[-1] for s in ours])

    def _please(self, label_map: Tensor, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        ours, theirs = self._both(label_map, fake, real)
        return generator_loss(HINGE, [scale[-1] for scale in ours]), feature_distance(ours, theirs)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return networks, averages and optimizers, and which pairs they learn from."""
        tensors, values = super().state()
        return tensors, {**values, "identity": self._identity}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Become what `state` told.

        Raises:
            InputError: it was learnt from other pairs.
        """
        if values["identity"] != self._identity:
            raise InputError(
                f"--maps {self.options.maps}, --target {self.options.target}: hold other pairs "
                "than those that the run was started with; give these, or begin another run"
            )
        super().restore(tensors, values)

    @torch.no_grad()
    def grid(self) -> Tensor:
        """Return rows map | generated | real of held-out pairs: (3, H, W) uint8."""
        self.measure_()
        rows = torch.arange(min(_SHOWN, len(self.held)))
        maps = self.held.maps[rows]
        made = self.draw(maps)
        shown = torch.from_numpy(self.legend.picture(maps.numpy())).permute(0, 3, 1, 2)
        whole = torch.cat([shown, to_bytes(made).cpu(), self.held.pictures[rows]], 3)
        return whole.permute(1, 0, 2, 3).flatten(1, 2)

    @torch.no_grad()
    def draw(self, maps: Tensor) -> Tensor:
        """Return what the averaged generator makes of maps (n, S, S): (n, 3, S, S) in [−1, 1].

        Each map has a latent of its own, always the same. `measure_` comes before.
        """
        latents = self._latents(len(maps), torch.Generator().manual_seed(self.options.seed))
        label_map = one_hot(maps.to(self.device), self.classes)
        pictures: Tensor = self.averages["generator"](label_map, latents)
        return pictures

    def measure_(self) -> None:
        """Give the averaged generator the batch statistics that it has over maps of the training.

        An average of weights has none: those of the generator in training are another network's.
        """
        if self.options.base != "batch":
            return
        generator = torch.Generator().manual_seed(self.options.seed)
        order = torch.randperm(len(self.train), generator=generator)[:_MEASURED]
        parts = order.split(max(2, self.options.batch_size))
        caller = _FromIndices(self.averages["generator"], self.classes, self._latents, generator)
        apply_(caller, measure(caller, (self.train.maps[rows].to(self.device) for rows in parts)))

    def distance(self) -> float:
        """Return the mean absolute difference of `draw` to the held-out pictures, of a range of 2.

        Of the pairs that are kept out, or of those trained on where none are; 256 at most.
        """
        self.measure_()
        rows = torch.arange(min(_MEASURED, len(self.held)))
        made = torch.cat([self.draw(self.held.maps[part]) for part in rows.split(_SHOWN)])
        return float(F.l1_loss(made.cpu(), to_network(self.held.pictures[rows])))

    def publish(self, folder: Path, step: int) -> None:
        """Write `generator/` into the run folder: weights divided, batch statistics measured."""
        chosen = self.options
        history = {
            "trained": "normapps translate train",
            "step": step,
            "pairs": len(self.train),
            "ema": chosen.ema,
            "distance": self.distance(),
            "held_out": 0 if self.held is self.train else len(self.held),
        }
        average = copy.deepcopy(self.averages["generator"])
        remove_spectral_norm_(average)
        save_model(
            folder / "generator",
            average,
            builder="spade-generator",
            arguments={**arguments(chosen, self.classes), "spectral": False},
            preprocessing={"range": [-1, 1], "legend": dataclasses.asdict(self.legend)},
            history=[history],
            overwrite=True,
        )


def feature_distance(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> Tensor:
    """Return the L1 distance of the layers before the logits: summed, and averaged over the scales.

    Wang et al. 2018, eq. 4, whose weight is here the caller's.

    Args:
        ours, theirs: layers a scale, the logits last; `theirs` are aimed at and get no gradient.
    """
    parts = [
        F.l1_loss(a.float(), b.detach().float())
        for x, y in zip(ours, theirs, strict=True)
        for a, b in zip(x[:-1], y[:-1], strict=True)
    ]
    return torch.stack(parts).sum() / len(ours)


def arguments(options: PairedOptions, classes: int) -> dict[str, Any]:
    """Return what the generator's builder is called with."""
    names = ("size", "width", "ups", "hidden", "latent", "base")
    return {"classes": classes, **{name: getattr(options, name) for name in names}}


def _networks(
    options: PairedOptions, classes: int, here: World, device: torch.device
) -> dict[str, nn.Module]:
    generator = SpadeGenerator(**arguments(options, classes))
    for layer in generator.modules():
        if isinstance(layer, SpatialNorm):
            layer.sync = here.size > 1 and layer.base == "batch"
    judge = MapDiscriminator(classes, 3, options.d_width, options.d_layers, options.scales)
    networks: dict[str, nn.Module] = {"generator": generator, "judge": judge}
    for network in networks.values():
        place(network, device)
        # or they would be measured again at the first change, which no checkpoint knows of
        refresh_(network)
    return networks


class _FromIndices(nn.Module):
    """A generator as a function of class indices (n, S, S) alone: what `measure` can call."""

    def __init__(
        self,
        generator: nn.Module,
        classes: int,
        latents: Callable[[int, torch.Generator], Tensor | None],
        state: torch.Generator,
    ) -> None:
        super().__init__()
        self.generator, self.classes = generator, classes
        self._latents, self._state = latents, state

    def forward(self, indices: Tensor) -> Tensor:
        made: Tensor = self.generator(
            one_hot(indices, self.classes), self._latents(len(indices), self._state)
        )
        return made
