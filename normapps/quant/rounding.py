"""A network whose weights and inputs are rounded where it is called, with a gradient to all.

Ranges learn by their steps' gradient, those of weights as in LSQ (Esser et al. 2020), those of
inputs as in LSQ+ (Bhalgat et al. 2020); but by the logarithm of their limits, as thresholds do in
TQT (Jain et al. 2020), so that one rate fits all layers. A weight's range is a share of its
largest weight, and in the end the weights are cut off there: who takes max|w| as their range, as
ONNX Runtime does, then finds what was learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .fake import Ranges, input_grids, output_axis, quantizable, rounding
from .finetune_options import QatOptions
from .grid import Grid, range_grid, rounded, weight_grid


class Rounding(nn.Module):
    """A network as an int8 backend would compute it; the weights that it keeps are float.

    Args:
        network: whose weights learn; it is called with those of its layers replaced.
        ranges: of the inputs to round, as `fake_quantize_` takes them.
        options: bits, exclusions, which ranges learn.

    Raises:
        InputError: ranges or exclusions that do not fit the network.
    """

    limits: Tensor

    def __init__(self, network: nn.Module, ranges: Ranges, options: QatOptions) -> None:
        super().__init__()
        input_grids(network, ranges, exclude=options.exclude)  # refuses what does not fit
        self.network, self.options = network, options
        self._layers = quantizable(network, options.exclude)
        self._names = [name for name in self._layers if name in ranges]
        limits = torch.tensor([ranges[name] for name in self._names]).view(-1, 2)
        device = next(network.parameters()).device
        self.register_buffer("limits", limits.to(device))
        self.input_logs = nn.Parameter(torch.zeros_like(self.limits), options.learn_ranges)
        owners = {id(layer.weight): name for name, layer in reversed(self._layers.items())}
        self._weights = {
            name: layer for name, layer in self._layers.items() if owners[id(layer.weight)] == name
        }
        scales = [self._grid(layer).scale for layer in self._weights.values()]
        self.weight_logs = nn.ParameterList(
            nn.Parameter(torch.zeros_like(scale), options.learn_clips) for scale in scales
        )

    def forward(self, x: Tensor) -> Any:
        """Return what the network returns."""
        weights = {
            f"{name}.weight": rounded(layer.get_parameter("weight"), self._cut(layer, log))
            for (name, layer), log in zip(self._weights.items(), self.weight_logs, strict=True)
        }
        with self._rounded_inputs():
            return functional_call(self.network, weights, (x,))

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The ranges of inputs as they are now."""
        rows = self._limits().tolist()
        return {name: (low, high) for name, (low, high) in zip(self._names, rows, strict=True)}

    def factors(self) -> list[nn.Parameter]:
        """Return the logarithms by which ranges differ from those at the beginning."""
        return [each for each in (self.input_logs, *self.weight_logs) if each.numel()]

    @torch.no_grad()
    def project_(self) -> None:
        """Keep the ranges of weights within the weights, after an optimizer's step."""
        for log in self.weight_logs:
            log.clamp_(max=0)

    @torch.no_grad()
    def cut_off_(self) -> None:
        """Cut the weights off at their ranges, which so become those of their largest weights."""
        for layer, log in zip(self._weights.values(), self.weight_logs, strict=True):
            weight, limit = layer.get_parameter("weight"), self._cut(layer, log).range[1]
            weight.copy_(weight.clamp(-limit, limit))
            log.zero_()

    def _grid(self, layer: nn.Module) -> Grid:
        return weight_grid(
            layer.get_parameter("weight"),
            per_channel=self.options.per_channel,
            axis=output_axis(layer),
            bits=self.options.weight_bits,
        )

    def _cut(self, layer: nn.Module, log: Tensor) -> Grid:
        grid = self._grid(layer)
        return replace(grid, scale=grid.scale * log.exp())

    def _limits(self) -> Tensor:
        return self.limits * self.input_logs.exp()

    @contextmanager
    def _rounded_inputs(self) -> Iterator[None]:
        handles = []
        try:
            for name, (low, high) in zip(self._names, self._limits(), strict=True):
                hook = rounding(range_grid(low, high, bits=self.options.activation_bits))
                layer = self._layers[name]
                handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
