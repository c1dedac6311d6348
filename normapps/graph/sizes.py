"""Sizes that code holds in attributes: which attributes a forward reads, and what they may mean.

An attribute counts if the owner's forward, or a method that it calls, reads it, and if it holds an
old piece size of a split, slice or view, the list of them, or their sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from torch import nn

from .graph import Atoms, Cut


def roles(value: Any, cut: Cut) -> list[list[Atoms]]:
    """Return what the value of an attribute may be of a cut, once for each part it may play.

    Each part is the atoms behind its number, or behind each of its numbers.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        whole = [np.concatenate(cut.pieces)] if cut.pieces else []
        return [[piece] for piece in [*cut.pieces, *whole] if len(piece) == value]
    if isinstance(value, list | tuple) and list(value) == list(cut.sizes):
        return [list(cut.pieces)]
    return []


def attributes_read(model: nn.Module, cuts: Iterable[Cut]) -> dict[str, dict[str, Any]]:
    """Return, of each module that cuts, the attributes that its forward reads, with their values.

    Args:
        model: whose modules `cuts` name.
        cuts: of its graph, or of its trace.
    """
    owners = {name: model.get_submodule(name) for name in dict.fromkeys(cut.owner for cut in cuts)}
    return {
        name: {
            key: vars(owner)[key] for key in sorted(names_read(type(owner)) & vars(owner).keys())
        }
        for name, owner in owners.items()
    }


def names_read(kind: type) -> set[str]:
    """Names of attributes that a module's forward reads, itself or by methods that it calls."""
    found: set[str] = set()
    todo = ["forward"]
    while todo:
        method = getattr(kind, todo.pop(), None)
        code = _code(method)
        if code is None:
            continue
        fresh = set(_names(code)) - found
        found |= fresh
        todo += fresh
    return found


def _code(method: Any) -> CodeType | None:
    if isinstance(method, property):
        method = method.fget
    while hasattr(method, "__wrapped__"):  # decorated
        method = method.__wrapped__
    return method.__code__ if isinstance(method, FunctionType) else None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:  # comprehensions and local functions
        if isinstance(constant, CodeType):
            yield from _names(constant)
