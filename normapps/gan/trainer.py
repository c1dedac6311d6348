"""The steps of a GAN: the discriminator's, the generator's, the average, what is remembered.

Miyato et al. 2018, algorithm of appendix B, with what makes it quick and leaves it the same: real
and drawn pictures go through the discriminator as one batch, so that its weights are normalized
once a step; in the generator's step the discriminator's weights need no gradient; and a GPU is
waited for once a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from ..engine.distributed import World
from ..engine.run import (
    flatten,
    optimizer_tensors,
    restore_optimizer,
    unflatten,
    update_average,
)
from ..errors import InputError
from .data import Draws
from .diffaugment import diff_augment
from .losses import Adversarial, gradient_penalty, r1
from .networks import Networks
from .options import TrainOptions
from .watch import Watch, spread

BETAS = (0.0, 0.9)
"""Of both Adams."""

_D_TOLD = ("d_loss", "real", "fake", "d_grad")
_G_TOLD = ("g_loss", "g_grad", "spread")


class GanTrainer:
    """A `Task` of `engine.loop`: a generator and a discriminator on one feed.

    A step is `n_dis` steps of the discriminator, each on other pictures, then one of the
    generator, then the average. Several processes average their gradients, and each normalizes
    by its own batch; weights, and with them spectral norms' u and v, are the same in all.

    Its values: `d_loss`, `real` and `fake` (mean logits) and `d_grad` (norm of the gradient),
    means over the step's discriminator steps; `g_loss`, `g_grad`; `spread` of the generator's
    batch (see `watch`); `images_per_s`, real ones over all processes.

    Args:
        networks: what is trained, on its device; changed in place.
        feed: real pictures.
        options: resolved.
        watch: told of every step; stops the run.
        here: this process among all.
        device: the networks'.
        dtype: of their forward passes, by autocast.
        identity: JSON values that a resumed run must share, such as the pictures' digest.
        score: returns values by name, asked for every `score_every` steps in every process.
    """

    def __init__(
        self,
        networks: Networks,
        feed: Draws,
        options: TrainOptions,
        watch: Watch,
        here: World,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        identity: dict[str, Any] | None = None,
        score: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        self.networks, self.feed, self.options, self.watch = networks, feed, options, watch
        self.here, self.device, self.dtype = here, device, dtype
        self.identity, self._score = identity or {}, score
        self.generate: Callable[..., Tensor] = networks.generator
        self.judge: Callable[..., Tensor] = networks.discriminator
        self.loss = Adversarial(options.loss)
        self.num_classes = int(getattr(networks.generator, "num_classes", 0))
        self.optimizer_g = _adam(networks.generator, options.lr_g)
        self.optimizer_d = _adam(networks.discriminator, options.lr_d)

    def step(self, step: int) -> dict[str, float]:
        """Take one step of the generator and those of the discriminator before it.

        Raises:
            WatchError: a number that is none, or a collapse; see `watch`.
        """
        start = time.perf_counter()
        self._set_rates(step)
        n_dis = self.options.n_dis
        judged = [self._discriminator_step(step * n_dis + turn) for turn in range(n_dis)]
        drawn = self._generator_step()
        generator = self.networks.generator
        update_average(self.networks.average, generator, self.options.ema, step)
        told = self.here.mean(torch.cat([torch.stack(judged).mean(0), drawn]))
        values = dict(zip((*_D_TOLD, *_G_TOLD), told.tolist(), strict=True))
        self.watch.look(step, values)  # before weights that are not numbers can be saved
        count = n_dis * self.options.batch_size * self.here.size
        pace = count / (time.perf_counter() - start)
        # what a narrow terminal shows comes first
        first = {"d_loss": values["d_loss"], "g_loss": values["g_loss"], "images_per_s": pace}
        return first | values | self._scored(step)

    def _scored(self, step: int) -> dict[str, float]:
        every = self.options.score_every
        if self._score is None or not every or (step + 1) % every:
            return {}
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            return self._score()

    def _set_rates(self, step: int) -> None:
        left = 1 - step / (self.options.steps or 1)
        for optimizer, rate in (
            (self.optimizer_g, self.options.lr_g),
            (self.optimizer_d, self.options.lr_d),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * left

    def _discriminator_step(self, index: int) -> Tensor:
        real, labels = self.feed.batch(index)
        with torch.no_grad():
            fake, drawn = self._draw(len(real))
        real, fake = self._augmented(real), self._augmented(fake)
        both = None if labels is None or drawn is None else torch.cat([labels, drawn])
        with torch.autocast(self.device.type, torch.bfloat16, self._is_half):
            logits = self.judge(torch.cat([real, fake]), both)
        real_logits, fake_logits = logits.float().chunk(2)
        loss = self.loss.discriminator(real_logits, fake_logits)
        total = loss + self._penalty(real, fake, labels)
        norm = self._change(self.optimizer_d, self.networks.discriminator, total)
        return torch.stack([loss, real_logits.mean(), fake_logits.mean(), norm]).detach()

    def _generator_step(self) -> Tensor:
        judge = self.networks.discriminator.requires_grad_(False)
        fake, drawn = self._draw(self.options.gen_batch_size or 0)
        with torch.autocast(self.device.type, torch.bfloat16, self._is_half):
            logits = self.judge(self._augmented(fake), drawn)
        loss = self.loss.generator(logits.float())
        norm = self._change(self.optimizer_g, self.networks.generator, loss)
        judge.requires_grad_(True)
        return torch.stack([loss.detach(), norm, spread(fake)])

    def _draw(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Return pictures of the generator, float32, and the labels that they were drawn for."""
        z = torch.randn(count, self.options.latent, device=self.device)
        labels = None
        if self.num_classes:
            labels = torch.randint(self.num_classes, (count,), device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, self._is_half):
            pictures = self.generate(z, labels)
        return pictures.float(), labels

    def _augmented(self, pictures: Tensor) -> Tensor:
        if not self.options.augment:
            return pictures
        return diff_augment(pictures, self.options.augment, None)

    def _penalty(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor | float:
        judge = self.networks.discriminator
        total: Tensor | float = 0.0
        if self.options.gp:
            total = total + self.options.gp * gradient_penalty(judge, real, fake, labels, None)
        if self.options.r1:
            total = total + self.options.r1 * r1(judge, real, labels)
        return total

    def _change(self, optimizer: Adam, network: nn.Module, loss: Tensor) -> Tensor:
        """Step down a loss; return the norm of the gradient."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [each.grad for each in network.parameters() if each.grad is not None]
        _average(gradients, self.here)
        norm: Tensor = nn.utils.get_total_norm(gradients)
        optimizer.step()
        return norm

    @property
    def _is_half(self) -> bool:
        return self.dtype == torch.bfloat16

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return networks, average, both optimizers, the watch, and what the run is of."""
        networks = self.networks
        tensors = {
            **flatten("generator", networks.generator.state_dict()),
            **flatten("discriminator", networks.discriminator.state_dict()),
            **flatten("average", dict(networks.average.named_parameters())),
            **flatten("g", optimizer_tensors(self.optimizer_g)),
            **flatten("d", optimizer_tensors(self.optimizer_d)),
        }
        return tensors, {"identity": self.identity, "watch": self.watch.state()}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it is of other pictures.
        """
        for name, now in self.identity.items():
            if values["identity"].get(name) != now:
                raise InputError(
                    f"the run was started with {name} {values['identity'].get(name)}, not {now}; "
                    "give what it was started with, or another folder"
                )
        load_networks(self.networks, tensors)
        restore_optimizer(self.optimizer_g, unflatten("g", tensors))
        restore_optimizer(self.optimizer_d, unflatten("d", tensors))
        self.watch.restore(values["watch"])


def load_networks(networks: Networks, tensors: dict[str, Tensor]) -> None:
    """Give networks the weights of a checkpoint; of the average, its parameters."""
    networks.generator.load_state_dict(unflatten("generator", tensors))
    networks.discriminator.load_state_dict(unflatten("discriminator", tensors))
    networks.average.load_state_dict(unflatten("average", tensors), strict=False)


def _adam(network: nn.Module, rate: float) -> Adam:
    return Adam(network.parameters(), rate, BETAS, fused=True)


def _average(gradients: Sequence[Tensor], here: World) -> None:
    """Average gradients over the processes, all in one message.

    In the place of DDP, whose hooks a gradient penalty and a discriminator that is run once more in
    the generator's step would confuse.
    """
    if here.size == 1:
        return
    flat = here.mean(torch.cat([each.flatten() for each in gradients]))
    parts = flat.split([each.numel() for each in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))
