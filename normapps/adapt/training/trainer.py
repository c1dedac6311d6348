"""The steps of a training run over domains: optimizer, schedule, precision, what is remembered."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.distributed import World
from ...engine.run import flatten, optimizer_tensors, restore_optimizer, unflatten
from ...errors import InputError
from ...training.optimizing import distributed, learning_rate, make_optimizer
from .base import Method
from .options import RecipeOptions
from .sampling import Feed

_CLIP = 10.0
"""Largest norm of a step's gradient."""


class Trainer:
    """A `Task` of `engine.loop`: one method on one feed.

    Args:
        method: what is trained, on its device.
        feed: where the batches come from.
        options: the recipe.
        here: this process among all.
        device: the network's.
        identity: JSON values that a resumed run must share, such as the initial weights' digest.
        fresh: parameters that learn with `head_lr` times the rate.
        validate: returns accuracies by name, asked for every `validate_every` steps.
    """

    def __init__(
        self,
        method: Method,
        feed: Feed,
        options: RecipeOptions,
        here: World,
        device: torch.device,
        identity: dict[str, Any],
        fresh: tuple[str, ...] = (),
        validate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        self._validate = validate
        self.method, self.feed, self.options = method, feed, options
        self.here, self.device, self.identity, self._fresh = here, device, identity, fresh
        self.network = method.network.train()
        self._forward = distributed(self.network, here, device)
        self._stage = 1
        self.optimizer = make_optimizer(self.network, self.options, self._fresh)

    def step(self, step: int) -> dict[str, float]:
        """Take one optimizer step; return the terms, their sum and the gradient's norm."""
        if step == self.method.boundary and self._stage == 1:
            self._next_stage()
        rate = learning_rate(step, self.options, self.method.boundary)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.network.train(self.options.train != "head")
        batch = self.feed.batch(step)
        is_half = self.options.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half):
            terms = self.method.losses(self._forward, batch, step)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        # weights that are not numbers must not come into the checkpoint of Ctrl-C
        if torch.isfinite(norm):
            self.optimizer.step()
        told = torch.stack([*terms.values(), total, norm]).detach().tolist()
        return dict(zip([*terms, "total", "grad_norm"], told, strict=True)) | self._accuracies(step)

    def _next_stage(self) -> None:
        if self.here.size > 1:  # what a run resumed would have everywhere: the first one's
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, 0)
        self.method.next_stage()
        self._stage, self.optimizer = 2, make_optimizer(self.network, self.options, self._fresh)

    def _accuracies(self, step: int) -> dict[str, float]:
        every = self.options.validate_every
        if self._validate is None or not every or (step + 1) % every:
            return {}
        with torch.random.fork_rng(devices=[]):
            return self._validate()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return network, optimizer, the method's own, and what the run is of."""
        tensors, values = self.method.state()
        return (
            {
                **flatten("network", self.network.state_dict()),
                **optimizer_tensors(self.optimizer),
                **flatten("method", tensors),
            },
            {"stage": self._stage, "method": values, "identity": self.identity},
        )

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
        self._stage = values["stage"]
        self.method.restore(unflatten("method", tensors), values["method"])
        self.network.load_state_dict(unflatten("network", tensors))
        self.optimizer = make_optimizer(self.network, self.options, self._fresh)
        restore_optimizer(self.optimizer, tensors)

    def release(self) -> None:
        """Let go of DDP: a process group that ends before its reducers can hang."""
        self._forward = self.network
        if self.here.size > 1:
            gc.collect()
