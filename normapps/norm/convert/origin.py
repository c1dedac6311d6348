"""Origin: what a layer of ours stood in for, remembered so that it can be made again.

Kept on the layer itself: the class as an object, its plain attributes and the order of its
tensors, which is all that a layer holds besides what the layer of ours carries on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

_COMMON = frozenset(vars(nn.Module()))
_OWN = frozenset(("num_features", "num_channels", "normalized_shape", "num_groups", "num_splits"))
_OWN |= {"eps", "momentum", "affine", "elementwise_affine", "track_running_stats"}
_OWN |= {"process_group", "_fast_norm"}


@dataclass
class Origin:
    """A layer of torch or timm, without its values.

    Attributes:
        kind: its class.
        norm: the registry name of the layer of ours that computes the same.
        plain: its attributes that are neither tensors, modules nor hooks.
        parameters, buffers, children: their names, in order.
    """

    kind: type[nn.Module]
    norm: str
    plain: dict[str, Any]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    children: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module, norm: str) -> Origin:
        """Remember a layer."""
        return cls(
            type(module),
            norm,
            {key: value for key, value in vars(module).items() if key not in _COMMON},
            tuple(module._parameters),
            tuple(module._buffers),
            tuple(module._modules),
        )

    def blank(self) -> nn.Module:
        """Make a layer of the class with its attributes but without tensors and children."""
        module = self.kind.__new__(self.kind)
        nn.Module.__init__(module)
        vars(module).update(self.plain)
        return module

    def marks(self) -> Iterator[tuple[str, Any]]:
        """Attributes that somebody put on the layer: not of its class's own."""
        return ((key, value) for key, value in self.plain.items() if key not in _OWN)


def origin_of(layer: nn.Module) -> Origin | None:
    """Return what a layer of ours came from; None if the converter did not make it."""
    return vars(layer).get("origin")


def set_origin(layer: nn.Module, origin: Origin | None) -> None:
    """Remember on a layer of ours what it came from."""
    if origin is not None:
        vars(layer)["origin"] = origin
