"""Optimizers by name, with what normalizes their gradients: one maker for torch's and timm's."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from importlib import import_module
from math import isfinite
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import InputError, unknown
from ..norm.gradient import normalize_gradients_
from ..norm.layers.base import NormLayer

OPTIMIZERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sgd": ("torch.optim", "SGD", {"momentum": 0.9}),
    "adam": ("torch.optim", "Adam", {}),
    "adamw": ("torch.optim", "AdamW", {}),
    "lars": ("timm.optim", "Lars", {"momentum": 0.9}),
    "lamb": ("timm.optim", "Lamb", {}),
    "adamp": ("timm.optim", "AdamP", {}),
}
"""Name → module, class, and the options that differ from its own defaults."""

Parameters = nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]]
"""A network, parameters, or groups of them as torch's optimizers take them."""


def create_optimizer(
    name: str,
    parameters: Parameters,
    *,
    lr: float,
    weight_decay: float = 0.0,
    centralize: bool = False,
    block_normalize: bool = False,
    clip: float | None = None,
    exclude: str | Sequence[str] = (),
    **options: Any,
) -> Optimizer:
    """Make an optimizer, and normalize the gradients before each of its steps.

    SGD with momentum 0.9, Adam, AdamW; LARS (You et al. 2017), LAMB (You et al. 2020) and AdamP
    (Heo et al. 2021), which are timm's. Gradients are clipped, centred and divided by their length
    in this order, before weight decay is added: see `norm.gradient`. A copy of the optimizer has
    no such hooks; its state dict fits any other of the name.

    Args:
        name: a key of `OPTIMIZERS`.
        parameters: of a network those that require a gradient, of which norm layers, biases and
            other vectors do not decay; of parameters all decay; groups may say it themselves.
        lr: learning rate. LARS multiplies it by 0.001·‖w‖/‖g‖ where it adapts, so there it wants 1
            or more, or a larger `trust_coeff`.
        weight_decay: LARS and LAMB adapt the rate of what decays only, unless `always_adapt`.
        centralize: gradients without the mean of each row (Yong et al. 2020).
        block_normalize: gradients of length 1, a tensor (Yu et al. 2017).
        clip: adaptive clipping (Brock et al. 2021) at this ratio; 0.01 is the paper's.
        exclude: shell patterns of the network's parameters whose gradients are left alone; the
            clipping's paper leaves the classifier.
        options: the optimizer's own, as `momentum`, `betas` or `foreach`.

    Raises:
        InputError: an unknown name or option, a value out of range, or nothing to train.
    """
    if not (isfinite(lr) and lr >= 0 and isfinite(weight_decay) and weight_decay >= 0):
        raise InputError(f"lr {lr}, weight_decay {weight_decay}: must be 0 or above, and finite")
    make: Any = optimizer_class(name)
    _check_options(name, make, options)
    module = parameters if isinstance(parameters, nn.Module) else None
    if module is not None:
        groups: list[Any] = decay_groups(module, weight_decay)
    else:
        groups = list(parameters)  # type: ignore[arg-type]
    if not groups:
        raise InputError(f"optimizer '{name}': no parameters that require a gradient")
    chosen = {**OPTIMIZERS[name][2], "weight_decay": weight_decay, **options}
    try:
        optimizer: Optimizer = make(groups, lr=lr, **chosen)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer '{name}': {error}") from error
    edits: dict[str, Any] = {"centralize": centralize, "block_normalize": block_normalize}
    normalize_gradients_(optimizer, module, clip=clip, exclude=exclude, **edits)
    return optimizer


def optimizer_class(name: str) -> type[Optimizer]:
    """Return the class of a name of `OPTIMIZERS`; timm's are imported behind the guard.

    Raises:
        InputError: an unknown name.
    """
    from ..models.backends import guard

    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    module, cls, _ = OPTIMIZERS[name]
    guard()
    found: type[Optimizer] = getattr(import_module(module), cls)
    return found


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters that require a gradient, in a group that decays and one that does not.

    Args:
        network: what is trained.
        weight_decay: of the first group; see `undecayed`.
    """
    spared = undecayed(network)
    trained = [each for each in network.parameters() if each.requires_grad]
    groups = [
        {"params": [each for each in trained if id(each) not in spared]},
        {"params": [each for each in trained if id(each) in spared]},
    ]
    decays = ({"weight_decay": weight_decay}, {"weight_decay": 0.0})
    return [group | decay for group, decay in zip(groups, decays, strict=True) if group["params"]]


def undecayed(network: nn.Module) -> set[int]:
    """Return the ids of what does not decay: norm layers' parameters, biases, other vectors."""
    of_norms = {
        id(each)
        for module in network.modules()
        if isinstance(module, NormLayer)
        for each in module.parameters(recurse=False)
    }
    return of_norms | {id(each) for each in network.parameters() if each.dim() < 2}


def _check_options(name: str, make: Any, options: dict[str, Any]) -> None:
    known = set(inspect.signature(make.__init__).parameters) - {"self", "params", "lr"}
    for option in options:
        if option not in known:
            raise unknown(f"option of optimizer '{name}'", option, known)
