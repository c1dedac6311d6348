"""Proximal L1 on scales: exact zeros after the optimizer's step.

After a step on the loss alone, γ ← sign(γ)·max(|γ| − τ, 0), the proximal step of λ|γ| (ISTA;
for scales: Ye et al. 2018). For the result to be the minimizer of loss + λΣ|γ|, τ must be λ times
how far the optimizer goes for a constant unit gradient in the end:

    SGD                      lr
    momentum m, dampening d  lr·(1 − d)/(1 − m)
    Nesterov momentum m      lr/(1 − m)
    Adam, AdamW              lr/(√v̂ + ε), elementwise

With lr·λ alone, momentum solves the problem of λ·(1 − m), and Adam one that no λ has. The group
form, λ‖(γ, β)‖, takes both to 0 at once; where their step lengths differ, it is the proximal step
in that metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from ..errors import InputError
from .scales import Scales, groups_of

_ROUNDS = 10
"""Newton steps: with lengths that differ by 10⁶, eight leave nothing to float64."""

_REACH = 4.0
"""Most that Adam's threshold moves a scale at once, in units of lr."""


def soft_threshold(x: Tensor, threshold: Tensor | float) -> Tensor:
    """Return sign(x)·max(|x| − threshold, 0), whose zeros are +0.

    Args:
        x: any shape.
        threshold: at least 0; broadcasts.
    """
    bound = torch.as_tensor(threshold, dtype=x.dtype, device=x.device)
    return x - x.clamp(-bound, bound)


def group_soft_threshold(x: Tensor, lengths: Tensor, strength: Tensor) -> Tensor:
    """Return argmin_y Σ_i (y_i − x_i)²/(2a_i) + λ‖y‖ for each row.

    With one step length a: x·max(1 − aλ/‖x‖, 0) (Yuan & Lin 2006). Else y_i = x_i·r/(r + λa_i)
    with r = ‖y‖, the root of ‖x/(r + λa)‖ = 1, found by Newton steps on the reciprocal, which is
    concave in r: from below they never overshoot. y = 0 where ‖x/a‖ ≤ λ.

    Args:
        x: (G, M); what pads a row is 0.
        lengths: (G, M) step lengths a ≥ 0; what is not to move has 0.
        strength: (G, 1) λ ≥ 0 of each group.
    """
    if x.shape[1] == 1:
        return soft_threshold(x, lengths * strength)
    tiny = torch.finfo(x.dtype).tiny
    pull = lengths * strength
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    root = torch.maximum((x.abs() - pull).amax(1, True), norm - pull.amax(1, True)).clamp_min(0)
    for _ in range(_ROUNDS):
        below = (root + pull).clamp_min(tiny)
        ratio = x / below
        square = ratio.square().sum(1, True)
        slope = (ratio.square() / below).sum(1, True).clamp_min(tiny)
        root = root + (square * (square.sqrt() - 1) / slope).clamp_min(0)
    dies = torch.linalg.vector_norm(x / pull.clamp_min(tiny), dim=1, keepdim=True) <= 1
    return torch.where(dies, 0.0, x * (root / (root + pull).clamp_min(tiny)))


def step_length(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor:
    """Return how far, in the end, a step goes for a constant unit gradient: like the parameter.

    Read it after the step: of Adam it depends on the step's second moment.

    Raises:
        InputError: an optimizer other than SGD, Adam and AdamW.
    """
    group = groups_of(optimizer)[id(parameter)]
    return _rule(optimizer)(group, optimizer.state[parameter], parameter)


def check_optimizer(optimizer: Optimizer) -> None:
    """Check that the step length of an optimizer is known.

    Raises:
        InputError: it is not, or a momentum is 1 or more.
    """
    _rule(optimizer)
    for group in optimizer.param_groups:
        if float(group.get("momentum", 0.0)) >= 1:
            raise InputError(f"momentum {group['momentum']}: must be below 1")


def _rule(optimizer: Optimizer) -> Callable[..., Tensor]:
    # exact classes: one that derives from these may step otherwise
    if type(optimizer) not in _RULES:
        raise InputError(
            f"the threshold that fits a step of {type(optimizer).__name__} is not known: take"
            " torch's SGD, Adam or AdamW, or kind='subgradient', which any optimizer takes"
        )
    return _RULES[type(optimizer)]


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any], like: Tensor) -> Tensor:
    momentum = _number(group["momentum"])
    # torch ignores dampening where there is no momentum, and refuses it with Nesterov's
    kept = 1 - _number(group["dampening"]) if momentum else 1.0
    length: Tensor = _full(like) * (_number(group["lr"]) * kept / (1 - momentum))
    return length


def _adam(group: Mapping[str, Any], state: Mapping[str, Any], like: Tensor) -> Tensor:
    if not state:
        return _full(like) * 0
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    correction = 1 - _number(group["betas"][1]) ** _number(state["step"])
    root = (second.to(_full(like)) / correction).sqrt()
    length: Tensor = _number(group["lr"]) / (root + group["eps"])
    return length


_RULES: dict[type[Optimizer], Callable[..., Tensor]] = {SGD: _sgd, Adam: _adam, AdamW: _adam}


def _full(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.promote_types(like.dtype, torch.float32)).detach()


def _number(value: Any) -> Any:
    """A hyperparameter as a number; one that lies on another device stays, unsynchronized."""
    if not isinstance(value, Tensor):
        return value
    return value.item() if value.device.type == "cpu" else value.detach()


class Proximal:
    """Proximal L1, plain or by groups, on the scales (and shifts) of a model.

    Under Adam no scale is moved by more than 4·lr at once, some more than Adam itself goes. A scale
    whose gradients have been next to nothing so far (above a zero-initialized branch v̂ is 0 at the
    first step) would be wiped out by λ·lr/(√v̂ + ε) otherwise. The minimizer stays the only place
    of rest: there the movement is lr·|g|/(√v̂ + ε) ≤ lr. (A bound of lr would let Adam's step and
    the threshold balance wherever |g| < λ.)
    """

    def __init__(self, scales: Scales, optimizer: Optimizer) -> None:
        check_optimizer(optimizer)
        self.scales, self.optimizer = scales, optimizer
        self.remainder: Tensor | None = None

    def before(self, strength: float) -> None:
        """Do nothing to the gradients: the step is one on the loss alone."""

    def after(
        self, strength: float, moved: Mapping[int, bool], live: Tensor | float, most: int | None
    ) -> Tensor:
        """Threshold what the optimizer's step has moved; return how many channels are to be 0.

        Args:
            strength: λ.
            moved: ids of the parameters to which a gradient came.
            live: 0 where the optimizer skipped its step, else 1.
            most: channels that may be 0 at most; the count returned goes beyond it.
        """
        scales = self.scales
        x = scales.read() if self.remainder is None else scales.read() + self.remainder
        lengths = scales.flat([self._length(each, moved) for each in scales.tensors]) * live
        rows, pulls = scales.gather(x), scales.gather(lengths)
        found = group_soft_threshold(rows, pulls, strength * scales.weights[:, None])
        if (limits := self._limits()) is not None:
            limit = scales.gather(limits)
            found = torch.where((rows - found).abs() > limit, rows - limit * rows.sign(), found)
        dead = (found == 0).all(1)
        asked: Tensor = (dead * scales.sizes).sum()
        if most is not None:
            # with enough zeros at hand, what stays is not shrunk any more
            spared = (dead | (asked >= most)) & ~_first(rows, pulls, scales, most)
            found = torch.where(spared[:, None], rows, found)
        lost = scales.write(scales.scatter(found, x))
        self.remainder = lost if scales.narrow else None
        return asked

    def penalty(self, strength: float) -> Tensor:
        """Return λ·Σ w·√n·‖group‖, a scalar."""
        norms = torch.linalg.vector_norm(self.scales.gather(self.scales.read()), dim=1)
        total: Tensor = strength * (self.scales.weights * norms).sum()
        return total

    def _length(self, parameter: nn.Parameter, moved: Mapping[int, bool]) -> Tensor:
        if not moved.get(id(parameter)):
            return _full(parameter) * 0
        return step_length(self.optimizer, parameter)

    def _limits(self) -> Tensor | None:
        if isinstance(self.optimizer, SGD):
            return None
        groups = groups_of(self.optimizer)
        rates = [_full(each) * _number(groups[id(each)]["lr"]) for each in self.scales.tensors]
        return _REACH * self.scales.flat(rates)


def _first(rows: Tensor, pulls: Tensor, scales: Scales, most: int) -> Tensor:
    """Which groups are the first to die, up to `most` channels in all, no layer emptied."""
    tiny = torch.finfo(rows.dtype).tiny
    resistance = torch.linalg.vector_norm(rows / pulls.clamp_min(tiny), dim=1) / scales.weights
    resistance = resistance.masked_fill(scales.emptying(resistance), torch.inf)
    order = resistance.argsort(stable=True)
    fits = (scales.sizes[order].cumsum(0) <= most) & resistance[order].isfinite()
    return torch.zeros_like(fits).scatter_(0, order, fits)
