"""What happens around every step of somebody else's optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from ..errors import InputError
from .undo import Undo


def around_steps_(
    optimizer: Optimizer,
    before: Callable[[], object] | None = None,
    after: Callable[[], object] | None = None,
) -> Undo:
    """Call `before` when a step's gradients are there, and `after` when it has been taken.

    By torch's own hooks, so the optimizer stays what it is for schedulers, scalers and state
    dicts. A step with a closure calls `before` after every evaluation of it. Copies of the
    optimizer have no hooks.

    Args:
        optimizer: changed in place.
        before, after: called without gradients being recorded.

    Returns:
        A handle that takes the hooks away.
    """
    undo = Undo()
    if before is not None:
        undo.add(optimizer.register_step_pre_hook(_pre_hook(before)).remove)
    if after is not None:
        undo.add(optimizer.register_step_post_hook(_post_hook(after)).remove)
    return undo


def _pre_hook(before: Callable[[], object]) -> Callable[..., Any]:
    @torch.no_grad()
    def hook(
        optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        _refuse_scaled(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            before()
            return None
        return args[:1], {**kwargs, "closure": _followed(closure, before)}

    return hook


def _followed(closure: Callable[[], Any], before: Callable[[], object]) -> Callable[[], Any]:
    def both() -> Any:
        loss = closure()
        with torch.no_grad():
            before()
        return loss

    return both


def _post_hook(after: Callable[[], object]) -> Callable[..., None]:
    @torch.no_grad()
    def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        after()

    return hook


def _refuse_scaled(optimizer: Optimizer) -> None:
    """Refuse a fused step that is to undo a loss scale itself: its gradients are not yet true."""
    if getattr(optimizer, "grad_scale", None) is not None:
        raise InputError(
            f"{type(optimizer).__name__}: its gradients are scaled still; call "
            "scaler.unscale_(optimizer) before scaler.step(optimizer)"
        )
