"""What every layer shares: where the channels are, the affine recovery, activation and dropout.

A layer of ours stands exactly where another stood: it carries that layer's `drop` and `act`
itself and keeps the names `weight` and `bias`, so that no key of a state dict changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from ...errors import InputError, NormappsError, unknown
from ..recovery import affine

LAYOUTS = {"any": "(N, C, ...)", "1d": "(N, C) or (N, C, L)", "2d": "(N, C, H, W)"}
LAYOUTS |= {"3d": "(N, C, D, H, W)", "tokens": "(N, ..., C)"}
"""Name of a layout → the shapes it stands for."""

_AXES: dict[str, tuple[int, ...]] = {"1d": (2, 3), "2d": (4,), "3d": (5,)}

_SHOWN: tuple[str, ...] = ("num_groups", "group_size", "num_splits", "num_classes", "num_domains")
_SHOWN += ("eps", "momentum", "affine", "layout", "frozen", "sync")

Piece = nn.Module | Callable[[], nn.Module] | None
"""An activation or dropout: a module, a class to make one of, or nothing."""


class Carried(TypedDict, total=False):
    """The options of every layer, which its `__init__` hands on to the layer it derives from."""

    layout: str
    act: Piece
    drop: Piece
    device: torch.device | str | None
    dtype: torch.dtype | None


class Recovery(Carried, total=False):
    """`Carried`, and whether there is a `bias`: the options of `AffineNorm`."""

    bias: bool


class NoStatisticsError(NormappsError, AttributeError):
    """A layer was asked for population statistics that its kind does not have."""


@dataclass(frozen=True)
class Taxonomy:
    """A method's place among the normalization methods (Huang et al. 2023), and what it costs.

    Attributes:
        partition, operation, recovery: the three steps, in words.
        paper: author and year.
        cost: of a training step: readings of the activation (`passes`), or the matrix work, with
            d channels in a group; then what is left of it at inference.
    """

    partition: str
    operation: str
    recovery: str
    paper: str
    cost: str = ""


class NormLayer(nn.Module):
    """x ↦ act(drop(normalize(x))) in a layout; the base of all layers here.

    A subclass says what `normalize` does to (N, C, *S), recovery included. `**carried` in its
    `__init__` stands for the keyword-only options of the layer it derives from, and is shown as
    those by `inspect.signature` and `help`.

    Attributes:
        num_features: channels C.
        layout: one of `LAYOUTS`.
        act, drop: what follows the normalization; `nn.Identity` if nothing.
    """

    taxonomy: ClassVar[Taxonomy]
    num_features: int
    layout: str
    act: nn.Module
    drop: nn.Module

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own: Any = vars(cls).get("__init__")
        if inspect.isfunction(own) and inspect.getargs(own.__code__).varkw == "carried":
            _show_carried(own, super(cls, cls).__init__)

    @classmethod
    def for_layout(cls, layout: str) -> type[NormLayer]:
        """Return the class that stands for this one in a layout."""
        return cls

    def carry(self, layout: str = "any", act: Piece = None, drop: Piece = None) -> None:
        """Take over the layout, activation and dropout of the place where this layer stands.

        Raises:
            InputError: an unknown layout.
        """
        if layout not in LAYOUTS:
            raise unknown("layout", layout, LAYOUTS)
        self.layout = layout
        self.drop = _made(drop)
        self.act = _made(act)

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, in the shape that `layout` says, then apply `drop` and `act`.

        Raises:
            InputError: x has another number of axes or channels, or is not floating; in training,
                too few samples to measure.
        """
        if isinstance(x, torch.fx.Proxy):
            return self.as_node(x)
        x = self.enter(x)
        return self.leave(self.pass_empty(x) if x.shape[0] == 0 else self.normalize(x))

    def as_node(self, x: torch.fx.Proxy) -> Any:
        """Be one node of a graph that torch.fx traces, as torch's own layers are."""
        path = x.tracer.path_of_module(self)  # type: ignore[attr-defined]
        return x.tracer.create_proxy("call_module", path, (x,), {})

    def pass_empty(self, x: Tensor) -> Tensor:
        """Return (0, C, *S) as it is, with gradients of 0, not None, for the parameters."""
        return x + sum(each.sum() for each in self.parameters())

    def enter(self, x: Tensor) -> Tensor:
        """Check x and bring its channels to axis 1."""
        tokens = self.layout == "tokens"
        fits = x.dim() in _AXES[self.layout] if self.layout in _AXES else x.dim() >= 2
        if not fits or x.shape[-1 if tokens else 1] != self.num_features:
            wanted = LAYOUTS[self.layout].replace("C", f"C={self.num_features}")
            raise InputError(f"{type(self).__name__} got {tuple(x.shape)}, needs {wanted}")
        if not x.is_floating_point():
            raise InputError(f"{type(self).__name__} got {x.dtype}, needs a floating dtype")
        return x.movedim(-1, 1) if tokens else x

    def leave(self, x: Tensor) -> Tensor:
        """Bring the channels back to their axis and apply `drop` and `act`."""
        y: Tensor = self.act(self.drop(x.movedim(1, -1) if self.layout == "tokens" else x))
        return y

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows in the brackets."""
        values = {name: getattr(self, name) for name in _SHOWN if hasattr(self, name)}
        shown = [f"{name}={value}" for name, value in values.items() if value is not False]
        return ", ".join([str(self.num_features), *shown])

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name in ("running_mean", "running_var"):
                raise NoStatisticsError(
                    f"{type(self).__name__} keeps no {name}: what folds or fuses batch norms needs "
                    "batch norms; convert back first, convert_norm(model, 'batch')"
                ) from error
            raise


class AffineNorm(NormLayer):
    """A layer with a scale and a shift a channel.

    Args:
        num_features: channels C.
        eps: added to the variance.
        affine: have `weight` (C,), from 1.
        bias: have `bias` (C,), from 0, where `affine`.
        layout, act, drop: see `NormLayer`.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        layout: str = "any",
        act: Piece = None,
        drop: Piece = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_features(num_features)
        self.num_features = num_features
        self.eps = eps
        self.affine = affine
        place: Any = {"device": device, "dtype": dtype}
        scale = nn.Parameter(torch.ones(num_features, **place)) if affine else None
        shift = nn.Parameter(torch.zeros(num_features, **place)) if affine and bias else None
        self.register_parameter("weight", scale)
        self.register_parameter("bias", shift)
        self.carry(layout, act, drop)

    def recover(self, x: Tensor) -> Tensor:
        """Scale and shift the channels of (N, C, *S)."""
        return affine(x, self.weight, self.bias)


def place_of(carried: Carried) -> dict[str, Any]:
    """Return the device and dtype of a layer's options, as torch's factories take them."""
    return {"device": carried.get("device"), "dtype": carried.get("dtype")}


def check_features(num_features: int) -> None:
    """Check a number of channels.

    Raises:
        InputError: it is below 1.
    """
    if num_features < 1:
        raise InputError(f"num_features {num_features}: must be at least 1")


def check_elements(layer: NormLayer, elements: int, x: Tensor) -> None:
    """Check that a layer that measures each sample has something to measure.

    Raises:
        InputError: fewer than two elements share their statistics.
    """
    if elements < 2:
        raise InputError(
            f"{type(layer).__name__} got {tuple(x.shape)}: {elements} element is left for each "
            "mean, so that nothing but the bias would come out; leave this layer as it was "
            "(convert_norm's exclude= or example=)"
        )


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is not above `limit`.

    Raises:
        InputError: `limit` is below 1.
    """
    if limit < 1:
        raise InputError(f"a group size of {limit}: must be at least 1")
    return next(size for size in range(min(number, limit), 0, -1) if number % size == 0)


def _show_carried(own: Any, above: Any) -> None:
    """Let an `__init__`'s signature name the keyword-only options above it for `**carried`."""
    signature = inspect.signature(own)
    named = {name: each for name, each in signature.parameters.items() if name != "carried"}
    for name, each in inspect.signature(above).parameters.items():
        if each.kind is each.KEYWORD_ONLY:
            named.setdefault(name, each)
    own.__signature__ = signature.replace(parameters=list(named.values()))


def _made(piece: Piece) -> nn.Module:
    if piece is None:
        return nn.Identity()
    return piece if isinstance(piece, nn.Module) else piece()
