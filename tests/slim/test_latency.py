from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.graph import ChannelGraph
from normapps.measure import latency as timing
from normapps.measure.timing import Timing
from normapps.slim import latency
from normapps.slim.latency import (
    Footprint,
    Stopwatch,
    footprint,
    latency_of,
    measure_latency,
)


class Seen(nn.Module):
    """Remembers what it was fed."""

    def __init__(self, calls: list[tuple[str, Tensor]], name: str) -> None:
        super().__init__()
        self.calls, self.name = calls, name
        self.conv = nn.Conv2d(3, 2, 1)

    def __deepcopy__(self, memo: object) -> Seen:
        return Seen(self.calls, self.name)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls.append((self.name, x))
        return self.conv(x)


def test_networks_take_turns_at_each_batch_size() -> None:
    calls: list[tuple[str, Tensor]] = []
    models = {name: Seen(calls, name).train() for name in ("base", "slimmed")}
    found = measure_latency(models, torch.zeros(1, 3, 5, 7), batch_sizes=(1, 4), seconds=0)
    assert [each.batch_size for each in found] == [1, 4]
    for each in found:
        assert each.times.keys() == models.keys()
        assert {len(timing.seconds) for timing in each.times.values()} == {5}
        mine = [name for name, x in calls if len(x) == each.batch_size]
        rounds = zip(mine[::2], mine[1::2], strict=True)
        assert all(set(pair) == {"base", "slimmed"} for pair in rounds)
    assert {tuple(x.shape[1:]) for _, x in calls} == {(3, 5, 7)}
    assert all(model.training for model in models.values())


def test_a_larger_budget_buys_more_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = []

    def interleave(cases: object, *, repeats: int, **options: object) -> dict[str, Timing]:
        rounds.append(repeats)
        return {"a": Timing((0.1,) * repeats), "b": Timing((0.3,) * repeats)}

    monkeypatch.setattr(timing, "interleave", interleave)
    models = {name: nn.Identity() for name in "ab"}
    for seconds in (0.1, 8.0, 1e6):
        measure_latency(models, torch.zeros(1, 3), batch_sizes=(1,), seconds=seconds)
    assert rounds == [1, 5, 1, 20, 1, 51]


class Timed(nn.Module):
    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels)
        self.head = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu())


def test_a_latency_target_sees_the_cut_network_beside_the_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, six = Timed(), np.arange(6)
    slots = {
        "conv.weight": (six, None, None, None),
        "conv.bias": (six,),
        "head.weight": (None, six, None, None),
    }
    slots.update({f"norm.{key}": (six,) for key in ("weight", "bias", "running_mean")})
    slots["norm.running_var"] = (six,)
    state = model.state_dict()
    shapes = {name: tuple(state[name].shape) for name in slots}
    graph = ChannelGraph(6, slots, shapes, {"norm": six})
    drift = iter([1.0, 1.0, 3.0, 3.0])  # the machine is slower the second time

    def interleave(cases: object, *, repeats: int, **options: object) -> dict[str, Timing]:
        factor = next(drift)
        widths = {name: each.conv.out_channels for name, each in now.items()}
        return {name: Timing((0.01 * factor * width,)) for name, width in widths.items()}

    now: dict[str, Timed] = {}
    case = latency._case

    def cases(network: nn.Module, batch: Tensor) -> object:
        assert isinstance(network, Timed)
        now["base" if not now else "model"] = network
        return case(network, batch)

    monkeypatch.setattr(timing, "interleave", interleave)
    monkeypatch.setattr(latency, "_case", cases)
    measure = latency_of(model, graph, torch.zeros(1, 3, 4, 4))
    assert measure(np.arange(6) >= 2) == pytest.approx(0.04)
    now.clear()
    assert measure(np.arange(6) >= 3) == pytest.approx(0.03)  # as on the machine of before
    assert model.conv.out_channels == 6


def test_a_stopwatch_tells_seconds() -> None:
    watch = Stopwatch(Timed(), torch.zeros(1, 3, 4, 4), batch_size=2, seconds=0)
    assert 0 < watch(Timed(2)) < 60


def test_what_a_network_weighs() -> None:
    model = Timed()
    found = footprint(model, 123)
    parameters = (3 * 6 + 6) + 2 * 6 + (6 * 2 + 2)
    assert found == Footprint(parameters, 123, 4 * (parameters + 12) + 8)
    head = int.from_bytes(save(model.state_dict())[:8], "little")
    assert len(save(model.state_dict())) == found.bytes + 8 + head


def test_nothing_to_time() -> None:
    with pytest.raises(InputError, match="0 networks"):
        measure_latency({}, torch.zeros(1, 3))
    with pytest.raises(InputError, match=r"batch sizes \(0,\)"):
        measure_latency({"a": nn.Identity()}, torch.zeros(1, 3), batch_sizes=(0,))
