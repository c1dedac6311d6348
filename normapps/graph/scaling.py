"""trace_scales: which channels can be multiplied by s > 0, undone where they are read.

Cross-layer equalization (Nagel et al. 2019, Data-Free Quantization, §4.1) asks of what lies between
two layers that f(s x) = s f(x). Here this is followed over the whole network: residual sums,
concatenations, splits, pooling, products with a gate that keeps its own scale. What is not
positively homogeneous pins the channels that it reads, with a reason.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .elements import FIXED, Found, Rule, Step
from .follow_elements import follow
from .layer_graph import LayerGraph
from .rules_elements import SHARED, clipped, rectified, reduced, same, unknown

ADDED = "{where} adds a number to them"
JOINED = "{where} joins them with channels that keep their scale"
MULTIPLIED = "{where} multiplies them with each other"


def trace_scales(model: nn.Module, inputs: Tensor | tuple[Any, ...]) -> LayerGraph:
    """Run a model once and return its layers, by the scale that their channels have in common.

    Multiply by s (count,) > 0, 1 at pinned atoms: a layer's weight by s[out] / s[inputs], its
    bias by s[out], the bounds of each clip by its s. The network's outputs stay as they are.

    The model is run as by `trace_channels`, and comes out as it went in.

    Args:
        model: any module, its batch norms folded; those left pin what they read.
        inputs: what `model(*inputs)` takes; a batch of one is enough.

    Raises:
        InputError: the model does not run on these inputs, or is compiled, scripted or wrapped.
    """
    return follow(model, inputs, SCALING)


def _added(step: Step) -> Found:
    """A sum, extreme or choice of two: one scale, element by element."""
    one, other = step.atoms("self"), step.atoms("other")
    if one is None and other is None:
        return [None]
    if one is None or other is None:
        return _offset(step, one, other)
    step.tie(one, other, JOINED)
    pair = torch.broadcast_tensors(one, other)
    return [torch.where(pair[0] == FIXED, pair[1], pair[0])]


def _offset(step: Step, one: Tensor | None, other: Tensor | None) -> Found:
    """Adding 0 changes no scale; another constant does."""
    number = step["other"] if one is not None else step["self"]
    if one is not None and not isinstance(number, Tensor) and number == 0:
        return [one]
    step.pin(one if one is not None else other, ADDED)
    return [torch.zeros((), dtype=torch.int64).expand(step.outputs[0].shape)]


def _extreme(step: Step) -> Found:
    """Of two tensors; a clip's own bound is a constant."""
    return clipped(step) if step.atoms("other") is None else _added(step)


def _multiplied(step: Step) -> Found:
    """By a constant, or by data of fixed scale, as a gate behind a sigmoid is."""
    one, other = step.atoms("self"), step.atoms("other")
    shape = step.outputs[0].shape
    if one is None or other is None:
        atoms = other if one is None else one
        return [None if atoms is None else atoms.expand(shape)]
    pair = torch.broadcast_tensors(one, other)
    both = (pair[0] != FIXED) & (pair[1] != FIXED)
    for atoms in pair:
        step.pin(torch.where(both, atoms, FIXED), MULTIPLIED)
    return [torch.where(both, FIXED, torch.maximum(*pair))]


def _divided(step: Step) -> Found:
    if step.atoms("other") is not None or step["rounding_mode"] is not None:
        return unknown(step)
    return same(step)


def _clamp(step: Step) -> Found:
    """With the lower bound 0 alone it is a ReLU."""
    low = step["min"]
    if not isinstance(low, Tensor) and low == 0 and step["max"] is None:
        return rectified(step)
    return clipped(step)


def _threshold(step: Step) -> Found:
    return rectified(step) if step["threshold"] == step["value"] == 0 else unknown(step)


def _prelu(step: Step) -> Found:
    return unknown(step) if step.atoms("weight") is not None else same(step)


SCALING: dict[str, Rule] = {
    **SHARED,
    **dict.fromkeys(["add", "sub"], _added),
    **dict.fromkeys(["maximum", "minimum"], _extreme),
    "mul": _multiplied,
    **dict.fromkeys(["div", "true_divide"], _divided),
    **dict.fromkeys(["neg", "abs", "leaky_relu"], same),
    "_prelu_kernel": _prelu,
    **dict.fromkeys(["clamp", "clamp_min", "clamp_max"], _clamp),
    "hardtanh": clipped,
    "threshold": _threshold,
    "sum": reduced,
}
"""Operation → rule."""
