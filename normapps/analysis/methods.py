"""The methods that are no layer: of weights, of gradients, of inputs, and between layers.

A layer carries its taxonomy itself. What is here is looked up when the table is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ..norm.gradient import block_normalize_, centralize_, clip_adaptive_
from ..norm.inputs import InputNorm
from ..norm.layers.base import Taxonomy
from ..norm.layers.moment_exchange import MomentExchange
from ..norm.layers.moment_shortcut import shortcut_moments_
from ..norm.weight.manifold import constrain_
from ..norm.weight.penalties import PENALTIES
from ..norm.weight.registry import WEIGHT_METHODS
from ..training.optimizers import create_optimizer

KINDS = ("activation", "weight", "gradient", "input")
"""What is normalized, in the order of the table."""

_CHOOSING = ("self", "module", "model", "optimizer", "parameters", "name", "include", "exclude")
"""Parameters that say what a method is applied to, not how."""


@dataclass(frozen=True)
class Method:
    """A method that is no layer.

    Attributes:
        kind: one of `KINDS`.
        place: its taxonomy.
        use: one line of Python that applies it.
        made_by: the function or class, for its options and docstring.
        given: options that the name settles, which are not shown.
    """

    kind: str
    place: Taxonomy
    use: str
    made_by: Callable[..., Any]
    given: Collection[str] = ()

    @property
    def options(self) -> dict[str, Any]:
        """Option → default (`inspect.Parameter.empty`: must be given)."""
        parameters = inspect.signature(self.made_by).parameters
        return {
            name: each.default
            for name, each in parameters.items()
            if name not in (*_CHOOSING, *self.given) and each.kind is not each.VAR_KEYWORD
        }

    @property
    def text(self) -> str:
        """The docstring."""
        return inspect.cleandoc(self.made_by.__doc__ or "")


_ROWS = "2 passes over the weight a forward; 0 once removed"
_GRAM = "O(rows²·inputs)"

WEIGHTS: dict[str, Taxonomy] = {
    "spectral": Taxonomy(
        "matrix",
        "scale by σ",
        "none",
        "Miyato et al. 2018",
        "2 products with a vector a training forward; 0 once removed",
    ),
    "standardized": Taxonomy("row", "standardize", "none", "Qiao et al. 2019", _ROWS),
    "centered": Taxonomy(
        "row", "centre and scale", "a length a row", "Huang et al. 2017 (centred)", _ROWS
    ),
    "weight": Taxonomy("row", "scale", "a length a row", "Salimans & Kingma 2016", _ROWS),
    "orthogonal": Taxonomy(
        "matrix",
        "orthogonalize",
        "none",
        "Lezcano-Casado 2019",
        f"{_GRAM} a forward (Householder), O(rows³) if square; 0 once removed",
    ),
    "own": Taxonomy(
        "rows, groups of them",
        "whiten (ZCA)",
        "√2",
        "Huang et al. 2018 (OWN)",
        f"eigh O(rows³) and {_GRAM} a forward; 0 once removed",
    ),
    "oni": Taxonomy(
        "matrix",
        "whiten (Newton)",
        "√2",
        "Huang et al. 2020",
        f"2T products {_GRAM} a forward; 0 once removed",
    ),
}
"""Methods of `normalize_weights_`."""

CONSTRAINTS: dict[str, Taxonomy] = {
    "oblique": Taxonomy(
        "row",
        "scale",
        "none: a constraint",
        "Huang et al. 2017 (PBWN)",
        "passes over weight and momentum a step; 0 a forward",
    ),
    "stiefel": Taxonomy(
        "matrix",
        "orthogonalize",
        "none: a constraint",
        "Ozay & Okatani 2018",
        f"a QR (or eigh) and 2 products {_GRAM} a step; 0 a forward",
    ),
}
"""Manifolds of `constrain_`."""

REGULARIZERS: dict[str, Taxonomy] = {
    "so": Taxonomy(
        "matrix",
        "towards orthogonal",
        "none: a penalty",
        "Bansal et al. 2018",
        f"a product {_GRAM} a step; 0 a forward",
    ),
    "dso": Taxonomy(
        "matrix",
        "towards orthogonal",
        "none: a penalty",
        "Bansal et al. 2018",
        f"{_GRAM} and O(rows·inputs²) a step; 0 a forward",
    ),
    "srip": Taxonomy(
        "matrix",
        "towards orthogonal",
        "none: a penalty",
        "Bansal et al. 2018",
        f"a product {_GRAM} and T with a vector a step; 0 a forward",
    ),
}
"""Kinds of `orthogonal_penalty`."""

OF_GRADIENTS: dict[str, Taxonomy] = {
    "lars": Taxonomy(
        "tensor", "scale by ‖w‖/‖g‖", "learning rate", "You et al. 2017", "2 norms a tensor a step"
    ),
    "lamb": Taxonomy(
        "tensor",
        "scale Adam's step by ‖w‖/‖u‖",
        "learning rate",
        "You et al. 2020",
        "2 norms a tensor a step, beside Adam's",
    ),
    "adamp": Taxonomy(
        "row or tensor",
        "take the weight's direction out of Adam's step",
        "learning rate",
        "Heo et al. 2021",
        "2 products a tensor a step, beside Adam's",
    ),
}
"""Optimizers of `create_optimizer` that normalize."""

OF_INPUTS: dict[str, Taxonomy] = {
    "center": Taxonomy("data set", "centre", "none", "LeCun et al. 1998", "1 pass, once; 0 folded"),
    "standardize": Taxonomy(
        "data set", "standardize", "none", "LeCun et al. 1998", "1 pass, once; 0 folded"
    ),
    "zca": Taxonomy(
        "data set",
        "whiten (ZCA)",
        "none",
        "Bell & Sejnowski 1997",
        "1 pass of d products a value and eigh O(d³), once; then d products a value",
    ),
    "pca": Taxonomy(
        "data set",
        "whiten (PCA)",
        "none",
        "LeCun et al. 1998",
        "1 pass of d products a value and eigh O(d³), once; then d products a value",
    ),
}
"""Methods of `InputNorm`."""

_EDITS: dict[str, Method] = {
    "centralized": Method(
        "gradient",
        Taxonomy("row", "centre", "none", "Yong et al. 2020", "2 passes over the gradient a step"),
        'create_optimizer("sgd", model, lr=0.1, centralize=True)',
        centralize_,
    ),
    "block_normalized": Method(
        "gradient",
        Taxonomy("tensor", "scale", "none", "Yu et al. 2017", "2 passes over the gradient a step"),
        'create_optimizer("sgd", model, lr=0.1, block_normalize=True)',
        block_normalize_,
    ),
    "clipped": Method(
        "gradient",
        Taxonomy(
            "row",
            "scale where it is long for its weight",
            "none",
            "Brock et al. 2021",
            "2 passes over the gradient and 1 over the weight a step",
        ),
        'create_optimizer("sgd", model, lr=0.1, clip=0.01)',
        clip_adaptive_,
    ),
}

_BETWEEN: dict[str, Method] = {
    "moment_exchange": Method(
        "activation",
        Taxonomy(
            "position",
            "standardize",
            "another sample's moments",
            "Li et al. 2021",
            "2 passes; inference 0",
        ),
        "nn.Sequential(stem, MomentExchange(), rest)",
        MomentExchange,
    ),
    "moment_shortcut": Method(
        "activation",
        Taxonomy(
            "position",
            "standardize",
            "the encoder's moments, in the decoder",
            "Li et al. 2019",
            "3 passes, at inference too",
        ),
        'shortcut_moments_(model, {"encoder.0": "decoder.2"})',
        shortcut_moments_,
    ),
}


def methods() -> dict[tuple[str, str], Method]:
    """Return all methods that are no layer by kind and name."""
    found = {("activation", name): each for name, each in _BETWEEN.items()}
    for name, place in WEIGHTS.items():
        use = f'normalize_weights_(model, "{name}")'
        found["weight", name] = Method("weight", place, use, WEIGHT_METHODS[name])
    for name, place in CONSTRAINTS.items():
        use = f'constrain_(optimizer, model, "{name}")'
        given = {"manifold", "retraction"} if name == "oblique" else {"manifold"}
        found["weight", name] = Method("weight", place, use, constrain_, given)
    for name, place in REGULARIZERS.items():
        use = f'loss + 0.1 * orthogonal_penalty(model, "{name}")'
        found["weight", name] = Method("weight", place, use, PENALTIES[name], {"weight"})
    found |= {("gradient", name): each for name, each in _EDITS.items()}
    for name, place in OF_GRADIENTS.items():
        use = f'create_optimizer("{name}", model, lr=0.1)'
        found["gradient", name] = Method("gradient", place, use, create_optimizer)
    for name, place in OF_INPUTS.items():
        use = f'InputNorm(3, "{name}").fit(batches)'
        found["input", name] = Method("input", place, use, InputNorm, {"method"})
    return found
