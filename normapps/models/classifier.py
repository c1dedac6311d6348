"""The classifier of a network: the last linear layer, whatever it is called."""

from __future__ import annotations

from torch import nn

from ..errors import InputError


def classifier_name(model: nn.Module) -> str:
    """Return the name of the layer that makes the logits.

    timm's networks tell it (`get_classifier`); of others it is the last linear layer in the order
    in which they were made.

    Raises:
        InputError: there is no linear layer, or several classifiers share the output.
    """
    told = getattr(model, "get_classifier", None)
    found = told() if callable(told) else None
    if isinstance(found, tuple | list | nn.ModuleList):
        raise InputError(
            f"{type(model).__name__} has {len(found)} classifiers that share its output; give a"
            " network with one"
        )
    named = {name: module for name, module in model.named_modules() if name}
    names = [name for name, module in named.items() if module is found]
    linear = [name for name, module in named.items() if isinstance(module, nn.Linear)]
    if not isinstance(found, nn.Linear) and not linear:
        raise InputError(f"{type(model).__name__} has no linear layer that could be its classifier")
    chosen: str = names[0] if isinstance(found, nn.Linear) and names else linear[-1]
    return chosen
