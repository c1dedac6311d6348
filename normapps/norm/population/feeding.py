"""Feeding a network its batches in the memory format in which it runs fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.bfloat16)
"""Of the convolutions that oneDNN does on every machine."""


class Feed:
    """Calls a model with batches, on a CPU in a memory format of its own choice.

    oneDNN, by which torch convolves on a CPU, is faster with the channels last in memory, by a
    third in networks of depthwise convolutions, and the norm layers then see that format too. The
    values are the same; the outputs differ by rounding.

    A model that cannot run on such a batch, as one that calls `view` on its activations, gets this
    and all further ones as they came.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.reorders = torch.backends.mkldnn.is_available() and _convolves(model)

    def __call__(self, x: Tensor, forget: Callable[[], object]) -> None:
        """Run the model.

        Args:
            x: a batch (N, ...).
            forget: drops whatever hooks have kept of a run that is now begun anew.
        """
        if self.reorders and _is_reorderable(x):
            if self._runs_reordered(x):
                return
            self.reorders = False
            forget()
        self.model(x)

    def _runs_reordered(self, x: Tensor) -> bool:
        random = torch.get_rng_state()
        try:
            self.model(x.contiguous(memory_format=torch.channels_last))
        except RuntimeError:  # what else is wrong with it the run with x itself will say
            torch.set_rng_state(random)
            return False
        return True


def _convolves(model: nn.Module) -> bool:
    """Whether convolutions are most of a model's work; in a transformer they are a layer or two."""
    modules = list(model.modules())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in modules)
    return convolutions > sum(isinstance(module, nn.Linear) for module in modules)


def _is_reorderable(x: Tensor) -> bool:
    known = x.dim() == 4 and x.device.type == "cpu" and x.dtype in _DTYPES
    return known and not x.is_contiguous(memory_format=torch.channels_last)
