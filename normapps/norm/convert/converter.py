"""Converter: other norm layers in any model, without losing what the old ones carried.

A layer of ours stands exactly where the old one stood: the same parameters and buffers, the same
activation and dropout, the same hooks; so no key of a diagonal layer's state dict changes, and an
optimizer made before goes on working.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError, unknown
from ..nesting import detached_copy
from ..registry import list_norms, norm_options
from ..undo import Undo
from .fusing import refuse_fusing_
from .originals import restore_original
from .placing import place_
from .roominess import shapes_at, too_small
from .selection import Patterns, select
from .sites import KINDS, Site, class_name, find_sites
from .successor import Successor, succeed

INITS = ("carry", "default")


class Change(NamedTuple):
    """What became of one layer: its name, its class before and after, and what to know of it."""

    name: str
    before: str
    after: str
    note: str


class Conversion(Undo):
    """What a conversion did, and the way back.

    `undo()`, or the end of a `with` block, brings the original layers back with the very values
    that they had, also after training. It also is its own undo handle: calling it does the same.

    Attributes:
        report: one `Change` a layer, in the model's order, of layers left as they are too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.report: list[Change] = []

    def undo(self) -> None:
        """Bring the original layers back. A second call does nothing."""
        self()

    @property
    def converted(self) -> int:
        """The number of layers that were replaced."""
        return sum(change.before != change.after for change in self.report)

    def __enter__(self) -> Conversion:
        return self

    def __str__(self) -> str:
        rows = [("layer", "was", "is", "note"), *self.report]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, f"{self.converted} of {len(self.report)} layers replaced"])


def convert_norm(
    model: nn.Module,
    to: str,
    *,
    match: str | Sequence[str] = "batch",
    include: Patterns = (),
    exclude: Patterns = (),
    init: str = "carry",
    example: Tensor | Sequence[Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Return a deep copy of a model with other norm layers; the model may be a norm layer itself.

    Args:
        model: any network of torch's, timm's, torchvision's or our norm layers. A layer that only
            derives from one of those is refused by name, unless excluded.
        to: a name of `list_norms()`, or `torch`: back to the classes that layers of ours came from
            (torch's own for layers that came from none), which takes all layers of ours whatever
            `match` says.
        match: the kinds to replace: `batch`, `layer`, `group`, `instance`, `rms`, the name of a
            layer of ours, or `all`. A layer of ours also is of the kind that it came from.
        include, exclude: shell patterns of module names; a pattern also takes what is inside of a
            module. Each must match a norm layer of the kinds.
        init: `carry` scale, shift and statistics as far as the new layer has them (a bank gets
            them in every row, a covariance has the variances as its diagonal); `default` starts
            them anew. eps stays, but for whitening, where it is a ridge on the covariance, and so
            do momentum, training flag, requires_grad, device, dtype, hooks, a frozen state, and a
            missing scale or shift.
        example: an input of the model, or a tuple of its inputs. Layers that would have too little
            to measure on it are left as they are and named in the report of `convert_norm_`.
        options: options of the new layers, such as `group_size`.

    The auxiliary layers of timm's `SplitBatchNorm2d` stay beside its successor under their keys,
    unused and unchanged, and are in use again after `to="torch"`. Blocks whose `fuse` or
    `reparameterize` folds batch norms raise from it as long as they have layers that cannot be
    folded.

    Raises:
        InputError: an unknown name, kind, pattern or option; a layer that cannot be read; no layer
            to replace; for `torch`, a layer that torch has no class for.

    Example:
        >>> convert_norm(model, "iternorm", group_size=32, example=images)
    """
    holder = nn.Module()
    holder.model = detached_copy(model)
    steps = _planned(holder.model, _Choice(to, match, include, exclude, init, options), example)
    for site, *_ in steps:
        if site.module is holder.model:
            site.places.append((holder, "model"))
    place_(holder, _plans(steps))
    refuse_fusing_(holder.model)
    return holder.model


def convert_norm_(
    model: nn.Module,
    to: str,
    *,
    match: str | Sequence[str] = "batch",
    include: Patterns = (),
    exclude: Patterns = (),
    init: str = "carry",
    example: Tensor | Sequence[Any] | None = None,
    **options: Any,
) -> Conversion:
    """Replace norm layers in place; see `convert_norm` for the arguments.

    Parameters of equal shape stay the same objects, also under `init="default"`, which writes
    into them.

    Raises:
        InputError: as `convert_norm`, and if the model itself is a norm layer. The model is as it
            was then.

    Example:
        >>> with convert_norm_(model, "batch") as conversion:
        ...     print(conversion)
    """
    return replace_(
        model, _planned(model, _Choice(to, match, include, exclude, init, options), example)
    )


class Step(NamedTuple):
    """A site of a model, what is to stand there (None: what is there), and a note about it."""

    site: Site
    successor: Successor | None
    note: str = ""

    def change(self) -> Change:
        """Return the line of the report."""
        site, successor = self.site, self.successor
        before = class_name(site.module)
        after = before if successor is None else class_name(successor.layer)
        shared = f"also {', '.join(site.names[1:])}" if site.names[1:] else ""
        notes = [shared, self.note, *(successor.notes if successor else ())]
        return Change(site.name, before, after, "; ".join(filter(None, notes)))


def replace_(model: nn.Module, steps: Sequence[Step]) -> Conversion:
    """Take the steps of a conversion.

    Raises:
        InputError: the model itself is to be replaced.
    """
    if any(site.module is model and successor for site, successor, _ in steps):
        raise InputError(
            f"the model itself is the norm layer {type(model).__name__} and cannot be replaced in "
            "place; convert_norm returns a converted copy"
        )
    conversion = Conversion()
    conversion.report += [step.change() for step in steps]
    place_(model, _plans(steps), conversion)
    conversion.add(refuse_fusing_(model))
    return conversion


def _plans(steps: Sequence[Step]) -> list[tuple[Site, Successor]]:
    return [(site, successor) for site, successor, _ in steps if successor is not None]


class _Choice(NamedTuple):
    """What a caller asked for."""

    to: str
    match: str | Sequence[str]
    include: Patterns
    exclude: Patterns
    init: str
    options: dict[str, Any]

    def check(self) -> None:
        if self.init not in INITS:
            raise unknown("init", self.init, INITS)
        if self.to == "torch":
            if self.options:
                raise InputError(f"'torch' takes no options, got {', '.join(self.options)}")
            return
        if self.to not in list_norms():
            raise unknown("norm", self.to, [*list_norms(), "torch"])
        for option in self.options:
            if option not in norm_options(self.to):
                raise unknown(f"option of norm '{self.to}'", option, norm_options(self.to))

    def kinds(self) -> tuple[str, ...]:
        kinds = (self.match,) if isinstance(self.match, str) else tuple(self.match)
        known = {*KINDS.values(), *list_norms(), "all"}
        for kind in kinds:
            if kind not in known:
                raise unknown("kind of norm", kind, known)
        return kinds


def _planned(
    model: nn.Module, chosen: _Choice, example: Tensor | Sequence[Any] | None
) -> list[Step]:
    """What is to become of each layer that the caller means; nothing is changed yet."""
    chosen.check()
    sites = _wanted(model, chosen)
    shapes = shapes_at(model, sites, None if chosen.to == "torch" else example)
    return [_step(site, chosen, shapes.get(id(site.module))) for site in sites]


def _wanted(model: nn.Module, chosen: _Choice) -> list[Site]:
    sites = find_sites(model)
    if chosen.to == "torch":
        ours = [site for site in sites if site.is_ours]
        return select(ours, ("all",), chosen.include, chosen.exclude)
    wanted = select(sites, chosen.kinds(), chosen.include, chosen.exclude)
    if not wanted:
        kinds = sorted({kind for site in sites for kind in site.kinds & {*KINDS.values()}})
        there = f"match {', '.join(kinds)}, which it has" if kinds else "it has no norm layer"
        if all_of_kind := select(sites, chosen.kinds(), (), ()):
            raise InputError(f"include and exclude leave none of {len(all_of_kind)} norm layers")
        raise InputError(f"no norm layer of kind {chosen.match!r} in the model; {there}")
    return wanted


def _step(site: Site, chosen: _Choice, shapes: Sequence[torch.Size] | None) -> Step:
    if site.is_ours and site.norm == chosen.to and not chosen.options and chosen.init == "carry":
        return Step(site, None, "is one already")
    if chosen.to == "torch":
        return Step(site, restore_original(site))
    reason = too_small(site, chosen.to, chosen.options, shapes or ())
    if reason:
        return Step(site, None, f"left as it is: {reason}")
    note = "not reached by the example" if shapes == [] else ""
    return Step(site, succeed(site, chosen.to, chosen.init, chosen.options), note)
