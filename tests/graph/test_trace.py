"""trace_channels on small networks: what goes on as a whole, and what it leaves as it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import Calls, Net, chain, check, conv, random_scales_, reasons
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph import trace_channels


def test_plain_chain_and_names() -> None:
    graph = check(chain(conv(3, 6), conv(6, 8)), least=1.0)
    assert list(graph.scales) == ["l0.bn", "l1.bn"]
    assert graph.slots["l1.conv.weight"][1] is not None
    assert graph.slots["l1.conv.weight"][1].tolist() == graph.scales["l0.bn"].tolist()
    assert graph.slots["l0.conv.weight"][1:] == (None, None, None)
    first, last = graph.groups[0], graph.groups[-1]
    assert (first.name, first.layers, first.reason) == ("l0.bn", ("l0.bn",), None)
    assert (last.name, last.reason) == ("head.weight", "an output of the network")


def test_model_comes_out_as_it_went_in() -> None:
    model = chain(conv(3, 8)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace_channels(model, torch.randn(1, 3, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert set(graph.slots) == set(model.state_dict())
    assert set(graph.parameter_names) == {name for name, _ in model.named_parameters()}


def test_inputs_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(InputError, match=r"does not run on an input of shape \(1, 4, 8, 8\)") as e:
        trace_channels(chain(conv(3, 8)), torch.randn(1, 4, 8, 8))
    assert "\n" not in str(e.value)


def test_several_heads_and_dicts() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = conv(3, 8)
            self.box, self.score = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            x = self.body(x)
            return {"box": self.box(x), "more": [self.score(x)]}

    graph = check(Heads(), least=1.0)
    assert {group.reason for group in graph.groups} == {None, "an output of the network"}


def test_output_channels_stay() -> None:
    graph = trace_channels(conv(3, 8), torch.randn(1, 3, 8, 8))
    assert reasons(graph, "bn") == {"an output of the network"}
    assert not graph.free().any()


def test_shared_modules_tie_both_calls() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.classify(net.b(net.b(net.a(x))))  # type: ignore[no-any-return]

    graph = check(Net(run, a=conv(3, 8), b=conv(8, 8)), least=1.0)
    assert graph.scales["a.bn"].tolist() == graph.scales["b.bn"].tolist()


def test_shared_parameters_have_every_name() -> None:
    first, second = conv(8, 8), conv(8, 8)
    second.conv.weight = first.conv.weight
    graph = check(chain(conv(3, 8), first, second), least=1.0)
    assert graph.slots["l2.conv.weight"] is not None
    assert "l2.conv.weight" not in graph.parameter_names


def _overwrite(x: Tensor) -> Tensor:
    x[:, :4] = torch.ones_like(x[:, :4])
    return x


def _fill_part(x: Tensor) -> Tensor:
    out = torch.zeros(1, 12, 8, 8)
    out[:, :8] = x
    return out[:, :8]


def _fill(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape)
    out[:] = x
    return out


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x: x.cumsum(1), "l1 takes aten.cumsum over them"),
        (torch.linalg.pinv, "aten.linalg_pinv has no rule (in l1)"),
        (lambda x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]], "l1 picks some of them"),
        (lambda x: x[:, ::2].repeat(1, 2, 1, 1), "l1 picks some of them"),
        (lambda x: x.roll(1, 1), "l1 rolls them"),
        (lambda x: x * x.mean(1, keepdim=True), "l1 takes aten.mean over them"),
        (lambda x: x * x.amax(1, keepdim=True), "l1 takes aten.amax over them"),
        (lambda x: x + torch.ones(8, 1, 1), "l1 joins them with numbers that cannot shrink"),
        (_overwrite, "l1 writes into a part of a tensor"),
        (_fill_part, "l1 joins them with numbers that cannot shrink"),
        (_fill, "l1 joins them with numbers that cannot shrink"),
        (lambda x: torch.matmul(x.flatten(2).mT, torch.eye(8)).mT.unflatten(2, (8, 8)), "l1 "),
        (
            lambda x: (
                x
                * F.conv1d(x.mean((2, 3))[:, None], torch.ones(1, 1, 3), padding=1)[0][
                    ..., None, None
                ]
            ),
            "l1 convolves along them",
        ),
    ],
)
def test_what_cannot_be_followed_stays_with_a_reason(
    call: Callable[[Tensor], Tensor], reason: str
) -> None:
    model = random_scales_(chain(conv(3, 8), Calls(call), nn.Conv2d(8, 8, 1)))
    graph = trace_channels(model, torch.randn(1, 3, 8, 8))
    found = reasons(graph, "l0.bn")
    assert any(each.startswith(reason) for each in found), found
    assert len(found & {"free"}) == 0 or reason == "l1 writes into a part of a tensor"


def test_in_place_operations_on_slices_that_keep_zeros() -> None:
    def call(x: Tensor) -> Tensor:
        x[:, : x.shape[1] // 2].mul_(2.0)
        return x

    check(chain(conv(3, 8), Calls(call), conv(8, 8)), least=1.0)


def test_activations_are_let_go_while_it_runs() -> None:
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def note(x: Tensor) -> Tensor:
        made = x * 2
        held.append(weakref.ref(made))
        return made + 1

    def look(x: Tensor) -> Tensor:
        alive.append(held[0]() is not None)
        return x

    trace_channels(chain(conv(3, 8), Calls(note), Calls(look)), torch.randn(1, 3, 8, 8))
    assert alive == [False]
