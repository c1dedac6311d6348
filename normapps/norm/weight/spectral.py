"""Spectral normalization: a weight divided by the largest singular value of its map.

Miyato et al. 2018, algorithm 1. Where we differ, each time because the usual code goes wrong:

- One power iteration for each change of the weight, however often it is read: several forwards,
  gradient accumulation, reads under `no_grad` and recomputation in checkpointing all see one value.
  A change is known by the tensor's version counter and address. Every in-place operation and every
  step of a `torch.optim.Optimizer` counts (also fused ones and those that write `p.data`, which
  torch's counter misses). A write of your own to `.data` is noticed as long as nothing else has
  changed the weight since its first read, as in an average kept by `.data` alone; after that, call
  `refresh_`. In a compiled graph, which sees no counter, the vectors themselves tell: the iteration
  is computed at each read and taken where v is no longer Aᵀu/‖Aᵀu‖.
- Warm: u and v begin as the top singular pair, drawn from no global generator, and are measured
  again at the weight's first change: processes that start apart and are then given one weight, as
  by DDP, have one pair, also without broadcast buffers. They stay in float32 (float64 for a float64
  weight), also in a network that is turned into half precision, and autocast does not touch them.
- In inference a changed weight (pruned, quantized, averaged) is measured again, once, where u and v
  are more than 2 % off; what the state dict holds stays as training left it. A compiled graph does
  not measure: call `refresh_` first.
- A weight of norm ≤ eps is left as it is: zero gives zero, with a finite gradient. One that has
  become NaN or infinite reads as it would divided by such a norm; nothing raises.

State dict keys are those of `torch.nn.utils.parametrizations.spectral_norm`:
`parametrizations.weight.original`, `parametrizations.weight.0._u` and `.0._v`. A state dict of the
old hook (`weight_orig`, `weight_u`, `weight_v`) or of a network without spectral normalization
(`weight`) loads too. Loaded vectors that miss half of the norm are measured anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...errors import InputError
from ..precision import without_autocast
from ..undo import Undo
from .matrix import (
    find_layers,
    in_float32,
    keeping_order,
    original,
    parametrization,
    take_off_,
)
from .singular import iterate, lag, top_pair
from .spectral_operator import Sigma, Unfolded, make_operator
from .watch import Mark, WriteGuard, mark_of, watch, watch_optimizers

STALE = 0.02  # an estimate this much below the norm is not used in inference
BROKEN = 0.5  # loaded vectors this much below it do not belong to the weight
_SAME = 1e-6  # unit vectors nearer than this are the same up to rounding


def spectral_norm_(
    module: nn.Module,
    *,
    sigma: Sigma = "reshape",
    size: int | Sequence[int] | None = None,
    name: str = "weight",
    eps: float = 1e-12,
    warmup: int = 100,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Undo:
    """Divide the weight of a layer, or of every such layer of a network, by its norm.

    For linear, embedding and (transposed, grouped) convolution layers; a module used in two places
    is normalized once. The Parameter objects stay the same and become `.original` of their layer's
    parametrization: an optimizer made before or after finds them. Initialise before, by
    `layer.weight = w`, or by `init_`: writing into `layer.weight` in place changes a copy, and the
    next read raises.

    With one iteration a step the estimate lags behind the norm while the weight moves fast (early
    training, a high learning rate), for "conv" more than for "reshape": `inspect` tells by how
    much, `refresh_` measures anew.

    Args:
        module: the layer or network, changed in place.
        sigma: the norm: "reshape" of the matrix (out, in·k), as in the paper; "conv" of the
            convolution with its stride, dilation, groups and zero padding on an input of `size`;
            "bound", an upper bound of that at any size (see `spectral_operator`), as far as u and v
            have converged. For a linear layer they are one.
        size: spatial size of the input for "conv" (of the output where transposed), one for all
            axes or one each; 16 if not given. The norm grows with it.
        name: the parameter.
        eps: a weight of norm ≤ eps is left as it is.
        warmup: the most Lanczos steps of a full measurement, at the start and by `refresh_`.
        include, exclude: shell patterns of layer names.

    Returns:
        A handle that takes it back: the parameters as they are then, not normalized.
        `remove_spectral_norm_` keeps the normalized values instead.

    Raises:
        InputError: no such layer; a weight that is parametrized already or not finite; an unknown
            `sigma`; a padding mode for which it does not hold.
    """
    watch_optimizers()
    undo = Undo()
    found = find_layers(module, name, include, exclude)
    for path, layer in found:
        if not bool(layer.get_parameter(name).isfinite().all()):
            raise InputError(f"{path}: '{name}' has NaN or infinite values; initialise it first")
    layers = [layer for _, layer in found]
    norms = [
        SpectralNorm(layer, layer.get_parameter(name), sigma, size, eps, warmup) for layer in layers
    ]
    for layer, norm in zip(layers, norms, strict=True):
        with keeping_order(layer, name):
            parametrize.register_parametrization(layer, name, norm, unsafe=True)
        norm.start(original(layer, name))
        undo.add(functools.partial(take_off_, layer, name, norm))
        hook = functools.partial(_complete, name=name)
        undo.add(layer.register_load_state_dict_pre_hook(hook).remove)
    return undo


class SpectralNorm(nn.Module):
    """The parametrization: weight ↦ weight/σ(weight). `spectral_norm_` puts it on layers.

    Args:
        layer: the layer whose weight it is.
        weight: that weight, not normalized.
        sigma, size, eps, warmup: see `spectral_norm_`.
    """

    _u: Tensor
    _v: Tensor
    _mark: Mark | None  # the weight that the vectors were computed from, and ∂σ/∂W by them
    _kept: Tensor | None
    _eval_mark: Mark | None  # the weight last read in inference, and ∂σ/∂W there
    _eval_kept: Tensor | None

    def __init__(
        self,
        layer: nn.Module,
        weight: Tensor,
        sigma: Sigma = "reshape",
        size: int | Sequence[int] | None = None,
        eps: float = 1e-12,
        warmup: int = 100,
    ) -> None:
        super().__init__()
        self.sigma, self.eps, self.warmup = sigma, eps, warmup
        self.operator = make_operator(layer, in_float32(weight.detach()), sigma, size)
        self.layer_type = type(layer).__name__
        u, v, _ = top_pair(self.operator, weight, steps=warmup)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.register_buffer("_u", u.to(weight.device, dtype))
        self.register_buffer("_v", v.to(weight.device, dtype))
        typed: Any = self  # torch leaves some methods untyped
        typed.register_load_state_dict_post_hook(_note_load)
        self._is_started = False
        self._is_trusted = False  # u and v come from training or a state dict
        self._is_loaded = False  # from a state dict, and not looked at yet
        self._guard = WriteGuard(self.layer_type)
        self._forget()

    def forward(self, weight: Tensor) -> Tensor:
        """Return weight/σ in the weight's shape and dtype.

        Raises:
            InputError: what it returned before was written into.
        """
        with without_autocast(weight):
            if torch.compiler.is_compiling():
                return self._divide(weight, self._direction_in_graph(weight.detach()))
            mark = mark_of(weight)
            if self._guard.check(weight, mark):
                self._kept = self._eval_kept = None
            normalized = self._divide(weight, self._direction(weight.detach(), mark))
        self._guard.hand_out(normalized, mark)
        return normalized

    def right_inverse(self, value: Tensor) -> Tensor:
        """Take `value` as the weight that is trained and normalized: `layer.weight = value`.

        Raises:
            InputError: `value` has another shape.
        """
        if not self._is_started:  # torch asks when the parametrization is registered
            return value
        if value.shape != self.operator.shape:
            raise InputError(
                f"{self.layer_type}: a weight of {tuple(value.shape)} was assigned; "
                f"must be {tuple(self.operator.shape)}"
            )
        self._is_trusted = self._is_loaded = False
        self._guard = WriteGuard(self.layer_type)
        self._forget()
        return value.detach().clone()

    def start(self, weight: Tensor) -> None:
        """Take u and v, just measured, as those of `weight`, the parameter underneath."""
        self._is_started = True
        self._eval_mark = mark_of(weight)
        self._guard.look(weight, self._eval_mark)
        self._eval_kept = self._keep(weight.detach(), self._eval_mark)

    def estimate(self, weight: Tensor) -> Tensor:
        """Return uᵀA(W)v of the stored vectors, 0-d, in float32 or better."""
        with torch.no_grad(), without_autocast(weight):
            return (self._stored(weight) * weight).sum()

    def measure(self, weight: Tensor) -> Tensor:
        """Return the norm itself, converged, 0-d float64."""
        return top_pair(self.operator, weight, self._v, self.warmup)[2]

    def refresh(self, weight: Tensor) -> None:
        """Measure u and v from `weight`; the next read in training takes no iteration."""
        self._restart(weight.detach())
        self._is_trusted, self._is_loaded = True, False
        self._eval_mark = mark_of(weight)
        self._guard.look(weight, self._eval_mark)
        self._eval_kept = self._keep(weight.detach(), self._eval_mark)

    def extra_repr(self) -> str:
        """Return what `print(network)` shows in the brackets."""
        return f"sigma={self.sigma}, eps={self.eps}"

    def _divide(self, weight: Tensor, direction: Tensor) -> Tensor:
        exact = in_float32(weight)
        sigma = torch.dot(direction.flatten(), exact.flatten())
        # not clamped: the gradient of a zero weight is then as it comes, not 1/eps times it
        return (exact / (sigma + (sigma <= self.eps))).to(weight.dtype)

    @torch.no_grad()
    def _direction(self, weight: Tensor, mark: Mark | None) -> Tensor:
        """Return ∂σ/∂W for this read: the one remembered, or after one iteration, or measured."""
        if self._is_loaded:
            self._settle(weight)
        if mark is None:  # inside torch.func nothing may be written
            return self._stored(weight)
        if not self.training:
            return self._measured(weight, mark)
        if mark == self._mark and self._kept is not None:
            return self._kept
        if not self._is_trusted:
            self._restart(weight)
            self._is_trusted = self._mark is not None  # a copy's first read changes nothing
        elif self._follows(mark) or not self._is_iterated(weight):
            here = self._u, self._v
            iterate(self.operator, in_float32(weight), *self._vectors(weight), out=here)
        return self._keep(weight, mark)

    def _measured(self, weight: Tensor, mark: Mark) -> Tensor:
        if mark == self._eval_mark and self._eval_kept is not None:
            return self._eval_kept
        direction = self._stored(weight)
        u, v, sigma = top_pair(self.operator, weight, self._v, self.warmup)
        if not float(self.estimate(weight)) >= (1 - STALE) * float(sigma):
            direction = self.operator.direction(u.to(self._u), v.to(self._v))
        self._eval_mark, self._eval_kept = mark, direction
        return direction

    def _settle(self, weight: Tensor) -> None:
        """Look at vectors that a state dict brought: kept as they are unless broken."""
        self._is_loaded, self._is_trusted = False, True
        self._forget()
        if not float(self.estimate(weight)) >= (1 - BROKEN) * float(self.measure(weight)):
            self._restart(weight)

    def _restart(self, weight: Tensor) -> None:
        # from the drawn start, not from v: a function of the weight alone, on every process
        u, v, _ = top_pair(self.operator, weight, steps=self.warmup)
        self._write(u, v)

    @torch.no_grad()
    def _direction_in_graph(self, weight: Tensor) -> Tensor:
        u, v = self._vectors(weight)
        if self.training:
            exact = in_float32(weight)
            is_changed = lag(self.operator, exact, u, v) > _SAME
            next_u, next_v = iterate(self.operator, exact, u, v)
            u, v = torch.where(is_changed, next_u, u), torch.where(is_changed, next_v, v)
            self._write(u, v)
        return self.operator.direction(u, v)

    def _is_iterated(self, weight: Tensor) -> bool:
        return float(lag(self.operator, in_float32(weight), *self._vectors(weight))) <= _SAME

    def _follows(self, mark: Mark) -> bool:
        return self._mark is not None and self._mark[0] == mark[0]

    def _vectors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return self._u.to(dtype), self._v.to(dtype)

    def _stored(self, weight: Tensor) -> Tensor:
        return self.operator.direction(*self._vectors(weight))

    def fit(self, state: dict[str, Any], prefix: str) -> None:
        """Make u and v of a state dict loadable: take over their unfolding, zeros where they miss.

        Vectors of zeros are measured anew at the next read.
        """
        u, v = state.get(f"{prefix}_u"), state.get(f"{prefix}_v")
        if isinstance(self.operator, Unfolded) and u is not None and u.dim() == self._u.dim():
            self.operator = self.operator.like(u.shape)
            self._v = self._v.new_zeros(self.operator.input_shape())
            self._u = self._u.new_zeros(self.operator.output_shape())
        if u is None or v is None or u.shape != self._u.shape or v.shape != self._v.shape:
            state[f"{prefix}_u"] = torch.zeros_like(self._u)
            state[f"{prefix}_v"] = torch.zeros_like(self._v)

    @torch.no_grad()
    def _write(self, u: Tensor, v: Tensor) -> None:
        self._u.copy_(u)
        self._v.copy_(v)

    @torch.no_grad()
    def _keep(self, weight: Tensor, mark: Mark | None) -> Tensor:
        direction = self._stored(weight)
        self._mark, self._kept = mark, direction
        if mark is not None:
            watch(self, mark)
        return direction

    def _forget(self) -> None:
        self._mark = self._eval_mark = None
        self._kept = self._eval_kept = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpectralNorm:
        before = self._u, self._v
        parent: Any = super()
        parent._apply(fn, recurse)
        for name, old in zip(("_u", "_v"), before, strict=True):
            new = getattr(self, name)
            if torch.promote_types(new.dtype, torch.float32) != new.dtype:
                setattr(self, name, old.to(new.device))
        self._forget()
        self._guard.moved()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        parent: Any = super()
        parent.__setstate__(state)
        self._forget()  # a copy's weight has an address and a counter of its own
        self._guard = WriteGuard(self.layer_type)


def _note_load(norm: nn.Module, _: object) -> None:
    if isinstance(norm, SpectralNorm):
        norm._is_loaded = True


def _complete(layer: nn.Module, state: dict[str, Any], prefix: str, *_: object, name: str) -> None:
    """Give old keys their present names, and absent or misshapen vectors a zero, to be measured."""
    norm = parametrization(layer, name)
    ours, old = f"{prefix}parametrizations.{name}.", f"{prefix}{name}"
    if not isinstance(norm, SpectralNorm):
        return
    if f"{old}_orig" in state:
        state.pop(old, None)  # the first torch versions kept the normalized weight too
        state[f"{ours}original"] = state.pop(f"{old}_orig")
        for vector in ("_u", "_v"):
            if old + vector in state:
                state[f"{ours}0.{vector}"] = state.pop(old + vector)
    elif old in state:
        state[f"{ours}original"] = state.pop(old)
    if f"{ours}original" in state:
        norm.fit(state, f"{ours}0.")
