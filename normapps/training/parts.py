"""Parts of a network: which one learns, and its batch norms."""

from __future__ import annotations

from torch import nn

from ..errors import InputError, unknown
from ..models.classifier import classifier_name
from ..norm.convert.sites import find_sites
from .options import TRAINED


def free_(model: nn.Module, trained: str) -> None:
    """Let a part of a network require gradients, and nothing else; `all` changes nothing.

    Args:
        model: changed in place.
        trained: one of `TRAINED`; `norm` and `head` are the norm layers with the classifier, and
            the classifier alone.

    Raises:
        InputError: an unknown part, no classifier, or no norm layer to train.
    """
    if trained not in TRAINED:
        raise unknown("part to train", trained, TRAINED)
    if trained == "all":
        return
    sites = find_sites(model)
    if trained == "norm" and not sites:
        raise InputError(f"{type(model).__name__} has no norm layer to train; --train head or all")
    head = model.get_submodule(classifier_name(model))
    model.requires_grad_(False)
    head.requires_grad_(True)
    for site in sites if trained == "norm" else ():
        site.module.requires_grad_(True)


def batch_norms(model: nn.Module) -> list[str]:
    """Return the names of a network's batch norms in its order, without what was one once."""
    return [
        site.name
        for site in find_sites(model)
        if "batch" in site.kinds and not (site.is_ours and site.norm != "batch")
    ]
