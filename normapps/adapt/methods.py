"""The test-time methods by name: what there is, and how to make one."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from ..errors import unknown
from .online.base import Online


@dataclass(frozen=True)
class Method:
    """A test-time method.

    Attributes:
        name: of the method and of the function that makes it.
        paper: authors and year.
        kind: `none`, `statistics` (no gradient), `gradient` or `output` (no parameter changes).
        module: in `normapps.adapt.online`, which is imported when the method is made.
        needs: layers that a network must have: `batch` norms, any `norm`, or nothing.
    """

    name: str
    paper: str
    kind: str
    module: str
    needs: str

    @property
    def make(self) -> Callable[..., Online]:
        """The function that makes the method from any network, of which it takes a copy."""
        found: Callable[..., Online]
        found = getattr(import_module(f".online.{self.module}", __package__), self.name)
        return found

    @property
    def options(self) -> dict[str, Any]:
        """Its options and their defaults (`inspect.Parameter.empty`: must be given)."""
        parameters = list(inspect.signature(self.make).parameters.values())[1:]
        return {each.name: each.default for each in parameters}


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("source", "no adaptation", "none", "statistics", ""),
        Method("adabn", "Li et al. 2017, Nado et al. 2020", "statistics", "statistics", "batch"),
        Method("prior", "Schneider et al. 2020", "statistics", "statistics", "batch"),
        Method("ema", "Yuan et al. 2023", "statistics", "statistics", "batch"),
        Method("cumulative", "Schneider et al. 2020, pooled", "statistics", "statistics", "batch"),
        Method("tent", "Wang et al. 2021", "gradient", "tent", "norm"),
        Method("eata", "Niu et al. 2022", "gradient", "eata", "norm"),
        Method("sar", "Niu et al. 2023", "gradient", "sar", "norm"),
        Method("cotta", "Wang et al. 2022", "gradient", "cotta", "norm"),
        Method("rotta", "Yuan et al. 2023", "gradient", "rotta", "batch"),
        Method("lame", "Boudiaf et al. 2022", "output", "lame", ""),
    )
}
"""Name → method. A new method needs a line here and its file in `online/`."""


def create_method(name: str, model: nn.Module, **options: Any) -> Online:
    """Make a test-time method by name.

    Args:
        name: one of `list_methods()`.
        model: any network; a copy of it adapts.
        options: the method's own, such as `momentum`; see `METHODS[name].options`.

    Raises:
        InputError: an unknown name or option, the nearest known one is suggested; a model that
            the method cannot adapt.

    Example:
        >>> online = create_method("prior", model, n=16)
        >>> logits = online(batch)
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    method = METHODS[name]
    known = method.options
    for option in options:
        if option not in known:
            raise unknown(f"option of method '{name}'", option, known)
    return method.make(model, **options)


def list_methods(pattern: str = "*") -> tuple[str, ...]:
    """Return the names that match a shell pattern, in the order of the registry."""
    return tuple(fnmatch.filter(METHODS, pattern))
