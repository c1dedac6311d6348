"""Watching a network work: inputs, outputs and gradients of its weighted layers.

Gradients come from hooks on the tensors, not on the modules: torch refuses a module's backward hook
where an activation behind it works in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..models.outputs import logits_of
from ..norm.convert.sites import find_sites

Batch = tuple[Tensor, Tensor | None]
"""Inputs (n, C, H, W) and labels (n,) int64; without labels the network's own answers count."""

Progress = Callable[[], object]
"""Called after each batch."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Observer(Protocol):
    """What is told of each call of a weighted layer; tensors are detached."""

    def begin(self, samples: int) -> None:
        """A batch of so many samples begins."""

    def forward(self, layer: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        """A layer made y of x."""

    def backward(self, layer: str, module: nn.Module, gradient: Tensor) -> None:
        """The gradient of each sample's own loss arrived at a layer's output."""


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers by name, in the order of the model."""
    kinds = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def kind_of(module: nn.Module) -> str:
    """Return what a weighted layer is, in words: `conv 3×3`, `depthwise 3×3`, `linear`."""
    if isinstance(module, nn.Linear):
        return "linear"
    convolution: Any = module
    size = "×".join(map(str, convolution.kernel_size))
    if convolution.groups == 1:
        return f"conv {size}"
    return f"{'depthwise' if convolution.groups == convolution.in_channels else 'grouped'} {size}"


def rows_of(x: Tensor, module: nn.Module) -> Tensor:
    """See what enters or leaves a weighted layer as (M, D): D channels at each of M positions."""
    if not isinstance(module, nn.Linear):
        convolution: Any = module
        x = x.movedim(-1 - len(convolution.kernel_size), -1)
    return x.reshape(-1, x.shape[-1])


def cross_entropy(output: Any, labels: Tensor | None) -> Tensor:
    """Return the sum of the samples' losses, so that gradients are those of each sample.

    Args:
        output: of a classifier, as `logits_of` reads it.
        labels: (n,) int64; None takes the class that the logits themselves prefer.

    Raises:
        InputError: no logits, fewer than two classes, or a loss that is not finite.
    """
    logits = logits_of(output)
    if logits.shape[1] < 2:
        raise InputError("the model has one output: a loss needs two classes or more")
    wanted = logits.detach().argmax(1) if labels is None else labels
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(wide, wanted, reduction="sum")
    if not bool(torch.isfinite(loss.detach())):
        raise InputError(
            "the loss is not finite on these pictures; look for NaN or overflow in the weights"
        )
    return loss


def gradients_of(loss: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients of a loss, None for what it does not depend on.

    Raises:
        InputError: it depends on nothing, because the network's forward cuts its graph.
    """
    if not loss.requires_grad:
        raise InputError("no gradient flows back through the model: its forward detaches it")
    return torch.autograd.grad(loss, tensors, allow_unused=True)


@contextmanager
def as_in_training(model: nn.Module) -> Iterator[nn.Module]:
    """Let the norm layers work as in training, and everything else, dropout too, as in inference.

    Modes, running statistics and `requires_grad` come back as they were.
    """
    modes = {module: module.training for module in model.modules()}
    wanted = {each: each.requires_grad for each in model.parameters()}
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        for module in modes:
            module.training = False
        for site in find_sites(model):
            for part in site.module.modules():
                part.training = "Drop" not in type(part).__name__
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for module, name, buffer, value in kept:
                buffer.copy_(value)
                module._buffers[name] = buffer


def watch(
    model: nn.Module,
    batches: Iterable[Batch],
    observers: Sequence[Observer],
    progress: Progress | None = None,
) -> None:
    """Run batches forwards and backwards, norm layers as in training, and tell observers.

    The model comes back as it was; the gradients of its weights are not computed.

    Raises:
        InputError: as `cross_entropy`.
    """
    with as_in_training(model), _listening(model, observers) as starts, torch.enable_grad():
        model.requires_grad_(False)
        for x, labels in batches:
            for each in observers:
                each.begin(len(x))
            # a copy, because a first layer may work in place
            loss = cross_entropy(model(x.detach().clone()), labels)
            gradients_of(loss, starts)
            starts.clear()
            if progress is not None:
                progress()


@contextmanager
def _listening(model: nn.Module, observers: Sequence[Observer]) -> Iterator[list[Tensor]]:
    """Tell observers of each call, and note the zeros that gradients flow back to."""
    starts: list[Tensor] = []
    with ExitStack() as stack:
        for name, module in weighted_layers(model).items():
            handle = module.register_forward_hook(_hook(name, observers, starts), with_kwargs=True)
            stack.callback(handle.remove)
        yield starts


def _hook(layer: str, observers: Sequence[Observer], starts: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, options: dict[str, Any], y: Tensor) -> None:
        x = args[0] if args else next(iter(options.values()))
        with torch.no_grad():
            for each in observers:
                each.forward(layer, module, x.detach(), y.detach())
        if torch.is_grad_enabled() and not y.requires_grad:
            # the graph begins behind the first layer: nobody needs the gradient at the pictures
            starts.append(y.new_zeros(()).requires_grad_())
            y.add_(starts[-1])
        if y.requires_grad:
            y.register_hook(lambda gradient: tell(module, gradient.detach()))

    def tell(module: nn.Module, gradient: Tensor) -> None:
        for each in observers:
            each.backward(layer, module, gradient)

    return hook
