"""Sparse training of batch-norm scales, for anybody's training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import InputError, unknown
from ..norm.convert.selection import Patterns
from .channels import choose_scales
from .polarization import Polarization
from .proximal import Proximal
from .scales import check_finite, check_trained
from .subgradient import Subgradient
from .targeting import TargetStrength

if TYPE_CHECKING:
    from ..graph import ChannelGraph

KINDS = ("proximal", "subgradient", "polarization")
_EVERY = 10
"""Steps from one look at the numbers to the next: each waits for the device."""


class Method(Protocol):
    """What a kind of penalty does around a step of the optimizer."""

    remainder: Tensor | None

    def before(self, strength: float) -> None:
        """Act on the gradients."""

    def after(
        self, strength: float, moved: Mapping[int, bool], live: Tensor | float, most: int | None
    ) -> Tensor:
        """Act on the scales; return how many channels are, or are to be, 0."""

    def penalty(self, strength: float) -> Tensor:
        """Return the term that is added to the loss, a scalar."""


class ScaleRegularizer:
    """Makes the batch-norm scales of a model sparse while somebody's loop trains it.

    `proximal` (the default) has exact zeros, those of the minimizer of loss + λΣ|γ|, for SGD,
    Adam and AdamW in all their variants; see `proximal`. `subgradient` is network slimming as
    published (Liu et al. 2017), for any optimizer. `polarization` is Zhuang et al. 2020. `step()`
    belongs after every step of the optimizer; what has to be done before it, a hook in the
    optimizer does. Gradients may be clipped, accumulated or scaled as ever; where a GradScaler
    skips a step, `step()` does too. Learning rates, of groups and of schedulers, are read at each
    step. Everything is deterministic, so the processes of DDP stay equal without a word between
    them, and all of a scale's arithmetic is in float32 or better: what a bfloat16 scale cannot
    hold is kept for the next step.

    Args:
        model: any network with batch norms; DDP or compiled, too.
        optimizer: its own; give it `split_parameters(model, weight_decay)`.
        kind: `proximal`, `subgradient` or `polarization`.
        strength: λ (s in the paper); with `target_sparsity` where the search begins. The papers
            take 1e-4 for VGG, 1e-5 for ResNets.
        target_sparsity: wanted share of exact zeros; λ then follows (see `targeting`), and there
            are never more zeros than that under `proximal`, and no layer loses all of its scales.
        steps: of the whole training, for `target_sparsity`.
        group: `proximal`: a channel's (γ, β) go to 0 together, so that it is silent.
        graph: of the model's channels; only scales of channels that can be cut are penalized.
        tied: `proximal` with a graph: all scales of an atom go to 0 together. The default there,
            because an atom is cut whole or not at all.
        weights: layer name → weight of its scales in the penalty; normalized to mean 1.
        flops_weighted: with a graph: weights are the MACs that a channel costs.
        include, exclude: shell patterns of layers; the default is all batch norms. Frozen ones
            are left out.
        t: of `polarization`.

    Attributes:
        kind: of the penalty.

    Raises:
        InputError: no batch norm, an optimizer that does not fit, decay on a scale, a value out of
            range, or options that exclude each other; one line with the remedy.

    Example:
        >>> optimizer = SGD(split_parameters(model, 1e-4), lr=0.1, momentum=0.9)
        >>> reg = ScaleRegularizer(model, optimizer, strength=1e-4)
        >>> loss.backward()
        >>> optimizer.step()
        >>> reg.step()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        kind: str = "proximal",
        strength: float = 1e-4,
        target_sparsity: float | None = None,
        steps: int | None = None,
        group: bool = False,
        graph: ChannelGraph | None = None,
        tied: bool | None = None,
        weights: Mapping[str, float] | None = None,
        flops_weighted: bool = False,
        include: Patterns = (),
        exclude: Patterns = (),
        t: float = 1.2,
    ) -> None:
        _check(kind, optimizer, strength, group, tied)
        tied = (graph is not None and kind == "proximal") if tied is None else tied
        self.kind = kind
        self._scales = choose_scales(
            model, include, exclude, graph, tied, group, weights, flops_weighted
        )
        check_trained(self._scales, optimizer)
        self._method = self._made(optimizer, t)
        self._strength, self._target = strength, _targeting(kind, strength, target_sparsity, steps)
        self._steps, self._stepped = 0, False
        self._moved: dict[int, bool] = {}
        self._live: Tensor | float = 1.0
        self._hooks = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    def _made(self, optimizer: Optimizer, t: float) -> Method:
        if self.kind == "polarization":
            return Polarization(self._scales, optimizer, t)
        if self.kind == "subgradient":
            return Subgradient(self._scales, optimizer)
        return Proximal(self._scales, optimizer)

    @property
    def strength(self) -> float:
        """λ of the next step."""
        return self._strength if self._target is None else self._target.value

    @torch.no_grad()
    def step(self) -> None:
        """Finish the optimizer's step that was just taken; without one, do nothing.

        Raises:
            InputError: a scale has become NaN or infinite; looked at every ten steps.
        """
        if not self._stepped:
            return
        self._stepped = False
        most = None
        if self._target is not None:
            most = int(self._target.target * self._scales.total())
        asked = self._method.after(self.strength, self._moved, self._live, most)
        self._steps += 1
        if self._steps % _EVERY == 0:
            check_finite(self._scales)
        if self._target is not None and self._steps % self._target.every == 0:
            quantile = self._scales.quantile(self._target.target)
            self._target.update(self._steps, float(asked) / self._scales.total(), quantile)

    def sparsity(self) -> float:
        """Return the share of channels, of those penalized, that are exactly 0.

        A channel is one scale; with `group` its β must be 0 too, and with `tied` all of its atom.
        """
        return float(self._scales.zeros()) / self._scales.total()

    def layer_sparsity(self) -> dict[str, float]:
        """Return the share of exact zeros in each layer with penalized scales, by its name."""
        return self._scales.shares()

    @torch.no_grad()
    def penalty(self) -> float:
        """Return the penalty's term in the objective, with λ: for logs."""
        return float(self._method.penalty(self.strength))

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact continuation needs beside model and optimizer: take it after `step`.

        Plain numbers and text, and for scales in half precision a tensor `remainder`.
        """
        state: dict[str, Any] = {"kind": self.kind, "steps": self._steps}
        state["channels"] = self._scales.total()
        if self._target is not None:
            state["target"] = self._target.state_dict()
        if self._scales.narrow and self.kind == "proximal":
            state["remainder"] = self._remainder().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, of a regularizer made with the same arguments.

        Raises:
            InputError: it is of another kind, of other channels, or one has a target that the
                other has not.
        """
        mine = self.state_dict()
        for key in ("kind", "channels"):
            if state.get(key) != mine[key]:
                raise InputError(
                    f"state of a regularizer with {key} {state.get(key)}, not {mine[key]}"
                )
        if state.keys() != mine.keys():
            odd = ", ".join(sorted(state.keys() ^ mine.keys()))
            raise InputError(
                f"state of a regularizer made with other arguments ({odd} in one only)"
            )
        self._steps = int(state["steps"])
        if self._target is not None:
            self._target.load_state_dict(state["target"])
        if "remainder" in state:
            self._method.remainder = self._remainder().copy_(state["remainder"])

    def remove(self) -> None:
        """Take the hooks out of the optimizer; `step` does nothing from then on."""
        for hook in self._hooks:
            hook.remove()
        self._stepped = False

    def _remainder(self) -> Tensor:
        kept = self._method.remainder
        return torch.zeros_like(self._scales.read()) if kept is None else kept

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._stepped:
            raise InputError(
                "two steps of the optimizer without reg.step() between: call it after each, or"
                " reg.remove() where the sparse training ends"
            )
        if kwargs.get("closure") is not None or any(each is not None for each in args[1:]):
            raise InputError("optimizer.step(closure) is not followed: call backward before step()")
        self._moved = {id(each): each.grad is not None for each in self._scales.tensors}
        found = getattr(optimizer, "found_inf", None)
        self._live = 1.0 if found is None else 1 - found.detach().clone().to(self._scales.device)
        self._method.before(self.strength)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._stepped = True


def _check(
    kind: str, optimizer: Optimizer, strength: float, group: bool, tied: bool | None
) -> None:
    if kind not in KINDS:
        raise unknown("kind of penalty", kind, KINDS)
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer {type(optimizer).__name__}: must be a torch.optim.Optimizer")
    if not 0 <= strength < float("inf"):
        raise InputError(f"strength {strength}: must be a number of at least 0")
    for name, wanted in (("group", group), ("tied", tied)):
        if wanted and kind != "proximal":
            raise InputError(f"{name}=True is for kind='proximal', not '{kind}'")


def _targeting(
    kind: str, strength: float, target: float | None, steps: int | None
) -> TargetStrength | None:
    if target is None:
        return None
    if kind == "subgradient":
        raise InputError("target_sparsity: 'subgradient' has no exact zeros; take kind='proximal'")
    if steps is None:
        raise InputError("target_sparsity needs steps, the length of the whole training")
    if strength == 0:
        raise InputError("strength 0.0: target_sparsity needs one to begin with, such as 1e-4")
    return TargetStrength(strength, target, steps)
