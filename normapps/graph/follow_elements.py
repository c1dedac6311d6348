"""Run a model and follow the atom of every element by a table of rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .dispatch import (
    bound,
    flat,
    leaves,
    name_of,
    ordinary,
    refuse_wrapped,
    run_under,
    watching,
    written,
)
from .elements import FIXED, Elements, Found, Label, Rule, Step, compact
from .graph import Atoms
from .layer_graph import Clip, Layer, LayerGraph
from .rules_elements import unknown

_LAYERS = {"convolution", "convolution_overrideable", "_convolution", "linear", "addmm", "mm"}


def follow(
    model: nn.Module, inputs: Tensor | tuple[Any, ...], rules: Mapping[str, Rule]
) -> LayerGraph:
    """Run a model once, in evaluation mode, and return the layers that the rules found.

    Raises:
        InputError: the model does not run on these inputs, or is compiled, scripted or wrapped.
    """
    refuse_wrapped(model, "change")
    inputs = ordinary(inputs)
    tracer = _Tracer(model, leaves(inputs), rules)
    outputs = run_under(model, inputs, watching(model, tracer.enter, tracer.leave), tracer)
    for tensor in leaves(outputs):
        tracer.elements.pin(tracer.elements.of(tensor).atoms, "an output of the network")
    return _assembled(tracer.elements)


class _Tracer(TorchDispatchMode):
    """Follows the elements through every operation that runs under it."""

    def __init__(self, model: nn.Module, given: list[Tensor], rules: Mapping[str, Rule]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = Elements(model, given)
        self._rules = rules
        self._running: list[tuple[str, nn.Module]] = [("", model)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        values = bound(func, args, given)
        target = written(func, values)
        result = func(*args, **given)

        def run(stand_in: Callable[[Tensor], Tensor]) -> list[Tensor]:
            return flat(func(*_mapped(args, stand_in), **_mapped(given, stand_in)))

        step = Step(name_of(func), run, values, flat(result), self._running[-1], self.elements)
        found = self._follow(step)
        if target is None:
            self._label(step, found)
        elif target:
            self._overwrite(step, found)
        return result

    def enter(self, name: str, module: nn.Module) -> Callable[..., None]:
        """Return the hook in front of a module."""
        return lambda *_: self._running.append((name, module))

    def leave(self, *_: Any) -> None:
        """End a module's call."""
        self._running.pop()

    def _follow(self, step: Step) -> Found:
        """Apply the rule; what it does not know of, or an unusual form, is unknown."""
        if step.name not in _LAYERS and step.name != "t":
            self.elements.spoil(step.tensors)
        try:
            found = self._rules.get(step.name, unknown)(step)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError):
            found = unknown(step)
        fits = [
            atoms is None or atoms.shape == output.shape
            for atoms, output in zip(found, step.outputs, strict=False)
        ]
        return found if all(fits) and len(fits) == len(step.outputs) else unknown(step)

    def _label(self, step: Step, found: Found) -> None:
        for output, atoms in zip(step.outputs, found, strict=True):
            label = Label(None if atoms is None else compact(atoms))
            if step.name == "t":
                source = self.elements.of(step["self"])
                label.source, label.turned = source.source, not source.turned
            self.elements.add(output, label)

    def _overwrite(self, step: Step, found: Found) -> None:
        for output, atoms in zip(step.outputs, found, strict=True):
            self.elements.overwrite(output, atoms, step.where)


def _mapped(value: Any, stand_in: Callable[[Tensor], Tensor]) -> Any:
    """Replace the tensors in nested arguments."""
    if isinstance(value, Tensor):
        return stand_in(value)
    if isinstance(value, list | tuple):
        return [_mapped(each, stand_in) for each in value]
    if isinstance(value, dict):
        return {key: _mapped(each, stand_in) for key, each in value.items()}
    return value


def _assembled(elements: Elements) -> LayerGraph:
    """Number the atoms that layers and clips hold, and pin those of weights used elsewhere."""
    for layer in elements.layers.values():
        if elements.spoiled & {layer.weight, *layer.biases}:
            reason = f"the weight of '{layer.module}' is used elsewhere, too"
            elements.pin(layer.inputs, reason)
            elements.pin(layer.out, reason)
    roots = elements.ledger.roots()
    held = [each.inputs for each in elements.layers.values()]
    held += [each.out for each in elements.layers.values()]
    held += [each.atoms for each in elements.clips.values()]
    used = np.unique(roots[np.concatenate(held)]) if held else np.zeros(0, np.int64)
    number = np.full(elements.ledger.count, -1)
    number[used] = np.arange(len(used))
    final: Atoms = number[roots]
    return LayerGraph(
        count=len(used),
        layers=tuple(_numbered(each, final) for each in elements.layers.values()),
        pinned=_pinned(elements, final),
        clips=tuple(Clip(each.module, final[each.atoms]) for each in elements.clips.values()),
        rectified=_marked(elements.rectified, final, len(used)),
    )


def _numbered(layer: Layer, final: Atoms) -> Layer:
    return dataclasses.replace(layer, inputs=final[layer.inputs], out=final[layer.out])


def _pinned(elements: Elements, final: Atoms) -> dict[int, str]:
    """Atom → the first reason that was given."""
    found: dict[int, str] = {}
    for pin in elements.ledger.pins:
        for atom in np.unique(final[pin.ids]):
            found.setdefault(int(atom), pin.reason)
    found.setdefault(int(final[FIXED]), "an input of the network, or computed by other operations")
    found.pop(-1, None)
    return dict(sorted(found.items()))


def _marked(atoms: list[Atoms], final: Atoms, count: int) -> Any:
    marked = np.zeros(count + 1, bool)  # the last one for atoms that no layer holds
    for each in atoms:
        marked[final[each]] = True
    return marked[:count]
