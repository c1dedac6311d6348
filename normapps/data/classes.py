"""The order of class names, which is what numbers a network's outputs."""

from __future__ import annotations

from collections.abc import Iterable


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once: numbers by their value, words by the alphabet.

    Every command numbers the classes of folders and lists in this order, those that train as
    those that judge.
    """
    found = sorted(set(names))
    return tuple(sorted(found, key=int) if all(map(str.isdecimal, found)) else found)
