"""Plans: each norm layer's way into its layers, chosen first and taken then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..norm.convert.placing import place_
from ..norm.convert.sites import Site
from ..norm.convert.successor import Successor, share_hooks
from ..norm.layers.whitening import Whitening
from ..norm.moments import Moments
from ..norm.partition import BATCH
from ..norm.undo import Undo
from .fold_affine import Affine, affine_of, reason_against
from .fold_layers import change_inputs_, change_outputs_, is_blockwise, pads_with_zeros
from .fold_places import Finder, Place, StaysError


@dataclass(frozen=True, eq=False)
class Plan:
    """One norm layer's way into its layers; without a place it becomes a layer itself."""

    site: Site
    affine: Affine
    place: Place | None


def planned(site: Site, finder: Finder) -> Plan:
    """Choose where a norm layer goes: behind a layer, else before some, else alone.

    Raises:
        StaysError: nowhere; says why.
    """
    if why := reason_against(site):
        raise StaysError(why)
    affine = affine_of(site)
    reasons = []
    for choose in (_after, _before):
        try:
            return Plan(site, affine, choose(site, affine, finder))
        except StaysError as error:
            reasons.append(str(error))
    if isinstance(site.module, Whitening):
        return Plan(site, affine, None)
    raise StaysError("; ".join(dict.fromkeys(reasons)))


def apply_(model: nn.Module, plans: Sequence[Plan], statistics: dict[str, Moments]) -> Undo:
    """Fold norm layers as planned.

    Args:
        model: which the plans are of.
        plans: in any order.
        statistics: gets an entry a layer that a norm stood behind, without averages between.

    Returns:
        The way back, of the statistics too.
    """
    undo = Undo()
    for plan in plans:
        for name, index in plan.place.channels.items() if plan.place else ():
            layer: Any = model.get_submodule(name)
            if plan.place is not None and plan.place.where == "after":
                change_outputs_(layer, plan.affine.at(index), undo)
                _note_(statistics, name, plan, undo)
            else:
                change_inputs_(layer, plan.affine.at(index), undo)
    place_(model, [(plan.site, Successor(_successor(plan))) for plan in plans], undo)
    return undo


def _after(site: Site, affine: Affine, finder: Finder) -> Place:
    place = finder.after(site)
    for name, index in place.channels.items():
        if affine.is_full and not _is_order(index, len(affine.shift)):
            raise StaysError("mixes the outputs of several layers, or a part of one's")
        if not is_blockwise(finder.layers[name], affine.at(index)):
            raise StaysError(f"mixes channels across the groups of '{name}'")
    return place


def _before(site: Site, affine: Affine, finder: Finder) -> Place:
    if _carried(site.module):
        raise StaysError("has an activation behind it")
    place = finder.before(site)
    for name, index in place.channels.items():
        layer = finder.layers[name]
        if affine.is_full and not _is_order(index, len(affine.shift)):
            raise StaysError(f"mixes channels that '{name}' does not read once each")
        if not is_blockwise(layer, affine.at(index)):
            raise StaysError(f"mixes channels across the groups of '{name}'")
        if bool(affine.shift.any()) and pads_with_zeros(layer):
            raise StaysError(f"'{name}' pads with zeros, where it would add its shift")
    return place


def _is_order(index: torch.Tensor, count: int) -> bool:
    return index.sort().values.equal(torch.arange(count))


def _successor(plan: Plan) -> nn.Module:
    layer: Any = plan.site.module
    if plan.place is None:
        made: nn.Module = layer.fold()
        return made
    return _rest(layer)


def _rest(layer: nn.Module) -> nn.Module:
    """What stands in a norm layer's place when it is folded."""
    pieces = _carried(layer)
    hooked = any(value for name, value in vars(layer).items() if "hooks" in name)
    if len(pieces) == 1 and not hooked:
        return pieces[0]  # in its own mode
    made: nn.Module = nn.Sequential(*pieces) if hooked or pieces else nn.Identity()
    if hooked:
        share_hooks(layer, made)
    made.training = layer.training
    return made


def _carried(layer: nn.Module) -> list[nn.Module]:
    """Dropout and activation that a norm layer carries."""
    pieces = [layer._modules.get(name) for name in ("drop", "act")]
    return [each for each in pieces if each is not None and not isinstance(each, nn.Identity)]


def _note_(statistics: dict[str, Moments], name: str, plan: Plan, undo: Undo) -> None:
    """Note the moments of what a layer gives now, or that they are not known."""
    before = statistics.pop(name, None)
    undo.add(lambda: _put(statistics, name, before))
    if plan.place is None or plan.place.is_averaged:
        return
    affine = plan.affine.at(plan.place.channels[name])
    if bool(affine.mean.isfinite().all()):
        count = torch.zeros(1, dtype=torch.float64)
        statistics[name] = Moments(count, affine.mean[None], affine.var[None], None, BATCH)


def _put(statistics: dict[str, Moments], name: str, value: Moments | None) -> None:
    statistics.pop(name, None)
    if value is not None:
        statistics[name] = value
