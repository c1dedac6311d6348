"""Where a step begins: the gradient of one batch at the weights as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..models.outputs import logits_of
from ..norm.population.batch_moments import batch_moments
from .hooks import Batch, as_in_training, cross_entropy, gradients_of, rows_of, weighted_layers


@dataclass(frozen=True, eq=False)
class Start:
    """A batch with all its gradients, norm layers as in training.

    Attributes:
        x: the inputs.
        labels: (n,) int64, the model's own answers where none were given.
        logits: (n, K).
        loss: mean cross entropy.
        gradients: of that, by parameter; those that it does not depend on are missing.
        variances: by weighted layer, the median over the channels of the variance of what it makes.
    """

    x: Tensor
    labels: Tensor
    logits: Tensor
    loss: float
    gradients: dict[str, Tensor]
    variances: dict[str, float]

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> Start:
        """Run a batch forwards and backwards; the model comes back as it was.

        Raises:
            InputError: the model returns no logits, or the loss is not finite.
        """
        x, labels = batch
        with as_in_training(model), _variances(model) as variances, torch.enable_grad():
            given = {
                name: each.detach().requires_grad_()
                for name, each in model.named_parameters()
                if each.is_floating_point()
            }
            model.requires_grad_(False)
            logits = logits_of(functional_call(model, given, (x.clone(),)))
            labels = logits.detach().argmax(1) if labels is None else labels
            loss = cross_entropy(logits, labels) / len(logits)
            found = zip(given, gradients_of(loss, list(given.values())), strict=True)
        gradients = {name: each for name, each in found if each is not None}
        return cls(x, labels, logits.detach(), float(loss.detach()), gradients, variances)


@contextmanager
def _variances(model: nn.Module) -> Iterator[dict[str, float]]:
    """Note the median over the channels of the variance of what each layer makes."""
    found: dict[str, float] = {}

    def note(layer: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, _: object, y: Tensor) -> None:
            found[layer] = float(batch_moments(rows_of(y.detach(), module)).var.median())

        return hook

    handles = [
        module.register_forward_hook(note(name)) for name, module in weighted_layers(model).items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
