"""A network tried before long work: what is wrong with it, or it cannot take, is one line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError
from ..norm.nesting import tensors_in
from .preprocessing import Preprocessing

_LONGEST = 160
"""Letters of somebody else's message that are shown."""


def try_out(model: nn.Module, preprocessing: Preprocessing, name: str) -> Any:
    """Return what a network, in inference mode, makes of two grey pictures.

    Args:
        model: on any device, of any dtype; it stays as it is.
        preprocessing: tells channels and size of the pictures.
        name: of the model, for the message.

    Raises:
        InputError: the network raises an exception, such as of another size of pictures.
    """
    like = next((each for each in model.parameters() if each.is_floating_point()), torch.empty(0))
    # two, because a norm of the batch refuses one value a channel
    pictures = like.new_zeros(2, preprocessing.channels, *preprocessing.size)
    with evaluating(model):
        try:
            return model(pictures)
        except Exception as error:  # somebody else's code may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            short = reason if len(reason) < _LONGEST else f"{reason[: _LONGEST - 1]}…"
            height, width = preprocessing.size
            raise InputError(
                f"{name}: fails on pictures of {width}×{height} ({short}); give the --size that it"
                " takes, or another model"
            ) from error


def answer_of(model: nn.Module, preprocessing: Preprocessing, name: str) -> Any:
    """Return what a model makes of some pictures, as `try_out`.

    Raises:
        InputError: it fails, or returns nothing in which two networks could be compared.
    """
    answer = try_out(model, preprocessing, name)
    if next(tensors_in(answer), None) is None:
        raise InputError(
            f"{name}: returns a {type(answer).__name__}, in which no tensor is found; wrap it in a"
            " module whose forward returns tensors, or lists, tuples or dicts of them"
        )
    return answer


def check_finite(model: nn.Module, where: str) -> None:
    """Find weights and statistics that are NaN or infinite.

    Raises:
        InputError: there are; the first tensor is named.
    """
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point():
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                raise InputError(
                    f"{where}: {name} is not finite in {bad} of {value.numel()} values; the weights"
                    " are damaged, take another checkpoint"
                )
