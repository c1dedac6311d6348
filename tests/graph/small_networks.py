"""Small networks for the tests of this folder, and the judge of a cut.

The judge is a silenced copy: γ = β = 0 in the doomed channels of every batch norm. A network cut
by the graph must give its outputs, whatever channels are drawn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from normapps.graph import ChannelGraph, trace_channels
from normapps.graph.oracle import verify
from normapps.graph.surgery import slim_model


def random_scales_(model: nn.Module) -> nn.Module:
    """Batch norms with scales, shifts and statistics that nothing can hide behind."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.1, 1.9),
                (module.bias, -1.0, 1.0),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def drawn(graph: ChannelGraph, ratio: float = 0.4) -> np.ndarray:
    """Draw what goes: a part of each group's free atoms, never all of them."""
    random = np.random.default_rng(0)
    keep, free = np.ones(graph.count, bool), graph.free()
    for group in graph.groups:
        atoms = group.atoms[free[group.atoms]]
        gone = min(max(1, round(ratio * len(atoms))), len(group.atoms) - 1, len(atoms))
        keep[random.permutation(atoms)[:gone]] = False
    return keep


def flops(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2


def check(model: nn.Module, x: Tensor | None = None, *, least: float = 0.5) -> ChannelGraph:
    """Cut a network, compare it with the silenced one, count its operations and parameters."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16) if x is None else x
    graph = trace_channels(random_scales_(model), x)
    keep = drawn(graph)
    slim, _ = slim_model(model, graph, keep)
    assert verify(model, slim, graph, keep, x) <= 1e-5
    assert graph.macs() == flops(model, x)
    assert graph.macs(keep) == flops(slim, x)
    assert graph.parameters() == sum(p.numel() for p in model.parameters())
    assert graph.parameters(keep) == sum(p.numel() for p in slim.parameters())
    free = graph.free()
    channels = np.concatenate(list(graph.scales.values()))
    assert free[channels].mean() >= least, dict(graph.pinned)
    assert not keep[free].all()
    return graph


def reasons(graph: ChannelGraph, layer: str) -> set[str]:
    return {graph.pinned.get(int(atom), "free") for atom in graph.scales[layer]}


def conv(into: int, out: int, kernel: int = 3, **more: Any) -> nn.Sequential:
    conv = nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False, **more)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out), act=nn.ReLU()))


class Net(nn.Module):
    """Layers by name, and a forward given as a function."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.Linear(8, 5)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)

    def classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def chain(*layers: nn.Module) -> nn.Module:
    named = {f"l{index}": layer for index, layer in enumerate(layers)}

    def run(net: Any, x: Tensor) -> Tensor:
        for name in named:
            x = getattr(net, name)(x)
        return net.classify(x)  # type: ignore[no-any-return]

    return Net(run, **named)


class Calls(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)
