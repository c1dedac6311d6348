"""Online: a network that adapts itself to the batches it is given, and can go back.

The shape of TENT's published code (`configure_model`, `collect_params`, a class around model and
optimizer), without its traps: running statistics stay in the state dict, `eval()` on the wrapper
changes nothing, dropout is off, and a reset brings everything back.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import InputError, unknown
from ...norm.convert.converter import convert_norm, convert_norm_
from ...norm.convert.selection import Patterns, select
from ...norm.convert.sites import Site, find_sites
from ...norm.layers.streaming import StreamingNorm
from ...norm.nesting import detached_copy
from ..outputs import logits_of

TRAINED = ("affine", "all", "none")


class Online(nn.Module):
    """A test-time method: `online(x)` adapts to a batch and returns its logits.

    Args:
        model: as `configure_model` returns it; adapting changes it.
        optimizer: of the parameters that adapt; None for methods without a gradient.
        steps: how often each batch is adapted to; the last step's logits are returned.
        episodic: reset before every batch.

    Attributes:
        facts: what the last step did, numbers by name.

    Raises:
        InputError: fewer than one step.
    """

    needs_gradient: ClassVar[bool] = True
    least_batch: ClassVar[int] = 1
    facts: dict[str, float]

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        steps: int = 1,
        episodic: bool = False,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise InputError(f"steps {steps}: must be at least 1")
        self.model, self.optimizer = model, optimizer
        self.steps, self.episodic = steps, episodic
        self.facts = {}
        self._first: dict[str, Any] | None = None

    def step(self, x: Tensor) -> Tensor:
        """Adapt once to a batch (N, ...) and return its logits (N, C)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Adapt to a batch (N, ...) and return its logits (N, C), cut off from the graph.

        Gradients are switched on where the method needs them, under `torch.no_grad` and
        `torch.inference_mode` too.

        Raises:
            InputError: a batch smaller than the method can use; it names another method.
        """
        return self.adapt(x)

    def adapt(self, x: Tensor) -> Tensor:
        """Do what `forward` does, under the name that says it."""
        self.check_batch(x)
        if self._first is None:
            self._first = copy.deepcopy(self.state_dict())
        if self.episodic:
            self.reset()
        with torch.inference_mode(False), torch.set_grad_enabled(self.needs_gradient):
            x = x.clone() if x.is_inference() else x
            logits = self.step(x)
            with self.uncounted():
                for _ in range(self.steps - 1):
                    logits = self.step(x)
        return logits.detach()

    def logits(self, x: Tensor) -> Tensor:
        """Run the model, as it is, on a batch (N, ...)."""
        for layer in streaming_layers(self.model).values():
            layer.batch_samples = len(x)
        return logits_of(self.model(x))

    def check_batch(self, x: Tensor) -> None:
        """Check that a batch is large enough, and finite: one NaN would spoil all that is kept.

        Raises:
            InputError: it is not; nothing has changed.
        """
        if not bool(torch.isfinite(x).all()):
            raise InputError(
                f"a batch {tuple(x.shape)} holds NaN or infinite values: leave it out; the network"
                " was not adapted to it"
            )
        if len(x) < self.least_batch:
            raise InputError(
                f"{type(self).__name__} got a batch of {len(x)}, needs {self.least_batch}: give"
                " larger batches, or take a method that keeps statistics of its own (prior, rotta)"
            )

    def reset(self) -> None:
        """Bring back the whole state that was there before the first batch."""
        if self._first is not None:
            self.load_state_dict(self._first)
            self.facts = {}

    def export(self) -> nn.Module:
        """Return the adapted network: a plain copy in inference mode.

        Its classes and keys are those of the network before `configure_model`, so that its state
        dict loads strictly there. Scales and shifts are the adapted ones, running statistics
        those of the stream, as the layers' rule has it (`StreamingNorm.settle_`). All parameters
        require a gradient, as in a new network.
        """
        return plain_copy(self.model)

    def own_state(self) -> dict[str, Any]:
        """Return a subclass's values that are no buffers: tensors, numbers, nested as you like."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what `own_state` returned."""

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Show batches once more: the layers do not count them as a part of the stream."""
        layers = list(streaming_layers(self).values())
        before = [layer.follows for layer in layers]
        for layer in layers:
            layer.follows = False
        try:
            yield
        finally:
            for layer, follows in zip(layers, before, strict=True):
                layer.follows = follows

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the state dict holds beside parameters and buffers."""
        stream = {name: layer.stream_state() for name, layer in streaming_layers(self).items()}
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        return {"stream": stream, "optimizer": optimizer, "own": self.own_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` returned, in copies; a reset still goes to the start."""
        if self._first is None:  # torch comes here before it loads the submodules
            self._first = copy.deepcopy(self.state_dict())
        state = copy.deepcopy(state)
        for name, layer in streaming_layers(self).items():
            layer.load_stream_state(state["stream"][name])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.load_own_state(state["own"])

    def train(self, mode: bool = True) -> Self:
        """Set the wrapper's flag alone: which layers measure, `configure_model` has decided."""
        self.training = mode
        return self


def configure_model(
    model: nn.Module,
    *,
    rule: str = "batch",
    prior: float = 16.0,
    momentum: float = 0.1,
    train: str = "affine",
    include: Patterns = (),
    exclude: Patterns = (),
) -> nn.Module:
    """Prepare a network for a test-time method, in place, and return it.

    Its batch norms become `StreamingNorm` layers; frozen ones too. Everything else is in inference
    mode, so dropout is off (TENT's code leaves it on). Norm layers without population (layer,
    group, instance, rms) stay and can adapt by their scales and shifts.

    Args:
        model: any network of torch's, timm's, torchvision's or our norm layers.
        rule, prior, momentum: how the batch norms follow the stream, see `StreamingNorm`; with an
            infinite prior they keep to the source.
        train: what requires a gradient: the norm layers' `affine` parameters, `all`, or `none`.
        include, exclude: shell patterns of names of norm layers; the others stay the source's.

    Raises:
        InputError: no norm layer, or none is chosen; an unknown option; a layer that cannot be
            read.
    """
    if train not in TRAINED:
        raise unknown("train", train, TRAINED)
    sites = _chosen(model, include, exclude)
    names = [site.name for site in sites if "batch" in site.kinds]
    if names:
        options: dict[str, Any] = {"rule": rule, "prior": prior, "momentum": momentum}
        if prior == math.inf and rule in ("prior", "cumulative"):
            options = {"rule": "source"}
        convert_norm_(model, "streaming", include=names, **options)
    model.eval().requires_grad_(train == "all")
    for layer in streaming_layers(model).values():
        layer.training, layer.was_frozen, layer.frozen = True, layer.frozen, False
    if train == "affine":
        for parameter in _affine(_chosen(model, include, exclude)).values():
            parameter.requires_grad_(True)
    return model


def plain_copy(model: nn.Module) -> nn.Module:
    """Return what `Online.export` does, of any network that `configure_model` has prepared."""
    plain = detached_copy(model)
    layers = streaming_layers(plain)
    for layer in layers.values():
        layer.settle_()
        layer.frozen = layer.was_frozen
    if layers:
        plain = convert_norm(plain, "batch", include=list(layers))
        plain = convert_norm(plain, "torch", include=list(layers))
    return plain.eval().requires_grad_(True)


def collect_params(model: nn.Module) -> tuple[list[nn.Parameter], list[str]]:
    """Return the norm layers' scales and shifts that require a gradient, and their names."""
    found = {name: each for name, each in _affine(find_sites(model)).items() if each.requires_grad}
    return list(found.values()), list(found)


def streaming_layers(model: nn.Module) -> dict[str, StreamingNorm]:
    """Return the layers that follow the stream, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, StreamingNorm)}


def _chosen(model: nn.Module, include: Patterns, exclude: Patterns) -> list[Site]:
    sites = find_sites(model)
    if not sites:
        raise InputError(
            f"{type(model).__name__} has no normalization layer to adapt; take another network"
        )
    return select(sites, ("all",), include, exclude)


def _affine(sites: list[Site]) -> dict[str, nn.Parameter]:
    found = {}
    for site in sites:
        for key in ("weight", "bias"):
            if isinstance(value := site.tensor(key), nn.Parameter):
                found[f"{site.name}.{key}"] = value
    return found
