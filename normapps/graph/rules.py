"""The rules of all operations, and what is done where there is none."""

from __future__ import annotations

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

    Without a rule all channels among the arguments stay.
    """
    rule = RULES.get(call.name)
    if rule is not None:
        return rule(call)
    return give_up(call)


def give_up(call: Call) -> list[Axes]:
    """Keep every channel that an operation reads."""
    for tensor in call.tensors:
        for axis in call.axes(tensor):
            call.pin(axis, "{op} has no rule (in {where})")
    return [(None,) * output.dim() for output in call.outputs]
