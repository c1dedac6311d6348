"""unfold_: batch norms that change nothing, put back behind folded layers.

So that a folded network's populations can be measured again (after its weights were rounded, say)
and corrected by folding once more.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..norm.convert.sites import read
from ..norm.layers.batch import BatchNorm
from ..norm.moments import Moments
from ..norm.undo import Undo
from .fold_affine import affine_of
from .fold_layers import LAYERS, change_outputs_

NORM = "norm"
"""The name of a batch norm that was put back, as a child of its layer."""

_RELATIVE_EPS = 1e-5


class Unfolding(Undo):
    """What `unfold_` did, and the way back: calling it takes the batch norms away again.

    Attributes:
        norms: name of each layer → name of its batch norm, as `population_layers` has it.
    """

    def __init__(self, model: nn.Module, statistics: MutableMapping[str, Moments]) -> None:
        super().__init__()
        self.norms: dict[str, str] = {}
        self._model, self._statistics = model, statistics

    def __enter__(self) -> Unfolding:
        return self

    def fold_(self) -> Undo:
        """Fold the batch norms, as they are by now, into their layers and take them away.

        The layers' entries in the statistics stay: what they give has β and γ again.

        Returns:
            The way back to the layers as they were before `unfold_`.
        """
        undo = Undo()
        for name, norm in self.norms.items():
            layer: Any = self._model.get_submodule(name)
            site = read(self._model.get_submodule(norm))
            if site is not None:
                change_outputs_(layer, affine_of(site), undo)
        self()
        return undo


def unfold_(
    model: nn.Module,
    statistics: MutableMapping[str, Moments],
    names: Iterable[str] | None = None,
) -> Unfolding:
    """Put a batch norm behind each folded layer that changes nothing until it is measured again.

    Its running moments are the layer's statistics, γ = √(σ²+ε) and β = μ, so that it is the
    identity up to rounding, also for channels without variance. ε is 10⁻⁵ of the layer's median
    variance. The batch norm is a child `norm` of the layer, called by a hook on it: the layer
    keeps its name and class.

    Args:
        model: folded by `fold_batchnorm_`; its mode is the batch norms', too.
        statistics: of the folding: moments (1, C) by the name of a layer.
        names: the layers; without it all that have statistics.

    Raises:
        InputError: a name without statistics, of no module or no convolution or linear layer, of
            one that has a child `norm` already, or with another number of outputs.
    """
    unfolding = Unfolding(model, statistics)
    for name in list(statistics if names is None else names):
        if name not in statistics:
            unfolding()
            raise InputError(f"layer '{name}' has no statistics; no batch norm was folded into it")
        try:
            _put_behind_(model, name, statistics[name], unfolding)
        except InputError:
            unfolding()
            raise
    return unfolding


def _put_behind_(model: nn.Module, name: str, moments: Moments, unfolding: Unfolding) -> None:
    layer = dict(model.named_modules()).get(name)
    if layer is None:
        raise InputError(f"{type(model).__name__} has no layer '{name}'; fold this model itself")
    if not isinstance(layer, LAYERS) or NORM in layer._modules:
        raise InputError(f"'{name}' cannot get a batch norm ({type(layer).__name__})")
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if moments.mean.shape != (1, outputs):
        raise InputError(f"'{name}' gives {outputs} channels, not {moments.mean.shape[1]}")
    norm = identity_norm(moments, "tokens" if isinstance(layer, nn.Linear) else "any")
    layer.add_module(NORM, norm.to(layer.weight.device, layer.weight.dtype).train(layer.training))
    handle = layer.register_forward_hook(_apply_norm)
    unfolding.add(lambda: layer._modules.pop(NORM, None))
    unfolding.add(handle.remove)
    unfolding.norms[name] = f"{name}.{NORM}" if name else NORM


def identity_norm(moments: Moments, layout: str = "any") -> BatchNorm:
    """Return a batch norm of a population that changes nothing, in float64.

    Args:
        moments: (1, C).
        layout: see `layers.base.LAYOUTS`.
    """
    mean, var = moments.mean[0].double(), moments.var[0].double()
    positive = var[var > 0]
    eps = _RELATIVE_EPS * float(positive.median() if len(positive) else 1.0)
    made = BatchNorm(len(mean), eps, layout=layout, dtype=torch.float64)
    values = {"weight": (var + eps).sqrt(), "bias": mean}
    values |= {"running_mean": mean, "running_var": var}
    made.load_state_dict(values, strict=False)
    return made


def _apply_norm(layer: nn.Module, args: Any, output: Tensor) -> Any:
    """A hook that knows nothing but its layer, so that copies of a network have their own."""
    return layer._modules[NORM](output)  # type: ignore[misc]
