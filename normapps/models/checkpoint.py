"""Somebody else's checkpoint into a network: prefixes off, every tensor in its place."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from .folder import faults, first_of
from .shipped import read_weights

PREFIXES = ("module.", "model.", "_orig_mod.")
"""What DataParallel, Lightning and `torch.compile` put before every name."""

Builder = Callable[[int | None], nn.Module]
"""Makes the network with this number of classes; None as the architecture has it."""


def load_checkpoint(
    make: Builder, path: str | os.PathLike[str], num_classes: int | None = None
) -> tuple[nn.Module, int | None]:
    """Make a network and load a weight file into it strictly.

    Where nothing but the classifier differs, the network is made again with the checkpoint's
    number of classes. Names of the original authors' are translated where timm knows how.

    Args:
        make: makes the network.
        path: safetensors, or PyTorch's format holding nothing but tensors.
        num_classes: the classes that the network must have; None takes the checkpoint's.

    Returns:
        The network, and the number of classes that `make` needs for it (None: its own).

    Raises:
        InputError: the file cannot be read or does not fit; the first tensor is named.
    """
    found = read_weights(path)
    model = make(num_classes)
    state, said = _fitted(model, found)
    classes = _classes_of(model.state_dict(), state) if said else None
    chosen = num_classes
    if said and num_classes is None and classes is not None:
        other = make(classes)
        other_state, other_said = _fitted(other, found)
        if not other_said:
            model, state, said, chosen = other, other_state, [], classes
    if said:
        hint = f"leave out --num-classes {num_classes}, it has {classes}"
        remedy = hint if classes and num_classes else "name the model that it was made for"
        raise InputError(f"{path}: does not fit the model: {first_of(said)}; {remedy}")
    model.load_state_dict(state)
    return model, chosen


def without_prefixes(state: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """Remove the `PREFIXES` that all names share, as far as more of the `wanted` names appear."""
    names, best = set(wanted), dict(state)
    stripped = best
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in stripped)), ""):
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
        if len(names & stripped.keys()) > len(names & best.keys()):
            best = stripped
    return best


def _fitted(model: nn.Module, found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state under the model's names, and what does not fit."""
    wanted = model.state_dict()
    state = without_prefixes(found, wanted)
    said = _faults(wanted, state)
    translated = _translated(model, state) if said else None
    if translated is not None and len(fewer := _faults(wanted, translated)) < len(said):
        return translated, fewer
    return state, said


def _faults(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """`faults`, but for the counters that checkpoints from before torch 0.4.1 do not have."""
    counters = {k for k in wanted.keys() - state.keys() if k.endswith("num_batches_tracked")}
    return faults({k: v for k, v in wanted.items() if k not in counters}, state)


def _translated(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The state as timm's own filter for this architecture renames it."""
    name = type(model).__module__
    module = sys.modules.get(name) if name.startswith("timm.") else None
    translate = getattr(module, "checkpoint_filter_fn", None)
    try:
        return dict(translate(dict(state), model)) if translate else None
    except Exception:  # a filter meets a checkpoint that it was not written for
        return None


def _classes_of(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """The checkpoint's number of classes, where that is all that differs."""
    differing = []
    for key, value in wanted.items():
        if key not in state:
            return None
        if state[key].shape != value.shape:
            differing.append((tuple(value.shape), tuple(state[key].shape)))
    pairs = {(ours[:1], theirs[:1]) for ours, theirs in differing}
    if len(pairs) != 1 or any(ours[1:] != theirs[1:] for ours, theirs in differing):
        return None
    ((_, theirs),) = pairs
    return theirs[0] if theirs else None
