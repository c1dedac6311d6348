"""The table of all normalization layers: place among the methods, options, state."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..norm.registry import create_norm, list_norms, norm_class, norm_options

_CHANNELS = 64
_NEEDED: dict[str, Any] = {
    "num_classes": 11,
    "num_domains": 13,
    "latent_features": 17,
    "condition_channels": 19,
}
"""Values for options without a default, to look at a layer's state by; no size is one of them."""


@dataclass(frozen=True)
class Entry:
    """What the table says of a layer.

    Attributes:
        name: in the registry.
        partition, operation, recovery, paper: its taxonomy.
        options: option → default as text; `required` where there is none.
        state: key of the state dict → shape for 64 channels, such as `(C,)`.
        needs_condition: whether its forward takes more than the activation.
        text: the class's docstring.
    """

    name: str
    partition: str
    operation: str
    recovery: str
    paper: str
    options: Mapping[str, str]
    state: Mapping[str, str]
    needs_condition: bool
    text: str


def catalog(pattern: str = "*") -> list[Entry]:
    """Return an entry for every layer whose name matches a shell pattern, sorted."""
    return [describe(name) for name in list_norms(pattern)]


def describe(name: str) -> Entry:
    """Return what the table says of one layer.

    Raises:
        InputError: there is none of that name; the nearest is suggested.
    """
    from ..norm.condition import ConditionalLayer

    kind, defaults = norm_class(name), norm_options(name)
    place = kind.taxonomy
    needed = {key: _NEEDED[key] for key, value in defaults.items() if value is _EMPTY}
    layer = create_norm(name, _CHANNELS, layout="2d", **needed)
    return Entry(
        name,
        place.partition,
        place.operation,
        place.recovery,
        place.paper,
        {key: _shown(value) for key, value in defaults.items()},
        {key: _shape(tuple(value.shape), needed) for key, value in layer.state_dict().items()},
        isinstance(layer, ConditionalLayer),
        inspect.cleandoc(kind.__doc__ or ""),
    )


_EMPTY = inspect.Parameter.empty


def _shown(default: Any) -> str:
    return "required" if default is _EMPTY else repr(default)


def _shape(shape: tuple[int, ...], needed: Mapping[str, int]) -> str:
    names = {_CHANNELS: "C"} | {value: key for key, value in needed.items()}
    sizes = [names.get(size, str(size)) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})" if sizes else "()"
