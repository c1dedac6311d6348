"""Fake quantization: a float network whose weights and inputs are rounded as int8 will round them.

Jacob et al. 2018, section 3. To study each step of quantization without a backend. What is rounded
are weights and inputs of convolutions and linear layers; ONNX Runtime rounds biases too, to 32
bits, and the inputs of what lies between, such as additions.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from ..errors import InputError, unknown
from ..norm.nesting import detached_copy
from ..norm.population.listening import Source, inference, listening
from ..norm.undo import Undo
from .grid import Grid, activation_grid, rounded, weight_grid
from .ranges import Histogram, range_of

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest input by the name of a layer."""


def fake_quantize_(
    model: nn.Module,
    *,
    per_channel: bool = True,
    weight_bits: int = 8,
    activations: Ranges | None = None,
    activation_bits: int = 8,
    exclude: Collection[str] = (),
) -> Undo:
    """Round the weights of a network, and the inputs of its layers, as an int8 backend would.

    Weights are exchanged in place, inputs are rounded by hooks; biases and everything else stay.
    The handle restores every bit.

    Args:
        model: with its batch norms folded, or the rounded weights are not those of the backend.
        per_channel: a scale for each output channel, not one a layer.
        weight_bits, activation_bits: 2 to 16.
        activations: range of the input of each layer that is to round it, as `input_ranges` finds
            them; None, the default, rounds weights alone (W8A32).
        exclude: names of layers that stay float, as shell patterns; a parent's name holds for all
            that is in it.

    Raises:
        InputError: bits out of range, a pattern or an activation that names no layer, weights that
            are not finite or are computed from others. Nothing has changed then.
    """
    layers = quantizable(model, exclude)
    grids = {
        name: _fitting(name, layer, per_channel, weight_bits) for name, layer in layers.items()
    }
    inputs = input_grids(model, activations or {}, bits=activation_bits, exclude=exclude)
    undo = Undo()
    for name, layer in layers.items():
        _exchange(layer.get_parameter("weight"), grids[name], undo)
    for name, grid in inputs.items():
        hook = layers[name].register_forward_pre_hook(rounding(grid), with_kwargs=True)
        undo.add(hook.remove)
    return undo


def rounded_copy(
    model: nn.Module,
    *,
    per_channel: bool,
    bits: int,
    activations: Ranges | None,
    exclude: Collection[str],
) -> nn.Module:
    """Return a copy of a network, rounded as by `fake_quantize_`; raises what that does."""
    twin = detached_copy(model)
    fake_quantize_(
        twin,
        per_channel=per_channel,
        weight_bits=bits,
        activations=activations,
        exclude=exclude,
    )
    return twin


def input_ranges(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: str = "min-max",
    percentile: float = 99.99,
    exclude: Collection[str] = (),
    limit: int | None = None,
) -> dict[str, tuple[float, float]]:
    """Return the range of what comes into each layer over batches, by the layer's name.

    The model runs in inference mode without gradient and comes back as it was. A layer that is
    called several times has one range for all calls; one that is not called has none.

    Args:
        model: called as `model(x)`.
        batches: tensors (N, ...), tuples that begin with one, or mappings, as
            `normapps.norm.population.measure` takes them; read once.
        method: `min-max`, `percentile` or `mse`, see `normapps.quant.ranges`.
        percentile: of the method of that name.
        exclude: see `fake_quantize_`.
        limit: at most so many inputs.

    Raises:
        InputError: no layer to quantize, no batches, or an input that is not finite.
    """
    layers = quantizable(model, exclude)
    heard: dict[str, Histogram] = {}

    def hear(name: str, x: Tensor) -> None:
        try:
            heard.setdefault(name, Histogram()).add(x.detach().float().cpu().numpy())
        except InputError as error:
            raise InputError(f"input of layer '{name}': {error}") from error

    with torch.no_grad(), inference(model), listening(layers, hear):
        for x in Source(model, batches, limit, None):
            model(x)
    if not heard:
        raise InputError("no batch came to a layer: give pictures to measure its range on")
    return {
        name: range_of(heard[name], method, percentile=percentile)
        for name in layers
        if name in heard
    }


def quantizable(model: nn.Module, exclude: Collection[str] = ()) -> dict[str, nn.Module]:
    """Return convolutions, transposed ones too, and linear layers by name, in the model's order.

    Args:
        model: the network; a layer that it knows under several names has the first.
        exclude: see `fake_quantize_`.

    Raises:
        InputError: there is none, a pattern fits none, or a layer's weight has no values yet or is
            computed by a parametrization.
    """
    layers = _weighted(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no convolution and no linear layer")
    for pattern in exclude:
        if not any(_matches(name, pattern) for name in layers):
            raise unknown("layer in --exclude:", pattern, layers)
    chosen = {
        name: layer
        for name, layer in layers.items()
        if not any(_matches(name, pattern) for pattern in exclude)
    }
    for name, layer in chosen.items():
        _refuse_unfit(name, layer)
    return chosen


def output_axis(layer: nn.Module) -> int:
    """Return the axis of a layer's weight along which its output channels lie.

    1 for transposed convolutions, whose groups there share their channels' scales as they do in
    ONNX, and 0 for all others.
    """
    return 1 if isinstance(layer, _ConvTransposeNd) else 0


def input_grids(
    model: nn.Module, ranges: Ranges, *, bits: int = 8, exclude: Collection[str] = ()
) -> dict[str, Grid]:
    """Return the grid of each layer's input, on the layer's device; excluded ones have none.

    Raises:
        InputError: a range of what is no layer, or limits in the wrong order.
    """
    known, layers = _weighted(model), quantizable(model, exclude)
    found = {}
    for name, (low, high) in ranges.items():
        if name not in known:
            raise unknown("layer in activations:", name, known)
        if name in layers:
            device = layers[name].get_parameter("weight").device
            found[name] = _input_grid(name, low, high, bits).to(device)
    return found


def rounding(grid: Grid) -> Callable[..., Any]:
    """Return a forward pre-hook, to be registered with keywords, that rounds a layer's input."""

    def hook(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if args:
            return (rounded(args[0], grid), *args[1:]), options
        name, x = next(iter(options.items()))
        return args, options | {name: rounded(x, grid)}

    return hook


def _weighted(model: nn.Module) -> dict[str, nn.Module]:
    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, _ConvNd | nn.Linear)}


def _input_grid(name: str, low: float, high: float, bits: int) -> Grid:
    try:
        return activation_grid(low, high, bits=bits)
    except InputError as error:
        raise InputError(f"input of layer '{name}': {error}") from error


def _fitting(name: str, layer: nn.Module, per_channel: bool, bits: int) -> Grid:
    weight = layer.get_parameter("weight")
    if not bool(torch.isfinite(weight).all()):
        raise InputError(f"layer '{name}': its weight is not finite, so it has no scale")
    return weight_grid(weight, per_channel=per_channel, axis=output_axis(layer), bits=bits)


@torch.no_grad()
def _exchange(weight: Tensor, grid: Grid, undo: Undo) -> None:
    old = weight.detach().clone()

    @torch.no_grad()
    def restore() -> None:
        weight.copy_(old)

    weight.copy_(rounded(old, grid))
    undo.add(restore)


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    above = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return any(fnmatch.fnmatchcase(each, pattern) for each in above)


def _refuse_unfit(name: str, layer: nn.Module) -> None:
    if parametrize.is_parametrized(layer, "weight") or "weight" not in layer._parameters:
        raise InputError(
            f"layer '{name}': its weight is computed from others; exclude the layer, or make the"
            " weight plain with torch.nn.utils.parametrize.remove_parametrizations"
        )
    weight = layer._parameters["weight"]
    if weight is None or nn.parameter.is_lazy(weight) or weight.is_meta:
        raise InputError(f"layer '{name}': its weight has no values yet; run the model once first")
