"""Nesting: the tensors within what a network takes, returns or keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors nested in lists, tuples, dicts and dataclasses."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for each in values:
            yield from tensors_in(each)
    elif is_dataclass(values) and not isinstance(values, type):
        yield from tensors_in([getattr(values, each.name, None) for each in fields(values)])


def detached_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy, also of a model that keeps tensors of a forward pass with gradient.

    Those (timm's LeViT caches its attention biases) have their values in the copy but no graph,
    where `copy.deepcopy` alone refuses them. Made within `torch.inference_mode`, the copy can be
    changed and trained outside of it.
    """
    memo: dict[int, Any] = {}
    with torch.inference_mode(False):
        for module in model.modules():
            for tensor in tensors_in(list(vars(module).values())):
                if tensor.grad_fn is not None:
                    memo[id(tensor)] = tensor.detach().clone()
        return copy.deepcopy(model, memo)
