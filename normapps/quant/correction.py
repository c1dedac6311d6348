"""Bias correction: what rounded weights add to a layer's output in the mean is taken off its bias.

Rounding W to Wq changes a layer's mean output by E[Wq·x] − E[W·x] = (Wq − W)·E[x], which is not 0
where inputs are not, as behind a ReLU (Nagel et al. 2019, section 3.2). The bias takes it back:

- analytic (section 4.2), with no picture: E[x] from the statistics of folded batch norms, see
  `input_means`. The paper sums the error over the kernel, as if there were no border; here the
  layer itself is run on a map of its input's mean, so that zero padding, strides and transposed
  convolutions count as they do. What is left out is that maps are no more equal near a border;
- empirical (appendix D), with pictures: the means of each layer's output in the float network and
  in the rounded one, whose earlier layers are already corrected, see `pairing`.

Corrected networks stay float; only their biases, which int8 backends keep in 32 bits, have changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import InputError
from ..norm.moments import Moments
from ..norm.undo import Undo
from .fake import Ranges, output_axis, quantizable, rounded_copy
from .grid import rounded, weight_grid
from .input_means import UNCALLED, InputMean, input_means
from .pairing import compare


@dataclass(frozen=True, eq=False)
class Corrected:
    """What was done for one layer.

    Attributes:
        layer: its name.
        how: `closed form`, `sampled` or `pictures`: where the mean of its input is from.
        shift: (O,) float64, what rounding had added to its mean output and was taken off.
    """

    layer: str
    how: str
    shift: Tensor


class BiasCorrection(Undo):
    """What `correct_bias_` did; calling it, or leaving its `with` block, takes it back.

    Attributes:
        layers: corrected ones, in the order of the model.
        skipped: name and reason, in words, of layers to quantize that were left as they are.
    """

    layers: tuple[Corrected, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


def correct_bias_(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    statistics: Mapping[str, Moments],
    *,
    per_channel: bool = True,
    batches: Iterable[Any] | None = None,
    bits: int = 8,
    exclude: Collection[str] = (),
    activations: Ranges | None = None,
    seed: int = 0,
) -> BiasCorrection:
    """Take what rounding the weights adds to each layer's mean output off its bias.

    Statistics stay true: a rounded and corrected layer gives in the mean what it gave before.

    Args:
        model: folded; its biases are changed in place, and a layer without one is given one.
        inputs: of the size that the model will read, (N, ...) or a tuple of arguments; values do
            not count. Not used with `batches`.
        statistics: by name, mean and variance of what layers give, as folding returns them. Not
            used with `batches`.
        per_channel: weights are rounded with a scale for each output channel, not one a layer.
        batches: pictures, as `normapps.norm.population.measure` takes them, read once: correct
            empirically. Without them: analytically.
        bits: of the weights.
        exclude: layers that will stay float, as `fake_quantize_` takes them.
        activations: with `batches`, the range of each layer's input, which is then rounded, too.
        seed: of the noise behind sampled means.

    Raises:
        InputError: without batches no statistics, or such that do not fit the model; no batches in
            `batches`; activations or weights that are not finite, the layer is named; the errors of
            `fake_quantize_`. Nothing has changed then.
    """
    layers = quantizable(model, exclude)
    if batches is None:
        means, reasons = input_means(model, inputs, statistics, layers, seed=seed)
        found = {
            name: Corrected(name, _way(mean), _added(layers[name], mean, per_channel, bits))
            for name, mean in means.items()
        }
    else:
        twin = rounded_copy(
            model, per_channel=per_channel, bits=bits, activations=activations, exclude=exclude
        )
        pairs = compare(model, twin, layers, batches, scales=False)
        found = {name: Corrected(name, "pictures", pair.shift) for name, pair in pairs.items()}
        reasons = {name: UNCALLED for name in layers if name not in found}
    _check(found.values())
    done = BiasCorrection()
    for each in found.values():
        add_to_bias_(layers[each.layer], -each.shift, done)
    done.layers = tuple(found[name] for name in layers if name in found)
    done.skipped = tuple(reasons.items())
    return done


def _way(mean: InputMean) -> str:
    return "closed form" if mean.is_exact else "sampled"


@torch.no_grad()
def _added(layer: nn.Module, read: InputMean, per_channel: bool, bits: int) -> Tensor:
    """(Wq − W)·E[x] of each output, (O,) float64 on the CPU, in the mean over positions."""
    weight = layer.get_parameter("weight").detach()
    grid = weight_grid(weight, per_channel=per_channel, axis=output_axis(layer), bits=bits)
    error = (rounded(weight, grid).double() - weight.double()).cpu()
    mean = read.mean
    if read.size:
        mean = mean.view(1, -1, *(1 for _ in read.size)).expand(1, -1, *read.size)
    parameters = {"weight": error}
    if isinstance(layer.bias, Tensor):
        parameters["bias"] = torch.zeros_like(layer.bias, dtype=torch.float64, device="cpu")
    out: Tensor = functional_call(layer, parameters, (mean,))
    return out.flatten(2).mean(2)[0] if read.size else out


def _check(found: Iterable[Corrected]) -> None:
    for each in found:
        if not bool(each.shift.isfinite().all()):
            raise InputError(f"layer '{each.layer}': its weight is not finite, so it has no scale")


@torch.no_grad()
def add_to_bias_(layer: nn.Module, values: Tensor, undo: Undo) -> None:
    """Add (O,) values to a layer's bias, which it is given where it has none.

    Args:
        layer: a convolution or linear layer.
        values: of any dtype and device.
        undo: what takes it back, to the bit, is added to it.
    """
    weight = layer.get_parameter("weight")
    if layer.bias is None:
        undo.add(lambda: layer.register_parameter("bias", None))
        bias = nn.Parameter(values.to(weight), weight.requires_grad)
        layer.register_parameter("bias", bias)
        return
    bias = layer.get_parameter("bias")
    change_(bias, bias.double() + values.to(bias.device), undo)


def change_(tensor: Tensor, values: Tensor, undo: Undo) -> None:
    """Write values into a tensor in its dtype; `undo` will write back the old ones."""
    old = tensor.detach().clone()
    undo.add(lambda: _write_(tensor, old))
    _write_(tensor, values)


@torch.no_grad()
def _write_(tensor: Tensor, values: Tensor) -> None:
    tensor.copy_(values)
