"""Options of commands and trainers: frozen dataclasses from which the flags come.

A field is declared with `option(default, help, ...)`; `cli` turns every field into a flag of the
same name, so that name, default and help text stand in one place.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError

Options = TypeVar("Options")


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    short: str = "",
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """Declare one option: a dataclass field with what the command line needs to know.

    Args:
        default: the value when the flag is not given; a list makes the flag repeatable.
        help: one line for `--help`.
        choices: the allowed values of a string option.
        short: a one-letter flag such as `-o`.
        low, high: the closed range of a number.
    """
    metadata = {"help": help, "choices": choices, "short": short, "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """The command-line flag of a field: `style_size` → `--style-size`."""
    return "--" + name.replace("_", "-")


def validate(options: Any) -> None:
    """Check every field against its choices and range; call it in `__post_init__`.

    Raises:
        InputError: naming the flag, the value and what would be right.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is None:
            continue
        _check_choice(field, value)
        _check_range(field, value)


def _check_choice(field: dataclasses.Field[Any], value: Any) -> None:
    choices = field.metadata.get("choices", ())
    if choices and value not in choices:
        raise InputError(f"{flag(field.name)} {value!r}: choose one of {', '.join(choices)}")


def _check_range(field: dataclasses.Field[Any], value: Any) -> None:
    low, high = field.metadata.get("low"), field.metadata.get("high")
    too_low = low is not None and value < low
    if not (too_low or (high is not None and value > high)):
        return
    want = f"at least {low}" if high is None else f"at most {high}"
    if low is not None and high is not None:
        want = f"between {low} and {high}"
    raise InputError(f"{flag(field.name)} {value}: must be {want}")


def to_json(options: Any) -> str:
    """Return the options as indented JSON, to be saved beside a result."""
    return json.dumps(dataclasses.asdict(options), indent=2, default=str) + "\n"


def from_json(kind: type[Options], path: Path) -> Options:
    """Read options of the class `kind` that `to_json` wrote.

    Raises:
        InputError: the file is missing, is not JSON, or holds fields that `kind` does not know.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as options ({error})") from error
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise InputError(f"{path}: does not fit {kind.__name__} ({error})") from error
