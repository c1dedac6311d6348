"""Online: a network that adapts itself to the batches it is given, and can go back.

The shape of TENT's published code (`configure_model`, `collect_params`, a class around model and
optimizer), without its traps: running statistics stay in the state dict, `eval()` on the wrapper
changes nothing, dropout is off, a reset brings everything back, and a batch that cannot be used
changes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import InputError
from ...models.outputs import logits_of
from ...norm.convert.converter import convert_norm
from ...norm.layers.ledger import Ledger
from ...norm.layers.streaming import StreamingNorm
from ...norm.nesting import detached_copy
from .configuration import collect_params, configure_model, streaming_layers

__all__ = ["Online", "collect_params", "configure_model", "plain_copy", "streaming_layers"]


class Online(nn.Module):
    """A test-time method: `online(x)` adapts to a batch and returns its logits.

    A batch that is refused (an `InputError`) leaves the statistics and what the method itself keeps
    as they were, and with one step a batch the parameters too, so that the stream can go on with
    the next one.

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
        self._layers: tuple[tuple[StreamingNorm, ...], ...] | None = None
        self._ledger = Ledger()

    def step(self, x: Tensor) -> Tensor:
        """Adapt once to a batch (N, ...) and return its logits (N, C)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Adapt to a batch (N, ...) and return its logits (N, C), cut off from the graph.

        Gradients are switched on where the method needs them, under `torch.no_grad` and
        `torch.inference_mode` too.

        Raises:
            InputError: a batch smaller than the method can use, and it names another method; a
                batch, or what the network makes of it, that is not finite.
        """
        return self.adapt(x)

    def adapt(self, x: Tensor) -> Tensor:
        """Do what `forward` does, under the name that says it."""
        with torch.inference_mode(False), torch.set_grad_enabled(self.needs_gradient):
            self.check_batch(x)
            self._remember()
            if self.episodic:
                self.reset()
            x = x.clone() if x.is_inference() else x.detach()  # what made x is not ours to train
            with self._whole_or_not_at_all():
                logits = self.step(x)
                if self.steps > 1:
                    with self.uncounted():
                        for _ in range(self.steps - 1):
                            logits = self.step(x)
        return logits.detach()

    def logits(self, x: Tensor) -> Tensor:
        """Run the model, as it is, on a batch (N, ...).

        Raises:
            InputError: the logits hold NaN or +inf, or what the layers have heard does.
        """
        for layer in self._streaming()[0]:
            layer.batch_samples = len(x)
        logits = logits_of(self.model(x))
        if not bool((logits.detach() < math.inf).all()):  # −inf rules a class out
            raise InputError(
                f"{type(self.model).__name__} makes NaN or infinite logits of a finite batch:"
                f" weights or statistics that are not finite, or too much for {logits.dtype};"
                " check the checkpoint, or take float32"
            )
        self._check_statistics()
        return logits

    def descend(self, loss: Tensor) -> None:
        """Take one step of the optimizer down a loss.

        Raises:
            InputError: no optimizer, or a gradient that is not finite; no parameter has changed.
        """
        self.differentiate(loss)
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def differentiate(self, loss: Tensor) -> Tensor:
        """Put a loss's gradient where the optimizer reads it; return its norm, no axes.

        Raises:
            InputError: no optimizer, or a gradient that is not finite; it is taken away again.
        """
        if self.optimizer is None:
            raise InputError(f"{type(self).__name__} needs an optimizer of what adapts, not None")
        self.optimizer.zero_grad()
        loss.backward()
        grads = [each.grad for each in self.trained() if each.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if not bool(norm.isfinite()):
            self.optimizer.zero_grad()
            raise InputError(
                f"{type(self).__name__}: the gradient of this batch is not finite; nothing was"
                " adapted to it: leave it out, or take float32"
            )
        return norm

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that the optimizer moves."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        return [each for group in groups for each in group["params"]]

    def check_batch(self, x: Tensor) -> None:
        """Check that a batch is large enough, and finite: one NaN would spoil all that is kept.

        A batch norm that has nothing but the batch needs two inputs; of one it would make the
        same picture whatever its contrast.

        Raises:
            InputError: it is not, or is no tensor; nothing has changed.
        """
        if not isinstance(x, Tensor) or x.dim() == 0:
            raise InputError(
                f"a batch of {type(x).__name__}: give a tensor (N, ...), without labels beside it"
            )
        alone = any(each.measures_alone and not each.frozen for each in self._streaming()[0])
        least = max(self.least_batch, 2 if alone else 1)
        if len(x) < least:
            raise InputError(
                f"{type(self).__name__} got a batch of {len(x)}, needs {least}: give larger"
                " batches, mix the source in (tent, eata and sar take prior=16), or take a method"
                " that keeps statistics of its own (prior, rotta)"
            )
        if not _is_finite(x):
            raise InputError(
                f"a batch {tuple(x.shape)} holds NaN or infinite values: leave it out; the network"
                " was not adapted to it"
            )

    def reset(self) -> None:
        """Bring back the whole state that was there before the first batch."""
        if self._first is not None:
            with torch.inference_mode(False):
                super().load_state_dict(self._first, strict=False)
            self._ledger.heard.clear()
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
        layers = self._streaming()[1]
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
        """Take over what `get_extra_state` returned, in copies.

        Raises:
            InputError: it is of another method, or of other layers; nothing has changed.
        """
        if _shape(state) != _shape(self.get_extra_state()):
            raise InputError(
                f"this is no state of {type(self).__name__} of this network: load what the same"
                " method returned, with the same layers chosen"
            )
        state = copy.deepcopy(state)
        for name, layer in streaming_layers(self).items():
            layer.load_stream_state(state["stream"][name])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.load_own_state(state["own"])

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Go on where another one was; a reset still goes to where this one began."""
        self._remember()
        return super().load_state_dict(state_dict, strict, assign)

    def train(self, mode: bool = True) -> Self:
        """Set the wrapper's flag alone: which layers measure, `configure_model` has decided."""
        self.training = mode
        return self

    def _streaming(self) -> tuple[tuple[StreamingNorm, ...], ...]:
        """The streaming layers of the model, and all that there are."""
        if self._layers is None:  # a walk through all modules: once, not for each batch
            parts = (self.model, self)
            self._layers = tuple(tuple(streaming_layers(part).values()) for part in parts)
            for layer in self._layers[1]:
                layer.ledger = self._ledger
        return self._layers

    def _remember(self) -> None:
        """Keep the state as it is at first, but for the model's parameters that never change."""
        if self._first is not None:
            return
        named = self.model.named_parameters(remove_duplicate=False)
        fixed = {f"model.{name}" for name, each in named if not each.requires_grad}
        state = {name: each for name, each in self.state_dict().items() if name not in fixed}
        with torch.inference_mode(False):
            self._first = copy.deepcopy(state)

    def _check_statistics(self) -> None:
        """Variances that overflow normalize to finite zeros, but would stay in the stream."""
        found = [each.var for each in self._ledger.heard]
        found += [_variance(one) for one in self._streaming()[1] if one.rule in _AT_ONCE]
        same = [each.to(found[0].device) for each in found]
        if found and not bool(torch.cat(same).isfinite().all()):
            raise InputError(
                f"{type(self.model).__name__}: the activations of this batch are too large for"
                f" {found[0].dtype} statistics; nothing was adapted to it: leave it out"
            )

    @contextmanager
    def _whole_or_not_at_all(self) -> Iterator[None]:
        """Let statistics and the method's own values take part in a batch without an error."""
        layers = self._streaming()[1]
        at_once = [each for one in layers if one.rule in _AT_ONCE for each in _moving(one)]
        kept, own = [each.clone() for each in at_once], self.own_state()
        try:
            with self._ledger.batch():
                yield
        except BaseException:  # an interrupt, too
            self.load_own_state(own)
            with torch.no_grad():
                for tensor, before in zip(at_once, kept, strict=True):
                    tensor.copy_(before)
            raise


def _shape(state: Mapping[str, Any]) -> tuple[list[str], bool, list[str]]:
    """What an extra state of one method has in common before and after any batch."""
    return list(state["stream"]), state["optimizer"] is None, list(state["own"])


_AT_ONCE = ("ema", "cumulative")
"""The rules that normalize with statistics which the batch is already a part of."""


def plain_copy(model: nn.Module) -> nn.Module:
    """Return what `Online.export` does, of any network that `configure_model` has prepared."""
    plain = detached_copy(model)
    layers = streaming_layers(plain)
    with torch.inference_mode(False):
        for layer in layers.values():
            layer.settle_()
            layer.frozen = layer.was_frozen
        if layers:
            plain = convert_norm(plain, "batch", include=list(layers))
            plain = convert_norm(plain, "torch", include=list(layers))
        return plain.eval().requires_grad_(True)


def _variance(layer: StreamingNorm) -> Tensor:
    """The variance that a batch is a part of already."""
    moved = layer.running_var if layer.rule == "ema" else None
    return layer.seen_var if moved is None else moved


def _moving(layer: StreamingNorm) -> list[Tensor]:
    """The buffers that a batch changes."""
    own = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    return [*(each for each in own if each is not None), *layer.stream_state().values()]


def _is_finite(x: Tensor) -> bool:
    """In one pass where it is; a sum that is not may yet be one of large numbers."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())
