"""The table of all normalization methods: their place, paper and cost, options, state."""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import unknown
from ..norm.registry import create_norm, list_norms, norm_class, norm_options
from .methods import KINDS, Method, methods

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
    """What the table says of a method.

    Attributes:
        name: in the registry, or that a function of its kind takes; unique within its kind.
        kind: what is normalized: `activation`, `weight`, `gradient` or `input`.
        partition, operation, recovery, paper, cost: its taxonomy.
        use: one line of Python that makes or applies it.
        options: option → default as text; `required` where there is none.
        state: of a layer, key of the state dict → shape for 64 channels, such as `(C,)`.
        needs_condition: whether a layer's forward takes more than the activation.
        text: the docstring.
    """

    name: str
    kind: str
    partition: str
    operation: str
    recovery: str
    paper: str
    cost: str
    use: str
    options: Mapping[str, str]
    state: Mapping[str, str]
    needs_condition: bool
    text: str


def catalog(pattern: str = "*", kind: str | None = None) -> list[Entry]:
    """Return an entry for every method whose name matches a shell pattern, by kind and name.

    Raises:
        InputError: an unknown kind.
    """
    chosen = [each for each in _names(kind) if fnmatch.fnmatchcase(each[1], pattern)]
    return [_entry(*each) for each in chosen]


def describe(name: str, kind: str | None = None) -> Entry:
    """Return what the table says of one method; of those of one name, the first of `KINDS`.

    Raises:
        InputError: there is none of that name (and kind), or an unknown kind; the nearest is
            suggested.
    """
    found = [each for each in _names(kind) if each[1] == name]
    if not found:
        raise unknown("norm" if kind is None else f"{kind} method", name, names(kind))
    return _entry(*found[0])


def names(kind: str | None = None) -> tuple[str, ...]:
    """Return the names of the table, of one kind or of all, each once."""
    return tuple(dict.fromkeys(name for _, name in _names(kind)))


def _names(kind: str | None) -> list[tuple[str, str]]:
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    every = {("activation", name) for name in list_norms()} | methods().keys()
    chosen = (each for each in every if kind in (None, each[0]))
    return sorted(chosen, key=lambda each: (KINDS.index(each[0]), each[1]))


def _entry(kind: str, name: str) -> Entry:
    others = methods()
    return _of_method(name, others[kind, name]) if (kind, name) in others else _of_layer(name)


def _of_method(name: str, method: Method) -> Entry:
    return Entry(
        name=name,
        kind=method.kind,
        **dataclasses.asdict(method.place),
        use=method.use,
        options={key: _shown(value) for key, value in method.options.items()},
        state={},
        needs_condition=False,
        text=method.text,
    )


def _of_layer(name: str) -> Entry:
    from ..norm.condition import ConditionalLayer

    layer_class, defaults = norm_class(name), norm_options(name)
    needed = {key: _NEEDED[key] for key, value in defaults.items() if value is _EMPTY}
    layer = create_norm(name, _CHANNELS, layout="2d", **needed)
    given = "".join(f", {key}=…" for key in needed)
    return Entry(
        name=name,
        kind="activation",
        **dataclasses.asdict(layer_class.taxonomy),
        use=f'create_norm("{name}", {_CHANNELS}{given})',
        options={key: _shown(value) for key, value in defaults.items()},
        state={
            key: _shape(tuple(value.shape), needed) for key, value in layer.state_dict().items()
        },
        needs_condition=isinstance(layer, ConditionalLayer),
        text=inspect.cleandoc(layer_class.__doc__ or ""),
    )


_EMPTY = inspect.Parameter.empty


def _shown(default: Any) -> str:
    return "required" if default is _EMPTY else repr(default)


def _shape(shape: tuple[int, ...], needed: Mapping[str, int]) -> str:
    names = {_CHANNELS: "C"} | {value: key for key, value in needed.items()}
    sizes = [names.get(size, str(size)) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})" if sizes else "()"
