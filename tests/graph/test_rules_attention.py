"""Attention: exact, or its channels stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_networks import chain, check, conv, random_scales_, reasons
from torch import Tensor, nn

from normapps.graph import trace_channels


def test_attention_is_exact_or_stays() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.heads = nn.Conv2d(8, 24, 1), 2

        def forward(self, x: Tensor) -> Tensor:
            n, _, h, w = x.shape
            q, k, v = self.qkv(x).view(n, 3, self.heads, -1, h * w).unbind(1)
            return ((q.mT @ k).softmax(-1) @ v.mT).mT.reshape(n, -1, h, w)

    graph = check(chain(conv(3, 8), Attention(), conv(8, 8)), least=1.0)
    values = next(group for group in graph.groups if group.name == "l1.qkv.weight")
    assert values.reason == "no batch norm scales them"


@pytest.mark.parametrize("values", [4, 6], ids=["fused", "decomposed"])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_torch_attention(values: int, scale: float | None) -> None:
    """Its own scale is of the number of channels; a scale that is given is not."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = conv(8, 4, 1), conv(8, 4, 1), conv(8, values, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).flatten(2).mT[:, None] for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(q, k, v, scale=scale)
            return y[:, 0].mT.unflatten(2, (16, 16))

    model = random_scales_(chain(conv(3, 8), Attention(), conv(values, 8)))
    graph = check(model, least=0.5) if values != 4 or scale is None else None
    graph = graph or trace_channels(model, torch.randn(1, 3, 16, 16))
    wanted = "free" if scale else "l1 scales attention by their number"
    assert reasons(graph, "l1.q.bn") == {wanted}
    assert reasons(graph, "l1.v.bn") == reasons(graph, "l0.bn") == {"free"}
