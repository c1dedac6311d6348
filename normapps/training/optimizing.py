"""The optimizer's side of training: rates, what decays, the average over processes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..engine.distributed import World
from ..norm.gradient import normalize_gradients_
from .optimizers import create_optimizer, undecayed
from .options import FitOptions


def learning_rate(step: int, options: FitOptions, boundary: int | None = None) -> float:
    """Return the rate of a step: in each stage a linear rise, then half a cosine to 0."""
    first, last = 0, options.steps
    if boundary is not None:
        first, last = (0, boundary) if step < boundary else (boundary, options.steps)
    done, length = step - first, last - first
    warmup = min(options.warmup, length // 4)
    if done < warmup:
        return options.lr * (done + 1) / warmup
    return options.lr * 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(1, length - warmup)))


def make_optimizer(
    network: nn.Module, options: FitOptions, fresh: tuple[str, ...] = ()
) -> torch.optim.Optimizer:
    """Return what `options.optimizer` names, over `parameter_groups`, with its gradients edited.

    `sgd` has Nesterov's momentum of 0.9, `adam` is AdamW, and `lars` trusts by 0.02, where 0.001
    is usual, so that its rates are about those of `sgd`.
    """
    name = "adamw" if options.optimizer == "adam" else options.optimizer
    groups = parameter_groups(network, options, fresh)
    optimizer = create_optimizer(name, groups, lr=options.lr, **_OWN.get(name, {}))
    normalize_gradients_(optimizer, network, **_EDITS[options.gradient])
    return optimizer


_OWN: dict[str, dict[str, Any]] = {"sgd": {"nesterov": True}, "lars": {"trust_coeff": 0.02}}
_EDITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "centralized": {"centralize": True},
    "unit": {"block_normalize": True},
    "clipped": {"clip": 0.01},
}


def parameter_groups(
    network: nn.Module, options: FitOptions, fresh: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Return a network's parameters by weight decay and by factor of the learning rate.

    Norm layers, biases and other vectors do not decay: a domain that a batch lacks would otherwise
    be moved by it.

    Args:
        network: what is trained.
        options: weight decay and `head_lr`.
        fresh: names of parameters with `head_lr` times the rate, in the network that was given:
            here they are the ends of longer ones.
    """
    spared = undecayed(network)
    names = [name for name, _ in network.named_parameters()]
    faster = {
        # an attention's `se.fc.weight` is no `fc.weight`
        min((name for name in names if f".{name}".endswith(f".{end}")), key=len, default="")
        for end in fresh
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, each in network.named_parameters():
        if not each.requires_grad:
            continue
        decay = 0.0 if id(each) in spared else options.weight_decay
        factor = options.head_lr if name in faster else 1.0
        groups.setdefault((decay, factor), []).append(each)
    return [
        {"params": group, "weight_decay": decay, "factor": factor}
        for (decay, factor), group in groups.items()
    ]


def distributed(network: nn.Module, here: World, device: torch.device) -> nn.Module:
    """Return a network whose gradients are averaged over the processes; itself where it is one."""
    if here.size == 1:
        return network
    ids = [here.local_rank] if device.type == "cuda" else None
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(network, device_ids=ids)
    return wrapped
