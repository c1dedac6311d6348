"""A model's channel graph, at the size of its pictures, or one line why there is none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph.graph import ChannelGraph
from ..graph.trace import trace_channels
from ..models.preprocessing import Preprocessing


def trace(model: nn.Module, preprocessing: Preprocessing, name: str) -> tuple[ChannelGraph, Tensor]:
    """Follow the channels of a model, and return the picture that it was run on as well.

    Args:
        model: on the CPU; it stays as it is.
        preprocessing: tells channels and size of its pictures.
        name: of the model, for the message.

    Returns:
        The graph, and noise (1, C, H, W) float32, always the same.

    Raises:
        InputError: the model has no batch norm with a scale, or cannot be followed.
    """
    shape = (1, preprocessing.channels, *preprocessing.size)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        graph = trace_channels(model, inputs)
    except InputError as error:
        raise InputError(f"{name}: its channels cannot be followed ({error})") from error
    if not graph.scales:
        raise InputError(
            f"{name}: has no batch norm with scales for more than one channel, so nothing says"
            " which channels it needs; take a model with batch norm layers"
        )
    return graph, inputs
