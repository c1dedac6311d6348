"""Re-estimation of batch norms behind rounded weights: what rounding shifted is normalized away.

Rounding weights moves mean and variance of what a layer gives. Where a batch norm still stood
behind it, measuring the norm's statistics anew would repair both, as AdaBN does after a change of
domain (Li et al. 2017) and AIMET after quantization-aware training. In a folded network the norm is
an identity: statistics m, v behind the rounded weights Wq, and m*, v* as its β and γ². It is
measured, and folded again:

    a = √((v* + ε)/(v + ε)),   W ← a·Wq,   b ← a·(b − m) + m*

The target m*, v* is what the float network gives on the same pictures, so that what rounding did is
repaired and nothing else. With β and γ² of the folded norms (`reference="statistics"`) the network
is adapted to the pictures, too, as by AdaBN: good where they are of another domain and all classes
are among them, harmful where a small or one-sided sample is taken for the whole.

Rounded per channel, a·Wq is on the grid of scale a·s: the integers stay, nothing is lost. (All but
grouped transposed convolutions, whose groups share scales.) Rounded per tensor it is on no grid,
and what the backend rounds anew moves a little again; still better than repairing biases alone
where channels are badly scaled, and about as good where they are not. Scaling W instead of Wq is
not: channels that a shared scale crushed would be enlarged and crush the others. `correct_bias_` on
the same pictures afterwards takes away what the second rounding shifted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, unknown
from ..graph.fold_affine import Affine
from ..graph.fold_layers import change_outputs_
from ..norm.moments import Moments
from ..norm.undo import Undo
from .correction import change_
from .fake import Ranges, quantizable, rounded_copy
from .input_means import UNCALLED, check_statistics
from .pairing import Pair, compare

REFERENCES = ("float", "statistics")


@dataclass(frozen=True, eq=False)
class Reestimated:
    """What was done for one layer.

    Attributes:
        layer: its name.
        shift: (O,) float64, what rounding had added to its mean output and was taken off.
        factor: (O,) float64, a above: what its rounded weights were multiplied by.
    """

    layer: str
    shift: Tensor
    factor: Tensor


class Reestimation(Undo):
    """What `reestimate_` did; calling it, or leaving its `with` block, takes it back.

    Attributes:
        layers: re-estimated ones, in the order of the model.
        skipped: name and reason, in words, of layers to quantize that were left as they are.
    """

    layers: tuple[Reestimated, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


def reestimate_(
    model: nn.Module,
    statistics: Mapping[str, Moments],
    batches: Iterable[Any],
    *,
    per_channel: bool = True,
    reference: str = "float",
    bits: int = 8,
    exclude: Collection[str] = (),
    activations: Ranges | None = None,
) -> Reestimation:
    """Let the rounded network's layers give the float network's means and variances again.

    Statistics stay true of what layers give, with reference `statistics` on these pictures.

    Args:
        model: folded; weights and biases of the layers in `statistics` are changed in place: the
            weights are rounded ones then.
        statistics: by name, mean and variance of what layers give, as folding returns them.
        batches: pictures, as `normapps.norm.population.measure` takes them, read once.
        per_channel: weights are rounded with a scale for each output channel, not one a layer.
        reference: what layers are to give: `float`, what the float network gives on `batches`, or
            `statistics`.
        bits: of the weights.
        exclude: layers that will stay float, as `fake_quantize_` takes them.
        activations: the range of each layer's input, which is then rounded, too.

    Raises:
        InputError: an unknown reference; no statistics, or such that do not fit the model; no
            batches; and, naming the layer: activations or weights that are not finite, or a single
            value a channel in all batches together; the errors of `fake_quantize_`. Nothing has
            changed then.
    """
    if reference not in REFERENCES:
        raise unknown("reference", reference, REFERENCES)
    check_statistics(model, statistics)
    known = quantizable(model, exclude)
    layers = {name: layer for name, layer in known.items() if name in statistics}
    twin = rounded_copy(
        model, per_channel=per_channel, bits=bits, activations=activations, exclude=exclude
    )
    wanted = None if reference == "float" else _wide(statistics)
    pairs = compare(model, twin, layers, batches, scales=True, wanted=wanted)
    _check(pairs)
    done = Reestimation()
    for name, pair in pairs.items():
        _fold_(layers[name], twin.get_submodule(name).get_parameter("weight"), pair, done)
    ordered = [(name, pairs[name]) for name in layers if name in pairs]
    done.layers = tuple(Reestimated(name, pair.shift, pair.factor) for name, pair in ordered)
    done.skipped = tuple((name, _reason(name, layers)) for name in known if name not in pairs)
    return done


@torch.no_grad()
def _fold_(layer: Any, rounded_weight: Tensor, pair: Pair, undo: Undo) -> None:
    """Give a layer its rounded weight and fold the re-estimated norm into it."""
    change_(layer.weight, rounded_weight, undo)
    mean, var = pair.wanted.mean[0], pair.wanted.var[0]
    shift = mean - pair.factor * pair.rounded.mean[0]
    change_outputs_(layer, Affine(pair.factor, shift, mean, var), undo)


def _wide(statistics: Mapping[str, Moments]) -> dict[str, Moments]:
    return {name: each.to("cpu").to(torch.float64) for name, each in statistics.items()}


def _check(pairs: Mapping[str, Pair]) -> None:
    for name, pair in pairs.items():
        if pair.rounded.count[0] < 2:
            raise InputError(
                f"layer '{name}': all pictures together give one value a channel, and a variance"
                " needs two: give more pictures"
            )


def _reason(name: str, layers: Collection[str]) -> str:
    if name in layers:
        return UNCALLED
    return "no batch norm was folded into it"
