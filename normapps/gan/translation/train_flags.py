"""The flags of `translate train`, which trains without pairs or, given --maps, on pairs.

Both kinds have options of their own class; the command has the flags of both, and what was typed
decides which class they fill. Loads no torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any, get_type_hints

from ...errors import InputError, UsageError
from ...options import flag
from .options import FrameOptions, TranslateOptions, resumed
from .paired_options import PairedOptions

_KINDS = {"--source": TranslateOptions, "--maps": PairedOptions}
"""The flag that chooses a kind of training, and the options of that kind."""


def chosen(values: Any, typed: Sequence[str], folder: Path, resume: bool) -> FrameOptions:
    """Return the options of the training that was asked for: a class of `_KINDS`, filled.

    Args:
        values: an instance of `TrainFlags`.
        typed: the names of those that were given; the others have their class's defaults.
        folder: the run's.
        resume: go on with the options that the run has, see `resumed`.

    Raises:
        UsageError: both kinds are asked for, or a flag that is the other's, or a value that the
            class refuses.
        InputError: nothing to resume.
    """
    kind = _resumed_kind(folder) if resume else _kind(typed)
    names = {each.name for each in dataclasses.fields(kind)}
    for name in typed:
        if name not in names:
            ours, other = (own for own in sorted(_KINDS, key=lambda own: _KINDS[own] is not kind))
            raise UsageError(f"{flag(name)}: goes with {other}, not with {ours}; leave it out")
    try:
        options = kind(**{name: getattr(values, name) for name in typed})
    except InputError as error:
        raise UsageError(str(error)) from error
    return resumed(folder, options, typed) if resume else options


def _kind(typed: Sequence[str]) -> type[FrameOptions]:
    if "maps" in typed and "source" in typed:
        raise UsageError("--maps and --source: pairs of a map and a picture, or two domains?")
    if "maps" not in typed and "source" not in typed:
        raise UsageError("--source or --maps is missing; name a folder, zip or tar of pictures")
    return PairedOptions if "maps" in typed else TranslateOptions


def _resumed_kind(folder: Path) -> type[FrameOptions]:
    """The kind of the run that a folder holds; `resumed` says what is wrong where there is none."""
    try:
        saved = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return TranslateOptions
    return PairedOptions if isinstance(saved, dict) and "maps" in saved else TranslateOptions


def _merged() -> list[tuple[str, Any, Any]]:
    """The fields of both classes; help texts say which are of one kind only, or differ."""
    both = [{each.name: each for each in dataclasses.fields(kind)} for kind in _KINDS.values()]
    hints = {name: hint for kind in _KINDS.values() for name, hint in get_type_hints(kind).items()}
    merged = []
    for name in both[0] | both[1]:
        first, second = (known.get(name) for known in both)
        field = first or second
        if field is not None:
            text = field.metadata["help"] + _note(first, second)
            made = dataclasses.field(
                default=field.default, metadata={**field.metadata, "help": text}
            )
            merged.append((name, hints[name], made))
    return merged


def _note(first: Field[Any] | None, second: Field[Any] | None) -> str:
    if first is not None and second is not None:
        return "" if first.default == second.default else f" [with --maps: {second.default}]"
    kind, field = ("--maps", second) if first is None else ("--source", first)
    return "" if field is None or flag(field.name) in _KINDS else f" [with {kind}]"


TrainFlags = dataclasses.make_dataclass("TrainFlags", _merged(), frozen=True)
"""Every option of both kinds, not checked: `chosen` makes checked ones of those that were given."""
