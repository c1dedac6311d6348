"""A flow knows who made each tensor, who reads it, in which module; and runs operations again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.flow import Flow, ModuleCall, trace_flow

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + x
        y = self.act(self.conv(y))
        out: Tensor = self.head(y.mean((2, 3)))
        return out


def _names(flow: Flow, call: ModuleCall) -> list[str]:
    return [flow.ops[index].name for index in call.ops]


def test_calls_have_their_operations_and_values() -> None:
    flow = trace_flow(Net(), X)
    first, second = flow.calls_of("conv")
    assert _names(flow, first) == _names(flow, second) == ["convolution"]
    assert [call.name for call in flow.calls] == ["conv", "conv", "act", "head", ""]
    assert flow.calls_of("")[0].gives == flow.outputs == flow.calls_of("head")[0].gives
    assert flow.calls_of("nobody") == []
    (added,) = flow.readers(first.gives[0])
    assert (added.name, added.owner) == ("add", "")
    assert added.gives == second.takes
    assert added.reads == (first.gives[0], first.takes[0])
    assert flow.maker(added.gives[0]) is added
    assert flow.maker(first.takes[0]) is None
    assert flow.layouts[first.gives[0]].shape == (2, 4, 6, 6)


def test_parameters_are_known_by_the_operations_that_read_them() -> None:
    flow = trace_flow(Net(), X)
    readers = flow.readers_of("conv.weight")
    assert [(op.name, op.owner) for op in readers] == [("convolution", "conv")] * 2
    assert set(readers[0].parameters) == {"conv.weight", "conv.bias"}
    assert readers[0].arguments["weight"] == flow.names["conv.weight"]
    assert readers[0].arguments["groups"] == 1
    assert flow.readers_of("nobody.weight") == []


def test_a_shared_parameter_has_both_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    flow = trace_flow(model, torch.randn(2, 4))
    assert flow.readers_of("0.weight") == flow.readers_of("1.weight")
    assert len(flow.readers_of("1.weight")) == 2


def test_what_is_written_in_place_becomes_another_value() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            view = y.view(-1)
            view.relu_()
            return y + 1

    flow = trace_flow(Written(), X)
    times, viewed, relu, plus = flow.ops
    assert [op.name for op in flow.ops] == ["mul", "view", "relu", "add"]
    assert relu.reads == viewed.gives
    assert len(relu.gives) == 2  # the view, and what it is a view of
    assert plus.reads[0] in relu.gives
    assert plus.reads[0] not in (*times.gives, *viewed.gives)
    assert flow.maker(plus.reads[0]) is relu


def test_operations_run_again_on_other_tensors() -> None:
    class Moved(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.cat([x.transpose(1, 2), x.transpose(1, 2)], 1).split([3, 9], 1)

    flow = trace_flow(Moved(), X)
    other = torch.arange(X.numel(), dtype=torch.float64).reshape(X.shape)
    known = {flow.calls_of("")[0].takes[0]: other}
    for op in flow.ops:
        known |= dict(zip(op.gives, op.run(known), strict=True))
    wanted = Moved()(other)
    assert all(torch.equal(known[v], w) for v, w in zip(flow.outputs, wanted, strict=True))
    with pytest.raises(KeyError):
        flow.ops[-1].run({})


def test_the_model_comes_out_as_it_went_in() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flow = trace_flow(model, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model[0]._forward_hooks
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert "native_batch_norm" in _names(flow, flow.calls_of("0")[0])
    assert _names(flow, flow.calls_of("1")[0]) == []


def test_a_model_that_does_not_run_is_refused() -> None:
    with pytest.raises(InputError, match=r"Net does not run on an input of shape \(2, 3, 6, 6\)"):
        trace_flow(Net(), X[:, :3])
