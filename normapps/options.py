"""Options of commands and trainers: frozen dataclasses from which the flags come.

A field is declared with `option(default, help, ...)`; `cli` turns every field into a flag of the
same name, so that name, default and help text stand in one place.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from .errors import InputError, unknown

Options = TypeVar("Options")


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    short: str = "",
    also: str = "",
    no: str = "",
    low: float | None = None,
    high: float | None = None,
    pattern: str = "",
) -> Any:
    """Declare one option: a dataclass field with what the command line needs to know.

    Args:
        default: the value when the flag is not given; a tuple makes the flag repeatable, and
            choices and range then hold for each of its values.
        help: one line for `--help`.
        choices: the allowed values of a string option.
        short: a one-letter flag such as `-o`.
        also: a second long flag, by which others call the same.
        no: the flag that says no to a bool, such as `--per-tensor`; without it `--no-NAME`.
        low, high: the closed range of a number.
        pattern: regular expression that the whole text must match; `help` says it in words.
    """
    names = {"help": help, "short": short, "also": also, "no": no}
    values = {"choices": choices, "low": low, "high": high, "pattern": pattern}
    return dataclasses.field(default=default, metadata={**names, **values})


def device_option() -> Any:
    """Declare `--device`; whether the machine has it, `engine.device` finds out."""
    return option("auto", "auto, cpu, cuda, cuda:N or mps", pattern=r"auto|cpu|mps|cuda(:[0-9]+)?")


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
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None:
                _check_choice(field, each)
                _check_pattern(field, each)
                _check_range(field, each)


def _check_choice(field: dataclasses.Field[Any], value: Any) -> None:
    choices = field.metadata.get("choices", ())
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InputError(f"{flag(field.name)} {value!r}: choose one of {', '.join(choices)}{hint}")


def _check_pattern(field: dataclasses.Field[Any], value: Any) -> None:
    pattern = field.metadata.get("pattern", "")
    if pattern and not re.fullmatch(pattern, str(value)):
        raise InputError(f"{flag(field.name)} {value!r}: must be {field.metadata['help']}")


def _check_range(field: dataclasses.Field[Any], value: Any) -> None:
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if low is None and high is None:
        return
    if not isinstance(value, (int, float)):
        raise InputError(f"{flag(field.name)} {value!r}: must be a number")
    # so written that nan is refused, too
    if (low is None or value >= low) and (high is None or value <= high):
        return
    want = f"at least {low}" if high is None else f"at most {high}"
    if low is not None and high is not None:
        want = f"between {low} and {high}"
    raise InputError(f"{flag(field.name)} {value}: must be {want}")


def to_json(options: Any) -> str:
    """Return the options as indented JSON, to be saved beside a result."""
    return json.dumps(dataclasses.asdict(options), indent=2, default=str) + "\n"


def from_json(kind: type[Options], path: Path) -> Options:
    """Read options of the class `kind` that `to_json` wrote; what a file lacks has its default.

    Raises:
        InputError: naming the file: it is missing, is not a JSON object, or holds a field that
            `kind` does not know or a value that it refuses.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as options ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: cannot be read as options (no JSON object)")
    try:
        hints = get_type_hints(kind)
        for name in values.keys() - hints.keys():
            raise unknown("option", name, hints)
        return kind(**{name: _revived(value, hints[name]) for name, value in values.items()})
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: does not fit {kind.__name__} ({error})") from error


def _revived(value: Any, hint: Any) -> Any:
    """Turn what JSON makes of a tuple or a path back into one."""
    inner = get_args(hint)
    if isinstance(value, list):
        return tuple(_revived(each, inner[0] if inner else Any) for each in value)
    is_path = isinstance(value, str) and (hint is Path or (Path in inner and str not in inner))
    return Path(value) if is_path else value
