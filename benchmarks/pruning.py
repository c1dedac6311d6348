"""What the pruning benchmarks share: models with random scales, the peer, and its oracle."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.engine.device import evaluating
from normapps.graph.graph import ChannelGraph
from normapps.slim.importance import importance
from normapps.slim.plan import plan

NAMES = (
    *("resnet18", "resnet50", "resnet50d", "seresnet50", "resnext50_32x4d", "wide_resnet50_2"),
    *("densenet121", "mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_b0"),
    *("tf_efficientnetv2_b0", "regnetx_004", "regnety_004", "vgg11_bn", "dla34"),
    *("hrnet_w18_small", "inception_v3", "inception_v4", "xception41", "repvgg_a0"),
    *("mobileone_s0", "ese_vovnet19b_dw", "res2net50_26w_4s", "cspresnet50", "cspdarknet53"),
    *("skresnet18", "resnest14d", "ghostnet_100", "mixnet_s"),
)
"""The 29 models of the bar."""


def with_random_scales(name: str, size: int | None = None) -> tuple[nn.Module, Tensor]:
    """Return a timm model, its batch norms' scales and shifts random, and an input.

    Scales are uniform in 0.1…1.9, shifts normal (0, 0.2); the running statistics are those of one
    batch of noise, so that no activation explodes on the way.

    Args:
        name: of timm.
        size: of the input (1, 3, size, size); None for the model's own.
    """
    import timm

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name)
    x = torch.randn(2, *_input_size(model, size))
    randomize_(model, x)
    return model.eval(), x[:1]


@torch.no_grad()
def randomize_(model: nn.Module, x: Tensor) -> None:
    """Draw scales and shifts of every batch norm, and measure its statistics on a batch."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
        if layer.weight is not None:
            # a value in each n-th part: all differ, and so tell afterwards which channels stayed
            n = layer.weight.numel()
            layer.weight.copy_(0.1 + 1.8 * (torch.randperm(n) + torch.rand(n) / 2 + 0.25) / n)
            layer.bias.normal_(0, 0.2)
    model.train()(x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        if layer.running_var is not None:
            layer.running_var.add_(0.05)


def _input_size(model: Any, size: int | None) -> Sequence[int]:
    own = tuple(model.default_cfg["input_size"])
    return own if size is None else (own[0], size, size)


def planned(model: nn.Module, graph: ChannelGraph, ratio: float) -> np.ndarray:
    """Say what stays above one threshold on |γ| over all channels that may go."""
    return plan(graph, importance(model, graph), ratio=ratio).keep


def macs(model: nn.Module, x: Tensor) -> int:
    """Count the multiply-accumulates of a forward pass as torch counts them."""
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops() // 2)


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


# Torch-Pruning


def prune_theirs(model: nn.Module, x: Tensor, ratio: float) -> nn.Module:
    """Prune a model, in place, by Torch-Pruning: scales of batch norms, one global threshold."""
    import torch_pruning

    kept = [module for module in _heads(model) if module is not None]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BNScalePruner(
            model,
            x,
            importance=torch_pruning.importance.BNScaleImportance(),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=kept,
        )
        pruner.step()
    return model


def _heads(model: Any) -> list[nn.Module]:
    """The classifier, which Torch-Pruning must be told to leave alone."""
    found = model.get_classifier() if hasattr(model, "get_classifier") else []
    return list(found) if isinstance(found, tuple | list) else [found]


def silenced_like(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """Copy a model and silence the channels that a pruned network no longer has.

    Which they are is told by the scales, that all differ within a layer and keep their order.
    """
    silent = copy.deepcopy(model)
    left = dict(pruned.named_modules())
    for name, layer in silent.named_modules():
        if isinstance(layer, _BatchNorm) and layer.weight is not None:
            gone = ~torch.isin(layer.weight, left[name].weight)
            with torch.no_grad():
                layer.weight[gone] = 0
                layer.bias[gone] = 0
    return silent
