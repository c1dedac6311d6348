"""The classifier of a network: the last linear layer, whatever it is called."""

from __future__ import annotations

from torch import nn

from ..errors import InputError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def classifier_name(model: nn.Module) -> str:
    """Return the name of the layer that makes the logits.

    timm's networks tell it (`get_classifier`): a linear layer, the last one of several, or a
    convolution. Of others it is the last linear layer in the order in which they were made.

    Raises:
        InputError: there is none, or several classifiers share the output.
    """
    told = getattr(model, "get_classifier", None)
    found = told() if callable(told) else None
    if isinstance(found, tuple | list | nn.ModuleList):
        raise InputError(
            f"{type(model).__name__} has {len(found)} classifiers that share its output; give a"
            " network with one"
        )
    if isinstance(found, nn.Identity):
        raise InputError(f"{type(model).__name__} has no classifier: it was made with 0 classes")
    named = {name: module for name, module in model.named_modules() if name}
    within = {id(each) for each in (found if isinstance(found, nn.Module) else model).modules()}
    parts = [name for name, module in named.items() if id(module) in within]
    linear = [name for name in parts if isinstance(named[name], nn.Linear)]
    told = [name for name in parts if named[name] is found and isinstance(found, _CONVOLUTIONS)]
    if not linear and not told:
        raise InputError(f"{type(model).__name__} has no linear layer that could be its classifier")
    chosen: str = (linear or told)[-1]
    return chosen
