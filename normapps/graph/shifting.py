"""trace_shifts: which channels can have a number taken from them, given back where they are read.

High-bias absorption (Nagel et al. 2019, Data-Free Quantization, §4.1.3): relu(x − c) = relu(x) − c
where x ≥ c, so c can go from the bias of the layer before a ReLU into those of the layers behind.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .elements import Found, Rule, Step
from .follow_elements import follow
from .layer_graph import LayerGraph
from .rules_elements import SHARED, clipped, convolution, rectified, unknown


def trace_shifts(model: nn.Module, inputs: Tensor | tuple[Any, ...]) -> LayerGraph:
    """Run a model once and return its layers, by the shift that their channels have in common.

    Take c (count,) ≥ 0, 0 at pinned atoms, from the biases of the layers that make an atom, and
    add Σ W c to the biases of those that read it. Exact where x ≥ c in front of each ReLU (those
    atoms are `rectified`) and where no zeros are padded; there it is as near as the paper's.

    Modules that clip from 0 to a bound, as ReLU6 does, count as ReLUs whose bound is to be shifted
    along: they are among the graph's clips.

    Sums, products, other clips and activations pin what they read; so do transposed convolutions,
    which give some of their outputs a part of their kernel only.

    Args and raises: as `trace_scales`.
    """
    return follow(model, inputs, SHIFTING)


def _convolution(step: Step) -> Found:
    if step["transposed"]:
        step.elements.spoil(step.tensors)
        return unknown(step)
    return convolution(step)


def _clip(step: Step) -> Found:
    """From 0, it is a ReLU and a bound."""
    if not _rectifies(step.module):
        return unknown(step)
    rectified(step)
    return clipped(step)


def _minimum(step: Step) -> Found:
    """The bound of a clip whose ReLU ran before."""
    if step.atoms("other") is not None or not _rectifies(step.module):
        return unknown(step)
    return clipped(step)


def _rectifies(module: nn.Module) -> bool:
    if isinstance(module, nn.Hardtanh):
        return module.min_val == 0
    return bool(getattr(module, "rectifies", False))


_NAMES = ("convolution", "convolution_overrideable", "_convolution")

SHIFTING: dict[str, Rule] = {
    **SHARED,
    **dict.fromkeys(_NAMES, _convolution),
    "hardtanh": _clip,
    "minimum": _minimum,
}
"""Operation → rule."""
