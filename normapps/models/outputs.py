"""What a model returns, as logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import InputError

_KEYS = ("logits", "out")


def logits_of(output: Any) -> Tensor:
    """Return the logits (N, C) in what a classifier returned.

    A tensor as it is; of a mapping, or an object as other libraries return it, what is called
    `logits` or `out`; of a tuple or list, whose others are auxiliary outputs, the first.

    Raises:
        InputError: there is no such tensor, or it has not two axes.
    """
    found = output
    if isinstance(found, tuple | list) and found and not hasattr(found, "logits"):
        found = found[0]
    if not isinstance(found, Tensor):
        entries = (_entry(found, key) for key in _KEYS)
        found = next((each for each in entries if each is not None), None)
    if not isinstance(found, Tensor):
        raise InputError(
            f"the model returns {_words(output)}, and no logits are in it: wrap it in a module"
            " whose forward returns logits (N, C)"
        )
    if found.dim() != 2:
        raise InputError(
            f"the model returns {tuple(found.shape)}, not logits (N, C), which only a"
            " classifier does"
        )
    return found


def _entry(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)


def _words(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(str, output)) or 'nothing'}"
    return type(output).__name__
