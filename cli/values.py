"""What the user typed as Python values, without pydantic.

typer 0.29 converts every value, defaults too, by a pydantic model of its own; importing pydantic
and making the models takes longer than painting a picture. Our flags are texts, numbers, switches
and paths, which Python's own types read. What those refuse goes to typer, whose message the user
gets; so does everything where typer works in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

_KINDS = (str, int, float, bool, Path)
_ASKED = ("min", "max", "parser", "exists", "resolve_path")
"""What a flag may ask of typer; where one is set, typer converts."""


def read_plainly(command: Any) -> None:
    """Let a command of typer, and the commands in it, convert values by Python's own types."""
    own = command.get_params  # not `params`: typer makes --help when it is first asked for
    command.get_params = lambda ctx: [plain(param) for param in own(ctx)]
    for name in getattr(command, "commands", ()):
        read_plainly(command.commands[name])


def plain(param: Any) -> Any:
    """Return a parameter of typer, which from now on converts by Python's own types if it can."""
    kind = _plain_kind(param)
    if kind is not None and not isinstance(param.get_runtime_param, _Plain):
        param.get_runtime_param = _Plain(kind, param.get_runtime_param)
    return param


def _plain_kind(param: Any) -> Any:
    """The type of a parameter (of one of its values, if it takes many), None where it is typer's
    to convert.
    """
    descriptor = getattr(param, "type_descriptor", None)
    if descriptor is None or not hasattr(param, "get_runtime_param"):
        return None
    kind = descriptor.annotation
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
    asked = [getattr(descriptor.parameter_info, name, None) for name in _ASKED]
    return kind if kind in _KINDS and not any(each not in (None, False) for each in asked) else None


class _Plain:
    """In place of typer's own converter, which is made when it is needed."""

    def __init__(self, kind: Any, others: Callable[[], Any]) -> None:
        self._kind, self._others = kind, others

    def __call__(self) -> _Plain:
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Convert what was typed, or a default."""
        is_many = param.multiple or param.nargs == -1
        if value is None:
            return () if is_many else None
        try:
            return [self._read(each) for each in value] if is_many else self._read(value)
        except (ValueError, TypeError):
            return self._others().coerce(value, param=param, ctx=ctx)

    def _read(self, value: Any) -> Any:
        if isinstance(value, self._kind):
            return value
        if self._kind is bool or not isinstance(value, str):
            raise TypeError
        return self._kind(value)
