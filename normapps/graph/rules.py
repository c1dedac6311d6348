"""The rules of all operations, and what is done where there is none."""

from __future__ import annotations

from torch import Tensor

from .atoms import Axes
from .call import Call, Rule
from .rules_attention import ATTENTION
from .rules_elementwise import ELEMENTWISE
from .rules_linear import LINEAR
from .rules_move import MOVEMENT
from .rules_norm import NORMALIZATION
from .rules_resample import RESAMPLING
from .rules_view import VIEWS

RULES: dict[str, Rule] = {
    **LINEAR,
    **ATTENTION,
    **NORMALIZATION,
    **ELEMENTWISE,
    **VIEWS,
    **MOVEMENT,
    **RESAMPLING,
}
"""Aten operation, without overload and trailing underscore → rule."""


def follow(call: Call) -> list[Axes]:
    """Return the axes of an operation's results, tying and pinning on the way.

    Without a rule, or where the rule's answer does not fit the results, all channels among the
    arguments stay; so do those of an argument that the rule did not look at.
    """
    rule = RULES.get(call.name)
    if rule is None:
        return give_up(call)
    try:
        found = rule(call)
    except (IndexError, KeyError, TypeError, ValueError):  # a form of the operation unknown here
        return give_up(call)
    if not _fits(call, found):
        return give_up(call)
    for tensor in list(call.unseen.values()):
        _keep(call, tensor)
    return found


def give_up(call: Call) -> list[Axes]:
    """Keep every channel that an operation reads."""
    for tensor in call.tensors:
        _keep(call, tensor)
    return [(None,) * output.dim() for output in call.outputs]


def _keep(call: Call, tensor: Tensor) -> None:
    for axis in call.axes(tensor):
        call.pin(axis, "{op} has no rule (in {where})")


def _fits(call: Call, found: list[Axes]) -> bool:
    """Say whether each axis is as long as the dimension of the result that it is for."""
    return all(
        len(axes) == output.dim()
        and all(
            axis is None or len(axis.ids) == size
            for axis, size in zip(axes, output.shape, strict=True)
        )
        for output, axes in zip(call.outputs, found, strict=False)
    )
