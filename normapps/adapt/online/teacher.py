"""A teacher that slowly follows the student: the mean teacher of CoTTA and RoTTA."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...models.outputs import logits_of
from ...norm.nesting import detached_copy
from .configuration import streaming_layers


def teacher_of(student: nn.Module) -> nn.Module:
    """Return a copy of a prepared network whose parameters no gradient reaches."""
    with torch.inference_mode(False):
        return detached_copy(student).requires_grad_(False)


@torch.no_grad()
def move_teacher_(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Let the parameters that the student trains move: teacher ← (1−m)·teacher + m·student.

    Args:
        teacher: changed in place; buffers stay.
        student: of the same parameters.
        momentum: m, torch's sense, the weight of the new: CoTTA's 1 − 0.999, RoTTA's ν.
    """
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        if fast.requires_grad:
            slow.lerp_(fast, momentum)


def predict(network: nn.Module, x: Tensor, *, following: bool = True) -> Tensor:
    """Run a prepared network and return its logits (N, C).

    Args:
        network: as `configure_model` returns it.
        x: (N, ...).
        following: its batch norms follow the stream by their rule; else they are in inference
            mode and use the running statistics.

    Raises:
        InputError: the logits hold NaN or +inf, which would spoil parameters, memory and teacher.
    """
    _forget(network)
    for layer in streaming_layers(network).values():
        layer.training, layer.batch_samples = following, len(x)
    logits = logits_of(network(x))
    _forget(network)  # they hold a graph, which no copy can be made of
    if not bool((logits.detach() < math.inf).all()):  # −inf rules a class out
        raise InputError(
            f"{type(network).__name__} returns NaN or infinite logits for a finite batch: check its"
            " weights, or reset() what has adapted too far"
        )
    return logits


def _forget(network: nn.Module) -> None:
    """Drop what timm's LeViT and its relatives keep of parameters in inference mode."""
    for module in network.modules():
        if isinstance(kept := getattr(module, "attention_bias_cache", None), dict):
            kept.clear()


def check_share(**values: float) -> None:
    """Check that numbers are shares in [0, 1].

    Raises:
        InputError: one is not; it is named.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} {value}: must be between 0 and 1")
