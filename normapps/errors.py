"""The one base class of everything this package raises on purpose."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NormappsError(Exception):
    """Something the caller can mend; the message is one line that says what and how."""


class InputError(NormappsError, ValueError):
    """An argument, option or file content that cannot be used."""


class UsageError(NormappsError):
    """Options that contradict each other; the command line exits with code 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Make the error for an unknown name, with the nearest known one.

    Returns the exception (to be raised by the caller): `unknown norm 'bacth'; did you mean
    'batch'?`, or the known names, twelve at most, where none is near.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    more = f", … ({len(names)} in all)" if len(names) > 12 else ""
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names[:12])}{more}"
    return InputError(f"unknown {kind} '{name}'; {hint}")
