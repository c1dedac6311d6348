"""What each layer reads in the mean, without a picture: from what batch norms say of activations.

A layer into which a batch norm was folded gives mean β and variance γ² a channel. Nagel et al. 2019
(section 4.2.1) take that for Gaussian and derive the next layer's mean input for chains of layer,
ReLU, layer. Here are two ways, which complement one another:

- chains of a known layer, elementwise activations and a reader, found by the identity of tensors
  in one run of the model, in closed form (`gaussian`): without sampling error;
- all others, as sums of branches, poolings, gates and concatenations, by sampling: in the same run
  every known layer's output is replaced by Gaussian noise of its mean and variance, and readers
  measure what arrives. By linearity that is exact in the mean, but for the noise, through sums,
  averages and linear layers; through later activations as exact as the Gaussian assumption.

That needs no graph of the network and no rule for any operation. Batch norms that still stand read
noise of their running statistics in the same way.

What depends on the model's inputs by a path without a known layer cannot be known, as what the
first layer reads. It is found with inputs that are not a number, which no operation hides.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..engine.device import evaluating
from ..errors import InputError, unknown
from ..graph.dispatch import not_run
from ..norm.moments import Moments
from .gaussian import activation_mean

SAMPLES = 16
"""Inputs of a run: noise at 7×7 positions then has 784 values a channel."""

_OPEN = "what it reads depends on the model's own input, whose mean is not known"
UNCALLED = "the model does not call it"

_MIXING = (nn.MultiheadAttention, nn.GLU, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)
"""What stands among torch's activations without working elementwise."""

_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations", "normapps.quant.clip")
"""Modules whose layers work elementwise."""


@dataclass(frozen=True, eq=False)
class InputMean:
    """What a layer reads in the mean.

    Attributes:
        mean: (C,) float64 on the CPU, over samples, positions and calls.
        size: positions of the layer's input at its first call, () for linear layers.
        is_exact: by closed forms, not by sampling.
    """

    mean: Tensor
    size: tuple[int, ...]
    is_exact: bool


def input_means(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    statistics: Mapping[str, Moments],
    layers: Collection[str],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> tuple[dict[str, InputMean], dict[str, str]]:
    """Return what layers read in the mean, and for the others in words why it is not known.

    The model comes back as it was; other randomness than `seed` is not used.

    Args:
        model: run once, in inference mode.
        inputs: of the size that the model will read, (N, ...) or a tuple of arguments; their
            values do not count.
        statistics: mean β and variance γ² of what a layer gives, by its name.
        layers: names of convolutions and linear layers that are asked for.
        samples: inputs that are run at once.

    Raises:
        InputError: no statistics, or of a layer that is not in the model or has other channels,
            or not finite; or the model does not run.
    """
    check_statistics(model, statistics)
    walk = _Walk(model, statistics, layers, torch.Generator().manual_seed(seed))
    with evaluating(model), walk:
        try:
            model(*_unknown_inputs(inputs, samples))
        except Exception as error:  # somebody else's forward may raise anything
            raise not_run(model, inputs, error) from error
    found, reasons = {}, {}
    for name, calls in walk.heard.items():
        known = [each for each in calls if each is not None]
        if known and len(known) == len(calls):
            found[name] = _pooled(known)
        else:
            reasons[name] = _OPEN if calls else UNCALLED
    return found, reasons


class _Walk:
    """Hooks that make noise of known layers' outputs and hear what the asked layers read."""

    def __init__(
        self,
        model: nn.Module,
        statistics: Mapping[str, Moments],
        layers: Collection[str],
        generator: torch.Generator,
    ) -> None:
        self.generator, self.marks = generator, _Marks()
        self.heard: dict[str, list[InputMean | None]] = {name: [] for name in layers}
        self._waiting: list[_Known | None] = []
        self._handles: list[RemovableHandle] = []
        for name, module in model.named_modules():
            before, after = module.register_forward_pre_hook, module.register_forward_hook
            if name in self.heard:
                self._handles.append(before(self._hear(name), with_kwargs=True))
            if name in statistics:
                self._handles.append(after(self._give(statistics[name])))
            elif _is_standing_norm(module):
                self._handles.append(before(self._feed, with_kwargs=True))
            elif _is_elementwise(module):
                self._handles += [before(self._before), after(self._after)]

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hear(self, name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            x, axis = (*args, *options.values())[0], channel_axis(layer)
            if not bool(torch.isfinite(x).all()):
                self.heard[name].append(None)
                return
            known = self.marks.of(x)
            mean = _mean(x, axis) if known is None else known.mean
            size = tuple(x.shape[2:]) if axis == 1 else ()
            self.heard[name].append(InputMean(mean, size, known is not None))

        return hook

    def _give(self, moments: Moments) -> Any:
        mean = moments.mean.flatten().to("cpu").double()
        std = moments.var.flatten().to("cpu").double().sqrt()

        def hook(layer: nn.Module, args: Any, out: Tensor) -> Tensor:
            noise = _noise(out, mean, std, channel_axis(layer), self.generator)
            self.marks.put(noise, _Known(mean, std))
            return noise

        return hook

    def _feed(self, norm: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        x = (*args, *options.values())[0]
        noise = _noise(x, mean, var.sqrt(), channel_axis(norm), self.generator)
        if args:
            return (noise, *args[1:]), options
        return args, options | {next(iter(options)): noise}

    def _before(self, activation: nn.Module, args: tuple[Any, ...]) -> None:
        self._waiting.append(self.marks.of(args[0]) if args else None)

    def _after(self, activation: nn.Module, args: Any, out: Tensor) -> None:
        known = self._waiting.pop()
        if known is not None and known.std is not None:
            mean = activation_mean(activation, known.mean, known.std)
            self.marks.put(out, _Known(mean, None))


@dataclass(frozen=True, eq=False)
class _Known:
    """A tensor's mean (C,) and, where it is Gaussian, its deviation."""

    mean: Tensor
    std: Tensor | None


class _Marks:
    """What is known of tensors, as long as they live and nobody writes into them."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], int, _Known]] = {}

    def put(self, x: Tensor, known: _Known) -> None:
        if not x.is_inference():  # which do not count the writes
            self._entries[id(x)] = weakref.ref(x), x._version, known

    def of(self, x: Tensor) -> _Known | None:
        alive, version, known = self._entries.get(id(x), (None, 0, None))
        return known if alive is not None and alive() is x and version == x._version else None


def channel_axis(layer: nn.Module) -> int:
    """Return the axis of the channels in what a layer reads and gives: −1 or 1."""
    tokens = getattr(layer, "layout", None) == "tokens"
    return -1 if isinstance(layer, nn.Linear) or tokens else 1


def _is_standing_norm(module: nn.Module) -> bool:
    buffers = dict(module.named_buffers(recurse=False))
    found = [buffers.get(name) for name in ("running_mean", "running_var")]
    return all(isinstance(each, Tensor) and each.dim() == 1 for each in found)


def _is_elementwise(module: nn.Module) -> bool:
    home = type(module).__module__
    return home.startswith(_ACTIVATIONS) and not isinstance(module, _MIXING)


def _noise(
    like: Tensor, mean: Tensor, std: Tensor, axis: int, generator: torch.Generator
) -> Tensor:
    """Gaussian values in the shape of a tensor, each channel's mean and deviation met exactly."""
    drawn = torch.randn(like.movedim(axis, 0).shape, generator=generator)
    flat = drawn.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    size = flat.square().mean(1, keepdim=True).sqrt()
    flat = flat / torch.where(size > 0, size, 1.0)
    values = mean.to(flat)[:, None] + std.to(flat)[:, None] * flat
    return values.view(drawn.shape).movedim(0, axis).to(like).contiguous()


def _mean(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, 0).flatten(1).to("cpu").double().mean(1)


def _pooled(calls: list[InputMean]) -> InputMean:
    mean = torch.stack([each.mean for each in calls]).mean(0)
    return InputMean(mean, calls[0].size, all(each.is_exact for each in calls))


def _unknown_inputs(inputs: Tensor | tuple[Any, ...], samples: int) -> tuple[Any, ...]:
    """The arguments with not a number in every floating tensor, `samples` inputs long."""
    return tuple(
        _unknown_input(each, samples) if isinstance(each, Tensor) and each.dim() else each
        for each in (inputs if isinstance(inputs, tuple) else (inputs,))
    )


def _unknown_input(x: Tensor, samples: int) -> Tensor:
    shape = (samples, *x.shape[1:])
    return x.new_full(shape, torch.nan) if x.is_floating_point() else x[:1].expand(shape)


def check_statistics(model: nn.Module, statistics: Mapping[str, Moments]) -> None:
    """Check that statistics are of this model.

    Raises:
        InputError: there are none, or of a layer that is not in the model or has other channels,
            or such that are not finite.
    """
    if not statistics:
        raise InputError(
            "no statistics: no batch norm was folded into a layer; fold the network's, or correct"
            " its biases with pictures"
        )
    layers = dict(model.named_modules())
    for name, moments in statistics.items():
        if name not in layers:
            known = [each for each, module in layers.items() if hasattr(module, "weight")]
            raise unknown("layer in statistics:", name, known)
        outputs = getattr(layers[name], "out_channels", getattr(layers[name], "out_features", None))
        if moments.mean.numel() != outputs:
            raise InputError(
                f"layer '{name}' gives {outputs} channels, its statistics are of"
                f" {moments.mean.numel()}: they belong to another model"
            )
        if not bool((moments.mean.isfinite() & (moments.var >= 0) & moments.var.isfinite()).all()):
            raise InputError(f"layer '{name}': its statistics are not finite, or no variances")
