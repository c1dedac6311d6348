"""Flags from options: every field of an options dataclass becomes a flag of a command."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable
from functools import wraps
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer

from normapps.errors import InputError, UsageError
from normapps.options import flag

Command = Callable[..., Any]


def with_options(kind: type[Any]) -> Callable[[Command], Command]:
    """Give a command one flag for each field of the options class `kind`.

    The command keeps its own parameters and takes one more, `options: kind`. Names, defaults,
    choices and help texts come from the fields; a field that is a tuple may be given repeatedly,
    a bool has `--name` and `--no-name`, a `bool | None` too, None where neither is given. What the
    class refuses ends as a usage error, exit code 2.
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters
        kept = [parameter for name, parameter in own.items() if name != "options"]
        flags = _parameters(kind)

        @wraps(command)
        def run(**values: Any) -> Any:
            chosen = {name: values.pop(name) for name in flags}
            return command(**values, options=_build(kind, chosen))

        ours = [*kept, *flags.values()]
        run.__signature__ = inspect.Signature(ours)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in ours}
        del run.__wrapped__
        return run

    return decorate


def typed(ctx: typer.Context, kind: type[Any]) -> list[str]:
    """Return the names of the options of the class `kind` that were typed."""
    names = [each.name for each in dataclasses.fields(kind)]
    sources = {name: ctx.get_parameter_source(name) for name in names}
    return [name for name, found in sources.items() if found and found.name == "COMMANDLINE"]


def _parameters(kind: type[Any]) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(kind)
    return {
        field.name: inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_option(field, hints[field.name]),
            annotation=_annotation(field, hints[field.name]),
        )
        for field in dataclasses.fields(kind)
    }


def _option(field: dataclasses.Field[Any], hint: Any) -> Any:
    name = flag(field.name)
    others = [each for key in ("short", "also") if (each := field.metadata.get(key))]
    if hint in (bool, bool | None):
        name = f"{name}/{field.metadata.get('no') or f'--no-{name[2:]}'}"
    return typer.Option(
        list(field.default) if isinstance(field.default, tuple) else field.default,
        *[name, *others],
        help=_help(field),
        metavar=_metavar(field, hint),
        show_default=field.default is not False,
    )


def _metavar(field: dataclasses.Field[Any], hint: Any) -> str | None:
    if choices := field.metadata.get("choices"):
        return f"<{'|'.join(choices)}>"
    return f"<{get_args(hint)[0].__name__}>" if get_origin(hint) is tuple else None


def _help(field: dataclasses.Field[Any]) -> str:
    text = str(field.metadata.get("help", ""))
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if low is not None and high is not None:
        return f"{text} ({low:g} to {high:g})"
    return text


def _annotation(field: dataclasses.Field[Any], hint: Any) -> Any:
    """The type that typer parses: a tuple of any length as a list. Choices are checked by the
    options, whose line is shorter than typer's and suggests the nearest.
    """
    if get_origin(hint) in (Union, types.UnionType):
        inner = [_annotation(field, part) for part in get_args(hint) if part is not type(None)]
        return inner[0] | None
    if get_origin(hint) is tuple:
        return list[_annotation(field, get_args(hint)[0])]  # type: ignore[misc]
    return hint


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    try:
        return kind(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
        )
    except InputError as error:
        raise UsageError(str(error)) from error
