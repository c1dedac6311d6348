"""Conditions: how they reach layers deep in a network, and are gone afterwards."""

from __future__ import annotations

import copy
import pickle
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from normapps.errors import InputError
from normapps.norm import Moments
from normapps.norm.condition import Condition, ConditionalLayer, ConditionedModel
from normapps.norm.registry import create_norm

C, N = 4, 3
OPTIONS: dict[str, dict[str, Any]] = {
    "conditional": {"num_classes": 5},
    "adaptive": {},
    "self_modulated": {"latent_features": 2},
    "spatial": {"condition_channels": 2, "hidden_channels": 3},
    "adalin": {"latent_features": 2},
}
every_layer = pytest.mark.parametrize("name", OPTIONS)


def _condition(name: str, seed: int = 0, samples: int = N) -> Any:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(samples, 2, generator=generator)
    if name == "conditional":
        return (torch.arange(samples) + seed) % 5
    if name == "adaptive":
        return Moments.of(torch.randn(samples, C, 7, generator=generator) * 2 + 1)
    return torch.randn(samples, 2, 2, 3, generator=generator) if name == "spatial" else latent


class _Network(nn.Module):
    """Somebody's network: two norm layers, the first in a block that may be checkpointed."""

    def __init__(self, name: str, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, C, 1)
        first, last = (create_norm(name, C, layout="2d", **OPTIONS[name]) for _ in range(2))
        self.block = nn.Sequential(first, nn.Tanh(), nn.Conv2d(C, C, 3, padding=1))
        self.last = last
        self.reentrant = reentrant
        for key, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.5)
            if key.endswith("rho"):  # each process cuts its own gradient outside
                nn.init.uniform_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.reentrant is None:
            return self.last(self.block(x))
        return self.last(checkpoint(self.block, x, use_reentrant=self.reentrant))


def _input(seed: int = 0, samples: int = N) -> Tensor:
    return torch.randn(samples, 2, 5, 6, generator=torch.Generator().manual_seed(seed))


def _by_hand(network: _Network, x: Tensor, condition: Any) -> Tensor:
    """The network's forward with the condition handed to each layer."""
    norm, *rest = network.block
    y = norm(network.stem(x), condition)
    for layer in rest:
        y = layer(y)
    return network.last(y, condition)


def _gradients(model: nn.Module) -> list[Tensor | None]:
    found = [each.grad for each in model.parameters()]
    model.zero_grad()
    return found


def _same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert any(each is not None for each in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@every_layer
def test_the_condition_reaches_every_layer(name: str) -> None:
    network, reference = _Network(name), _Network(name)
    model = ConditionedModel(network)
    for seed in range(2):
        found = model(_input(seed), _condition(name, seed))
        expected = _by_hand(reference, _input(seed), _condition(name, seed))
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        _same(_gradients(model), _gradients(reference))


@every_layer
def test_the_condition_matters_and_is_gone_afterwards(name: str) -> None:
    model = ConditionedModel(_Network(name)).eval()
    one, other = (model(_input(), _condition(name, seed)) for seed in (0, 1))
    assert not torch.allclose(one, other)
    with pytest.raises(InputError, match=r"needs a condition: call it as layer\(x, condition\)"):
        model.model(_input())
    one.sum().backward()
    assert model.condition.value is None


@every_layer
def test_it_compiles_without_a_break(name: str) -> None:
    network = _Network(name)
    reference = ConditionedModel(copy.deepcopy(network))
    torch._dynamo.reset()
    model = ConditionedModel(network)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for seed in range(2):
        found = compiled(_input(seed), _condition(name, seed))
        expected = reference(_input(seed), _condition(name, seed))
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        _same(_gradients(model), _gradients(reference))
    assert model.condition.value is None
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)


@every_layer
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(name: str, reentrant: bool) -> None:
    model, reference = ConditionedModel(_Network(name, reentrant)), _Network(name)
    found = model(_input(), _condition(name))
    expected = _by_hand(reference, _input(), _condition(name))
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    _same(_gradients(model), _gradients(reference))
    assert model.condition.value is None


@every_layer
@pytest.mark.parametrize("reentrant", [True, False])
def test_two_calls_and_one_backward_pass(name: str, reentrant: bool) -> None:
    model, reference = ConditionedModel(_Network(name, reentrant)), _Network(name)
    found, expected = [], []
    for seed in range(3):
        found.append(model(_input(seed), _condition(name, seed)))
        expected.append(_by_hand(reference, _input(seed), _condition(name, seed)))
    (found[0].square().sum() + (found[2] * found[1]).sum()).backward()
    (expected[0].square().sum() + (expected[2] * expected[1]).sum()).backward()
    _same(_gradients(model), _gradients(reference))
    assert model.condition.value is None


def test_backward_passes_in_the_other_order() -> None:
    model, reference = ConditionedModel(_Network("conditional", False)), _Network("conditional")
    calls = [model(_input(seed), _condition("conditional", seed)) for seed in range(2)]
    for seed in range(2):  # the first call's first
        calls[seed].square().sum().backward()
        _by_hand(reference, _input(seed), _condition("conditional", seed)).square().sum().backward()
        _same(_gradients(model), _gradients(reference))


def test_a_call_on_the_result_of_a_call() -> None:
    """As in a network that looks at its own picture again."""
    model, reference = ConditionedModel(_Network("conditional", False)), _Network("conditional")
    conditions = [_condition("conditional", seed) for seed in range(2)]
    once = model(_input(), conditions[0])
    again = model(once[:, :2], conditions[1])
    expected_once = _by_hand(reference, _input(), conditions[0])
    expected = _by_hand(reference, expected_once[:, :2], conditions[1])
    (again.square().sum() + once.sum()).backward()
    (expected.square().sum() + expected_once.sum()).backward()
    _same(_gradients(model), _gradients(reference))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("at", ["block", "scaled", "last"])
def test_a_loss_may_enter_at_a_tensor_within(at: str, reentrant: bool) -> None:
    """Of one call only a feature is used, which the output of no module needs to be."""

    class Keeping(_Network):
        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.block, self.stem(x), use_reentrant=reentrant)
            scaled = x * 2
            last = self.last(scaled)
            self.kept = {"block": x, "scaled": scaled, "last": last}[at]
            return last.tanh()

    def kept(x: Tensor, condition: Any) -> Tensor:
        norm, *rest = reference.block
        y = nn.Sequential(*rest)(norm(reference.stem(x), condition))
        last = reference.last(y * 2, condition)
        return {"block": y, "scaled": y * 2, "last": last}[at]

    model, reference = ConditionedModel(Keeping("conditional")), _Network("conditional")
    conditions = [_condition("conditional", seed) for seed in range(3)]
    model(_input(0), conditions[0])
    feature = model.model.kept
    found = model(_input(1), conditions[1]).square().sum() + feature.pow(3).sum()
    model(_input(2), conditions[2])
    found.backward()
    norm, *rest = reference.block
    y = nn.Sequential(*rest)(norm(reference.stem(_input(1)), conditions[1]))
    expected = reference.last(y * 2, conditions[1]).tanh().square().sum()
    (expected + kept(_input(0), conditions[0]).pow(3).sum()).backward()
    _same(_gradients(model), _gradients(reference))
    assert model.condition.value is None


def test_a_failed_backward_pass_leaves_nothing_behind() -> None:
    model, reference = ConditionedModel(_Network("conditional", False)), _Network("conditional")
    condition = _condition("conditional")
    model.model.stem.weight.register_hook(_fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(_input(), _condition("conditional", 3)).sum().backward()
    assert model.condition.value is None
    with pytest.raises(InputError, match="needs a condition"):
        model.model(_input())
    with torch.no_grad():
        model(_input(), condition)
    assert vars(model.condition._slot) == {"held": None, "restored": None}
    model.model.stem.weight._backward_hooks.clear()
    model.zero_grad()
    model(_input(), condition).square().sum().backward()
    _by_hand(reference, _input(), condition).square().sum().backward()
    _same(_gradients(model), _gradients(reference))


def _fail(_: Tensor) -> None:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("reentrant", [True, False])
def test_threads_do_not_mix(reentrant: bool) -> None:
    """All hold their condition before any goes on, forward and in what backward recomputes."""
    meet = threading.Barrier(3, timeout=30)

    class Meeting(_Network):
        def forward(self, x: Tensor) -> Tensor:
            meet.wait()
            x = checkpoint(self._block, self.stem(x), use_reentrant=reentrant)
            y = self.last(x)
            meet.wait()
            return y

        def _block(self, x: Tensor) -> Tensor:
            meet.wait()
            return self.block(x)

    model, found = ConditionedModel(Meeting("conditional")), dict[int, list[Tensor]]()

    def run(seed: int) -> None:
        x = _input(seed).requires_grad_()
        y = model(x, _condition("conditional", seed))
        found[seed] = [y.detach(), _into(x, y)]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    reference = _Network("conditional")
    for seed in range(3):
        x = _input(seed).requires_grad_()
        y = _by_hand(reference, x, _condition("conditional", seed))
        torch.testing.assert_close(found[seed], [y.detach(), _into(x, y)])


def _into(x: Tensor, y: Tensor) -> Tensor:
    y.square().sum().backward()
    assert x.grad is not None
    return x.grad


def test_a_pickled_model_shares_a_holder_that_holds_nothing() -> None:
    model = ConditionedModel(nn.Sequential(create_norm("conditional", C, num_classes=5))).eval()
    with model.condition.holding(1):
        twin = pickle.loads(pickle.dumps(model))
    assert twin.condition is twin.model[0].condition
    assert twin.condition.value is None
    x = torch.randn(N, C, 4)
    assert torch.equal(twin(x, 2), model(x, 2))


@dataclass
class _Outputs:
    y: Any
    n: int = 3


@pytest.mark.parametrize("shape", ["dict", "list", "nested", "dataclass"])
def test_outputs_may_be_nested(shape: str) -> None:
    class Several(_Network):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return {
                "dict": {"y": y, "n": 3},
                "list": [y],
                "nested": ({"y": [y]}, None),
                "dataclass": _Outputs({"y": y}),
            }[shape]

    model, reference = ConditionedModel(Several("conditional", False)), _Network("conditional")
    out = model(_input(), _condition("conditional"))
    y = {
        "dict": lambda: out["y"],
        "list": lambda: out[0],
        "nested": lambda: out[0]["y"][0],
        "dataclass": lambda: out.y["y"],
    }
    y[shape]().square().sum().backward()
    _by_hand(reference, _input(), _condition("conditional")).square().sum().backward()
    _same(_gradients(model), _gradients(reference))


def test_further_arguments_are_the_networks() -> None:
    class Scaled(_Network):
        def forward(self, x: Tensor, factor: float, *, shift: float = 0.0) -> Tensor:
            return super().forward(x) * factor + shift

    model = ConditionedModel(Scaled("conditional")).eval()
    plain = ConditionedModel(_Network("conditional")).eval()
    condition = _condition("conditional")
    found = model(_input(), condition, 2.0, shift=1.0)
    torch.testing.assert_close(found, plain(_input(), condition) * 2 + 1)


def test_an_error_leaves_no_condition_behind() -> None:
    model = ConditionedModel(_Network("conditional"))
    with pytest.raises(InputError, match="label 5"):
        model(_input(), 5)
    assert model.condition.value is None


def test_without_gradients_nothing_is_hooked() -> None:
    model = ConditionedModel(_Network("conditional"))
    with torch.no_grad():
        out = model(_input(), 0)
    assert not out.requires_grad
    assert model.requires_grad_(False)(_input(), 0).grad_fn is None


def test_a_condition_given_to_the_layer_comes_first() -> None:
    layer = create_norm("conditional", C, num_classes=5)
    nn.init.normal_(layer.weight)
    x = torch.randn(N, C, 4)
    with layer.condition.holding(1):
        assert torch.equal(layer(x, 0), layer.eval().train()(x, 0))
        assert not torch.equal(layer(x, 0), layer(x))
    with pytest.raises(InputError, match="ConditionalNorm needs a condition"):
        layer(x)


def test_holders_nest() -> None:
    holder = Condition()
    with holder.holding(1):
        with holder.holding(2):
            assert holder.value == 2
        assert holder.value == 1
    assert holder.value is None


def test_a_network_without_a_conditional_layer_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential has no conditional layer; make some"):
        ConditionedModel(nn.Sequential(nn.BatchNorm2d(3)))


@every_layer
def test_a_deep_copy_has_a_holder_of_its_own(name: str) -> None:
    model = ConditionedModel(_Network(name)).eval()
    twin = copy.deepcopy(model)
    layers = [each for each in twin.modules() if isinstance(each, ConditionalLayer)]
    assert len(layers) == 2
    assert all(each.condition is twin.condition for each in layers)
    assert twin.condition is not model.condition
    condition = _condition(name)
    assert torch.equal(twin(_input(), condition), model(_input(), condition))


def test_the_state_is_the_networks() -> None:
    network = _Network("conditional")
    keys = list(network.state_dict())
    assert list(ConditionedModel(network).model.state_dict()) == keys


# two processes


def _part(condition: Any, rows: slice) -> Any:
    if not isinstance(condition, Moments):
        condition = condition.double() if condition.is_floating_point() else condition
        return condition[rows]
    tensors = (condition.count, condition.mean, condition.var)
    return Moments(*(each.double()[rows] for each in tensors))


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    torch.save(_trained(rank), f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def _trained(rank: int) -> dict[str, list[Tensor | None]]:
    """Apart, because a DDP model that outlives its process group now and then hangs at its end."""
    results: dict[str, list[Tensor | None]] = {}
    rows = slice(2 * rank, 2 * rank + 2)
    for name in OPTIONS:
        network = _Network(name, reentrant=False).double()
        for layer in network.modules():
            if hasattr(layer, "sync"):
                layer.sync = True
        model = DistributedDataParallel(ConditionedModel(network))
        x = _input(samples=4).double()[rows]
        y = model(x, _part(_condition(name, samples=4), rows))
        y.square().sum().backward()
        results[name] = [y.detach(), *(each.grad for each in network.parameters())]
    return results


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_train, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in OPTIONS:
        reference, condition = _Network(name).double(), _condition(name, samples=4)
        y = _by_hand(reference, _input(samples=4).double(), _part(condition, slice(4)))
        (y.square().sum() / 2).backward()  # DDP takes the mean of the processes
        torch.testing.assert_close(torch.cat([each[name][0] for each in ranks]), y)
        expected = _gradients(reference)
        for found in ranks:
            _same(found[name][1:], expected)
