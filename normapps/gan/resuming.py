"""What `--resume` takes of the options of a call; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ..errors import UsageError
from ..options import flag

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def resumed_options(
    saved: Options, given: Options, names: Sequence[str], fixed: Sequence[str]
) -> Options:
    """Return the options with which `--resume -o RUN` goes on: the run's own.

    Of those given, an option that may change is taken over, and one that may not is refused unless
    the run has the same. `stop_after` and `overwrite` are of one call and not inherited.

    Args:
        saved: the options that it was started with.
        given: the options of this call; they have a `stop_after` and an `overwrite`.
        names: which of them were given, and not left at their defaults.
        fixed: names of the options that a resumed run must share.

    Raises:
        UsageError: naming the first flag that would make it another run, or `overwrite`.
    """
    values = vars(given)
    if values["overwrite"]:
        raise UsageError("--resume --overwrite: contradict each other; leave one out")
    for name in (name for name in names if name in fixed):
        before = getattr(saved, name)
        if values[name] != before:
            raise UsageError(
                f"--resume {flag(name)} {values[name]}: the run was started with {before}; "
                "leave it out, or begin another run"
            )
    free = {name: values[name] for name in (*names, "stop_after") if name not in fixed}
    return replace(saved, **{**free, "overwrite": False})
