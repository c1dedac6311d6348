"""Which of the networks of a pruning is kept: all cases, on one small network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.graph import trace_channels
from normapps.graph.oracle import Slimmed
from normapps.measure.clock import Clock
from normapps.slim.cutting import CutNetworks, cut_networks
from normapps.slim.keeping import Kept, keep_best
from normapps.slim.pictures import Seen
from normapps.slim.prune_options import PruneOptions


class Net(nn.Module):
    """One hidden layer of 8 channels, the first two of which are constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.norm(self.conv(x)).relu().mean((2, 3))))


@dataclass
class Pictures:
    """What `Seen` gives, without files: batches with or without labels."""

    batches: list[tuple[Tensor, Tensor | None]]
    is_classifier: bool = True

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return iter(self.batches)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    found = Net().eval()
    nn.init.uniform_(found.norm.weight, 0.5, 1.5)
    found.norm.weight.data[:2], found.norm.bias.data[:2] = 0, 2
    found.norm.running_mean = torch.randn(8)
    return found


def _cut(net: Net, x: Tensor, sample: Tensor | None) -> CutNetworks:
    graph = trace_channels(net, x[:1])
    keep = np.ones(graph.count, bool)
    keep[graph.scales["norm"][:2]] = False
    return cut_networks(net, graph, keep, x[:1], sample)


def _keep(net: Net, labels: Any, **options: Any) -> tuple[Kept, CutNetworks, Tensor]:
    """Keep the best on 40 pictures; `labels` makes them of the base's answers."""
    x = 2 + torch.randn(40, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    cut = _cut(net, x, x)
    with torch.no_grad():
        truth = None if labels is None else labels(net, cut, x)
    seen = None if options.pop("blind", False) else Pictures([(x, truth)])
    if seen is not None:
        seen.is_classifier = options.pop("is_classifier", True)
    made: list[Slimmed] = []

    def plainly() -> Slimmed:
        made.append(_cut(net, x, None).result)
        return made[-1]

    choice = PruneOptions(data="pictures", **options)
    where = torch.device("cpu")
    found = keep_best(net, cut, cast(Seen, seen), choice, where, Clock(), plainly)
    assert bool(made) == (found.name == "pruned")
    return found, cut, x


def test_recalibration_that_makes_it_worse_is_not_kept(net: Net) -> None:
    """The compensated network is exact here, and pictures of another kind spoil its statistics."""
    for labels in (None, lambda net, cut, x: net(x).argmax(1)):
        found, _, x = _keep(net, labels)
        assert [each.name for each in found.stages] == [
            *("base", "pruned", "compensated", "recalibrated")
        ]
        assert found.name == "compensated"
        assert found.recalibration is not None
        assert found.cut.compensation is not None
        with torch.no_grad():
            torch.testing.assert_close(found.cut.result.model(x), net(x), rtol=1e-5, atol=1e-6)


def test_recalibration_that_helps_is_kept(net: Net) -> None:
    found, cut, x = _keep(net, _as_recalibrated)
    assert found.name == "recalibrated"
    assert found.recalibration is not None
    assert cut.compensated is not None
    with torch.no_grad():
        assert not torch.allclose(found.cut.result.model(x), cut.compensated(x))
        mean = found.cut.result.model(x).argmax(1) == _as_recalibrated(net, cut, x)
    assert bool(mean.all())


def test_a_plain_cut_that_answers_best_is_kept_and_proved(net: Net) -> None:
    net.norm.bias.data[:2] = 30  # without the constants it answers otherwise
    found, cut, x = _keep(net, lambda net, cut, x: cut.plain(x).argmax(1))
    assert found.name == "pruned"
    assert found.cut.compensation is None
    assert found.cut.result.difference <= 1e-5
    with torch.no_grad():
        assert torch.equal(found.cut.result.model(x), cut.plain(x))


def test_what_is_lossless_is_not_recalibrated(net: Net) -> None:
    found, _, _ = _keep(net, lambda net, cut, x: cut.plain(x).argmax(1), lossless=True)
    assert (found.name, found.recalibration) == ("compensated", None)


def test_without_pictures_or_logits_the_last_network_is_kept(net: Net) -> None:
    found, cut, x = _keep(net, None, blind=True)
    assert (found.name, found.stages, found.recalibration) == ("", (), None)
    assert found.cut is cut
    found, cut, x = _keep(net, None, is_classifier=False)
    assert (found.name, found.stages) == ("", ())
    assert found.recalibration is not None
    with torch.no_grad():
        assert not torch.allclose(found.cut.result.model(x), cut.result.model(x))


def _as_recalibrated(net: Net, cut: CutNetworks, x: Tensor) -> Tensor:
    """What the network says with the statistics of these pictures: batch norm in training mode."""
    assert cut.compensated is not None
    norm = cut.compensated.get_submodule("norm")
    saved = {name: value.clone() for name, value in norm.named_buffers()}
    norm.train()
    answers = cast(Tensor, cut.compensated(x)).argmax(1)
    norm.eval()
    norm.load_state_dict(saved, strict=False)
    return answers
