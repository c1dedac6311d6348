"""The steps of a supervised training: cross entropy, with a penalty on the scales if wished."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ..engine.distributed import World
from ..engine.run import flatten, optimizer_tensors, restore_optimizer, unflatten
from ..errors import InputError
from ..models.outputs import logits_of
from ..training.optimizing import distributed, learning_rate, make_optimizer
from ..training.sampling import LabelledFeed
from .regularizer import ScaleRegularizer
from .train_options import SupervisedOptions

_CLIP = 10.0
"""Largest norm of a step's gradient."""

Validate = Callable[[], dict[str, float]]


Regularize = Callable[[nn.Module, Optimizer], ScaleRegularizer]
"""Makes the penalty of a network and its optimizer."""


class SupervisedTrainer:
    """A `Task` of `engine.loop`: a classifier on labelled pictures.

    Args:
        network: what is trained, on its device; changed in place.
        feed: where the batches come from.
        options: the recipe.
        steps: of the whole run, over which the rate falls.
        here: this process among all.
        device: the network's.
        identity: JSON values that a resumed run must share, such as the initial weights' digest.
        fresh: parameters that learn with `head_lr` times the rate.
        regularize: makes a penalty on the scales; None for none.
        freeze_stats: batch norms normalize by their running statistics, which stay.
        validate: returns values by name, asked for every `validate_every` steps.
    """

    def __init__(
        self,
        network: nn.Module,
        feed: LabelledFeed,
        options: SupervisedOptions,
        here: World,
        device: torch.device,
        identity: dict[str, Any],
        fresh: tuple[str, ...] = (),
        regularize: Regularize | None = None,
        freeze_stats: bool = False,
        validate: Validate | None = None,
    ) -> None:
        self.network, self.feed, self.options = network.train(), feed, options
        self.here, self.device, self.identity = here, device, identity
        self._freeze_stats, self._validate = freeze_stats, validate
        self._forward = distributed(network, here, device)
        self.optimizer = make_optimizer(network, options, fresh)
        self.regularizer = None if regularize is None else regularize(network, self.optimizer)

    def step(self, step: int) -> dict[str, float]:
        """Take one optimizer step; return loss, norm of the gradient, share of zeros and λ."""
        rate = learning_rate(step, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self._set_mode()
        loss = self._loss(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        # weights that are not numbers must not come into the checkpoint of Ctrl-C
        if torch.isfinite(norm):
            self._change()
        loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()
        told = {"loss": loss_value, "grad_norm": norm_value}
        if self.regularizer is not None:
            told |= {"zeros": self.regularizer.sparsity(), "strength": self.regularizer.strength}
        return told | self._validated(step)

    def _set_mode(self) -> None:
        self.network.train(self.options.train != "head")
        if self._freeze_stats:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _loss(self, step: int) -> Tensor:
        images, labels = self.feed.batch(step)
        is_half = self.options.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half):
            logits = logits_of(self._forward(images))
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.options.label_smoothing)

    def _change(self) -> None:
        self.optimizer.step()
        if self.regularizer is not None:
            self.regularizer.step()

    def _validated(self, step: int) -> dict[str, float]:
        every = self.options.validate_every
        if self._validate is None or not every or (step + 1) % every:
            return {}
        with torch.random.fork_rng(devices=[]):
            return self._validate()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return network, optimizer, the penalty's own, and what the run is of."""
        tensors = flatten("network", self.network.state_dict())
        kept = {} if self.regularizer is None else self.regularizer.state_dict()
        mine = {key: each for key, each in kept.items() if isinstance(each, Tensor)}
        tensors |= {**optimizer_tensors(self.optimizer), **flatten("regularizer", mine)}
        told = {key: each for key, each in kept.items() if key not in mine}
        return tensors, {"identity": self.identity, "regularizer": told}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it is of other initial weights or pictures.
        """
        for name, now in self.identity.items():
            if values["identity"].get(name) != now:
                raise InputError(
                    f"the run was started with {name} {values['identity'].get(name)}, not {now}; "
                    "give what it was started with, or another folder"
                )
        self.network.load_state_dict(unflatten("network", tensors))
        restore_optimizer(self.optimizer, tensors)
        if self.regularizer is not None:
            self.regularizer.load_state_dict(
                {**values["regularizer"], **unflatten("regularizer", tensors)}
            )

    def release(self) -> None:
        """Let go of DDP: a process group that ends before its reducers can hang."""
        self._forward = self.network
        if self.here.size > 1:
            gc.collect()
