"""A network that is rounded where it is called, and the steps in which it learns from a float one.

Ranges of inputs learn as those of LSQ+ (Bhalgat et al. 2020), but by the logarithm of their
limits, as thresholds do in TQT (Jain et al. 2020), so that one rate fits all layers. Scales of
weights follow from the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..engine.device import evaluating
from ..engine.run import flatten, optimizer_tensors, restore_optimizer, unflatten
from ..errors import InputError
from ..models.outputs import logits_of
from ..training.identity import weights_told
from ..training.optimizing import learning_rate, make_optimizer
from .fake import Ranges, input_grids, output_axis, quantizable, rounding
from .finetune_options import QatOptions
from .grid import range_grid, rounded, weight_grid

_CLIP = 10.0
"""Largest norm of a step's gradient."""


@runtime_checkable
class Feed(Protocol):
    """Where batches come from, the same whenever a step is asked for, as from `LabelledFeed`."""

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return inputs (N, ...) and class indices (N,), or None for no labels."""


class Rounding(nn.Module):
    """A network whose weights and inputs are rounded where it is called, with a gradient.

    Args:
        network: whose weights learn; it has them unrounded.
        ranges: of the inputs to round.
        options: bits, exclusions, whether ranges learn.
    """

    factors: nn.Parameter
    limits: Tensor

    def __init__(self, network: nn.Module, ranges: Ranges, options: QatOptions) -> None:
        super().__init__()
        input_grids(network, ranges, exclude=options.exclude)  # refuses what does not fit
        self.network, self.options = network, options
        self._layers = dict(quantizable(network, options.exclude))
        self._names = [name for name in self._layers if name in ranges]
        limits = torch.tensor([ranges[name] for name in self._names]).view(-1, 2)
        device = next(network.parameters()).device
        self.register_buffer("limits", limits.to(device))
        self.factors = nn.Parameter(torch.zeros_like(self.limits), options.learn_ranges)

    def forward(self, x: Tensor) -> Any:
        """Return what the network returns."""
        weights = {f"{name}.weight": self._weight(layer) for name, layer in self._layers.items()}
        with self._rounded_inputs():
            return functional_call(self.network, weights, (x,))

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The ranges as they are now."""
        values = (self.limits * self.factors.exp()).tolist()
        return {name: (low, high) for name, (low, high) in zip(self._names, values, strict=True)}

    def _weight(self, layer: nn.Module) -> Tensor:
        weight, options = layer.get_parameter("weight"), self.options
        grid = weight_grid(
            weight,
            per_channel=options.per_channel,
            axis=output_axis(layer),
            bits=options.weight_bits,
        )
        return rounded(weight, grid)

    @contextmanager
    def _rounded_inputs(self) -> Iterator[None]:
        handles = []
        try:
            for name, (low, high) in zip(
                self._names, self.limits * self.factors.exp(), strict=True
            ):
                hook = rounding(range_grid(low, high, bits=self.options.activation_bits))
                layer = self._layers[name]
                handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()


class QatTrainer:
    """A `Task` of `engine.loop`: a network that is rounded, and the one it learns from.

    Args:
        network: what learns, in inference mode; changed in place.
        feed: where the batches come from.
        options: the recipe.
        teacher: gives the logits to learn from.
        ranges: of the inputs to begin with.
    """

    def __init__(
        self,
        network: nn.Module,
        feed: Feed,
        options: QatOptions,
        teacher: nn.Module,
        ranges: Ranges,
    ) -> None:
        self.feed, self.options, self.teacher = feed, options, teacher
        self.losses: list[float] = []
        self.device = next(network.parameters()).device
        self.identity = {"weights": weights_told(network), "teacher": weights_told(teacher)}
        self.rounding = Rounding(network, ranges, options)
        self.optimizer = make_optimizer(network, options)
        if options.learn_ranges and len(self.rounding.factors):
            factor = options.range_lr / options.lr if options.lr else 0.0
            group = {"params": [self.rounding.factors], "weight_decay": 0.0, "factor": factor}
            self.optimizer.add_param_group(group)

    def step(self, step: int) -> dict[str, float]:
        """Take one optimizer step; return the loss and the norm of the gradient.

        Raises:
            InputError: the loss is not finite; nothing has changed then.
        """
        rate = learning_rate(step, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        loss = self._loss(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.rounding.parameters(), _CLIP)
        loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise InputError(
                f"step {step}: the loss is not finite; give a lower --lr, or check that the float"
                " network's answers are finite"
            )
        self.optimizer.step()
        self.losses.append(loss_value)
        return {"loss": loss_value, "grad_norm": norm_value}

    def _loss(self, step: int) -> Tensor:
        images, labels = self.feed.batch(step)
        images = images.to(self.device)
        with evaluating(self.teacher):
            wanted = logits_of(self.teacher(images)).float()
        is_half = self.options.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half):
            logits = logits_of(self.rounding(images)).float()
        loss = divergence(logits, wanted, self.options.temperature)
        if labels is not None and self.options.label_weight:
            labelled = F.cross_entropy(logits, labels.to(self.device))
            loss = loss + self.options.label_weight * labelled
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return weights, ranges, optimizer, and what the run is of."""
        tensors = flatten("rounding", self.rounding.state_dict())
        return tensors | optimizer_tensors(self.optimizer), {"identity": self.identity}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it is of other initial weights or of another teacher.
        """
        for name, now in self.identity.items():
            if values["identity"].get(name) != now:
                raise InputError(
                    f"the run was started with {name} {values['identity'].get(name)}, not {now};"
                    " give what it was started with, or another folder"
                )
        self.rounding.load_state_dict(unflatten("rounding", tensors))
        restore_optimizer(self.optimizer, tensors)


def divergence(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean KL(wanted ‖ given) of two networks' answers, times temperature².

    Hinton et al. 2015, section 2: times the square, so that the gradient keeps its size.

    Args:
        logits: (N, C) float32, of the network that learns.
        wanted: (N, C), of the teacher.
        temperature: that divides both.
    """
    mine, theirs = (F.log_softmax(each / temperature, 1) for each in (logits, wanted))
    return temperature**2 * F.kl_div(mine, theirs, reduction="batchmean", log_target=True)
