"""ReLU6 and Hardtanh in front of equalization: replaced by ReLU, scaled by channel, or kept.

A clip at a fixed bound is not positively homogeneous: min(s x, 6) ≠ s min(x, 6). Nagel et al.
2019, Data-Free Quantization, §5.1.1 replace it by ReLU, which is another function wherever it
clipped; a bound of 6 s a channel is exact instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import unknown
from ..graph.layer_graph import Clip, LayerGraph
from ..norm.moments import Moments
from ..norm.undo import Undo

ClipMode: TypeAlias = Literal["replace", "scale", "keep"]
MODES: tuple[ClipMode, ...] = ("replace", "scale", "keep")


class ChannelClip(nn.Module):
    """Clip each channel between bounds of its own: min(max(x, low), high).

    Args:
        low, high: (C,) of the layer's dtype; buffers, and part of the state dict.

    Example:
        >>> ChannelClip(torch.zeros(2), torch.tensor([6.0, 12.0]))(torch.full((1, 2, 1, 1), 9.0))
    """

    clips_channels = True  # tells trace_scales that the bounds follow the channels
    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.rectifies = not bool(low.any())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) → the same shape."""
        shape = (-1, *[1] * (x.dim() - 2))
        high = self.high.view(shape)
        if self.rectifies:  # a ReLU of its own, which ONNX Runtime fuses with what is before it
            return torch.minimum(torch.relu(x), high)
        return torch.clamp(x, self.low.view(shape), high)

    def extra_repr(self) -> str:
        """Say how many channels there are, and between which bounds."""
        return f"{len(self.low)}, {float(self.low.min()):.3g}…{float(self.high.max()):.3g}"


def prepare_clips_(
    model: nn.Module,
    graph: LayerGraph,
    statistics: Mapping[str, Moments],
    mode: ClipMode,
    undo: Undo,
) -> tuple[LayerGraph, dict[str, float]]:
    """Get the clips of a network out of equalization's way.

    Only clips whose channels could be scaled at all are touched: the one within a hard sigmoid
    or hard swish, which reads a sum with a number, is not.

    Args:
        model: changed in place in mode "replace" only.
        graph: of the model, by `trace_scales`.
        statistics: of each layer's output, by name; for the shares.
        mode: "replace" ReLU6 and Hardtanh(0, ·) by ReLU; "scale" leaves them in the graph, whose
            factors `scale_clips_` applies; "keep" pins their channels.
        undo: gets the steps that take it back.

    Returns:
        The graph to find factors with, and for each module replaced the share of its values that
        a normal distribution of the statistics puts above the bound; NaN without statistics.

    Raises:
        InputError: the mode is none of these.
    """
    if mode not in MODES:
        raise unknown("relu6", mode, MODES)
    shares: dict[str, float] = {}
    for clip in graph.clips:
        if mode == "keep":
            graph = graph.pin(clip.atoms, f"'{clip.module}' clips them at a fixed bound")
        elif mode == "replace" and graph.free()[clip.atoms].any():
            high = _bound(model.get_submodule(clip.module))
            if high is None:
                graph = graph.pin(clip.atoms, f"'{clip.module}' clips them below 0")
                continue
            shares[clip.module] = share_clipped(graph, clip, statistics, high)
            _replace_(model, clip.module, nn.ReLU(), undo)
    return graph, shares


def scale_clips_(
    model: nn.Module, clips: Iterable[Clip], factors: Mapping[int, float] | np.ndarray, undo: Undo
) -> None:
    """Multiply the bounds of clips, channel by channel; where all factors are 1 nothing changes.

    Args:
        model: changed in place: the module becomes a `ChannelClip`.
        clips: which modules, and the atom of each of their channels.
        factors: of each atom.
        undo: gets the steps that take it back.
    """
    like = next(model.parameters())
    for clip in clips:
        s = torch.tensor([float(factors[int(atom)]) for atom in clip.atoms], dtype=torch.float64)
        module = model.get_submodule(clip.module)
        if bool((s == 1).all()) or not isinstance(module, nn.Hardtanh | ChannelClip):
            continue
        scaled = [(s.to(each.device) * each).to(like) for each in bounds_of(module)]
        _replace_(model, clip.module, ChannelClip(*scaled), undo)


def shift_clips_(
    model: nn.Module, clips: Iterable[Clip], shifts: Mapping[int, float] | np.ndarray, undo: Undo
) -> None:
    """Take shifts from the upper bounds of clips from 0; as `scale_clips_` else."""
    like = next(model.parameters())
    for clip in clips:
        c = torch.tensor([float(shifts[int(atom)]) for atom in clip.atoms], dtype=torch.float64)
        high = bounds_of(model.get_submodule(clip.module))[1]
        if bool(c.any()):
            new = ChannelClip(torch.zeros_like(c).to(like), (high - c.to(high.device)).to(like))
            _replace_(model, clip.module, new, undo)


def share_clipped(
    graph: LayerGraph, clip: Clip, statistics: Mapping[str, Moments], high: float
) -> float:
    """Return the share of a clip's values that lie above its bound, by the statistics.

    1 − Φ((high − μ) / σ), the mean over the channels that one layer with statistics makes; NaN
    where there is none.
    """
    found = []
    for layer in graph.layers:
        moments = statistics.get(layer.module)
        if moments is not None:
            mine = np.isin(layer.out, clip.atoms)
            mean, std = moments.mean.double().flatten(), moments.std().double().flatten()
            scores = ((high - mean) / (std * math.sqrt(2)))[torch.from_numpy(mine)]
            found.append(torch.special.erfc(scores) / 2)
    shares = torch.cat(found) if found else torch.zeros(0)
    return float(shares.mean()) if len(shares) else math.nan


def _bound(module: nn.Module) -> float | None:
    """The upper bound of a clip that is a ReLU below it."""
    if isinstance(module, nn.Hardtanh) and module.min_val == 0:
        return float(module.max_val)
    if isinstance(module, ChannelClip) and module.rectifies:
        return float(module.high.min())
    return None


def bounds_of(module: Any) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper bound of a clip, () or (C,) float64."""
    if isinstance(module, ChannelClip):
        return module.low.double(), module.high.double()
    pair = (module.min_val, module.max_val)
    low, high = (torch.tensor(float(each), dtype=torch.float64) for each in pair)
    return low, high


def _replace_(model: nn.Module, name: str, new: nn.Module, undo: Undo) -> None:
    """Put a module in the place of another, wherever that stands."""
    old = model.get_submodule(name)
    new.train(old.training)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, key = path.rpartition(".")
            _put_(model.get_submodule(parent), key, new, undo)


def _put_(parent: nn.Module, key: str, new: nn.Module, undo: Undo) -> None:
    old = getattr(parent, key)
    setattr(parent, key, new)
    undo.add(lambda: setattr(parent, key, old))
