"""What every test-time method promises: it leaves alone what is not its own, and errors leave it.

Networks and streams are the fixtures of `conftest.py`.
"""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt import Online, create_method, list_methods
from normapps.adapt.online.configuration import collect_params, configure_model
from normapps.errors import InputError

Net, Stream = Callable[..., nn.Sequential], Callable[..., list[Tensor]]
OPTIONS: dict[str, dict[str, Any]] = {
    "cotta": {"views": 2, "threshold": 1.0},
    "rotta": {"update_every": 3, "capacity": 8},
    "eata": {"margin": 1.0, "redundancy": 2.0},
    "sar": {"margin": 1.0},
}
every = pytest.mark.parametrize("name", list_methods())


def _make(name: str, model: nn.Module) -> Online:
    return create_method(name, model, **OPTIONS.get(name, {}))


def _flat(values: Any, where: str = "") -> dict[str, Any]:
    """What is nested in a state, tensors as lists, by its place."""
    if isinstance(values, dict):
        values = list(values.items())
    if not isinstance(values, list | tuple):
        return {where: values.tolist() if isinstance(values, Tensor) else values}
    parts = [_flat(each, f"{where}/{i}") for i, each in enumerate(values)]
    return {place: value for part in parts for place, value in part.items()}


@every
def test_an_export_made_in_inference_mode_can_be_trained(
    net: Net, batches: Stream, name: str
) -> None:
    online = _make(name, net())
    with torch.inference_mode():
        online(batches()[0])
        exported = online.export()
    assert not any(each.is_inference() for each in exported.state_dict().values())
    exported.train()(batches()[1]).sum().backward()


@every
def test_what_made_the_batch_gets_no_gradient(net: Net, batches: Stream, name: str) -> None:
    made = nn.Conv2d(3, 3, 1)
    x = made(batches()[0])
    logits = _make(name, net())(x)
    assert made.weight.grad is None
    assert not logits.requires_grad
    x.sum().backward()  # its graph is still there


@every
@pytest.mark.parametrize("size", [1e19, 1e30])
def test_statistics_that_overflow_never_stay(
    net: Net, batches: Stream, name: str, size: float
) -> None:
    """Such a batch is normalized to finite logits, but its variance may be infinite."""
    online = _make(name, net())
    online(batches()[0])
    before = _flat(copy.deepcopy(online.state_dict()))
    try:
        online(batches()[1] * size)
    except InputError:
        assert _flat(online.state_dict()) == before
    for each in online.export().state_dict().values():
        assert each.isfinite().all()


def test_a_refused_update_leaves_the_memory_and_the_draws(net: Net, batches: Stream) -> None:
    online = _make("rotta", net())
    online(batches()[0])
    before = _flat(copy.deepcopy(online.state_dict()))
    with pytest.raises(InputError, match="too large"):
        online(batches()[1] * 1e19)
    assert _flat(online.state_dict()) == before


class Interrupted(nn.Module):
    """Raises KeyboardInterrupt while `is_open`."""

    is_open = False

    def forward(self, x: Tensor) -> Tensor:
        if self.is_open:
            raise KeyboardInterrupt
        return x


@every
def test_an_interrupt_leaves_the_state(net: Net, batches: Stream, name: str) -> None:
    online = _make(name, nn.Sequential(net()[:5], Interrupted(), net()[5:]))
    online(batches()[0])
    before = _flat(copy.deepcopy(online.state_dict()))
    Interrupted.is_open = True
    try:
        with pytest.raises(KeyboardInterrupt):
            online(batches()[1])
    finally:
        Interrupted.is_open = False
    assert _flat(online.state_dict()) == before


def test_a_scale_that_two_layers_share_is_trained_once(net: Net, batches: Stream) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    model.extend([nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)])
    model[4].weight = model[1].weight
    parameters, names = collect_params(configure_model(copy.deepcopy(model)))
    assert names == ["1.weight", "1.bias", "4.bias"]
    assert len({id(each) for each in parameters}) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        online = create_method("tent", model, lr=0.1)
    online(batches()[0])
    exported: Any = online.export()
    assert exported[1].weight is exported[4].weight


@every
def test_no_graph_and_no_batch_is_kept(net: Net, batches: Stream, name: str) -> None:
    online, outputs = _make(name, net()), []

    def note(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        outputs.append(weakref.ref(y))

    for module in online.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    for x in batches((4, 4, 4, 4, 4, 4)):
        online(x)
    del x
    gc.collect()
    assert outputs
    assert not any(each() is not None for each in outputs)


@every
def test_what_is_no_batch_is_refused(net: Net, batches: Stream, name: str) -> None:
    online, x = _make(name, net()), batches()[0]
    for batch in ((x, torch.zeros(len(x))), {"image": x}, torch.tensor(1.0)):
        with pytest.raises(InputError, match=r"^a batch of \w+: give a tensor[^\n]*$"):
            online(batch)


@pytest.mark.parametrize("other", ["source", "prior", "ema", "eata", "rotta", "cotta", "fewer"])
def test_the_state_of_another_method_is_refused(net: Net, batches: Stream, other: str) -> None:
    online = _make("tent", net())
    online(batches()[0])
    before = _flat(copy.deepcopy(online.state_dict()))
    fewer = create_method("tent", net(), exclude="1")
    state = (fewer if other == "fewer" else _make(other, net())).state_dict()
    with pytest.raises(InputError, match="no state of Tent of this network"):
        online.load_state_dict(state)
    assert _flat(online.state_dict()) == before


@pytest.mark.parametrize("name", ["tent", "eata", "sar", "cotta", "rotta"])
@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf")])
def test_a_learning_rate_is_finite(net: Net, name: str, lr: float) -> None:
    with pytest.raises(InputError, match=f"lr {lr}"):
        create_method(name, net(), lr=lr)


@pytest.mark.parametrize("momentum", [None, "much", float("nan"), 1.5])
def test_a_momentum_is_a_share(net: Net, momentum: Any) -> None:
    with pytest.raises(InputError, match="momentum"):
        create_method("ema", net(), momentum=momentum)


def test_what_is_shown_before_any_batch_counts_has_nothing_to_mix(
    net: Net, batches: Stream
) -> None:
    """A guard looks so at a first batch that was refused."""
    online = create_method("cumulative", net(), n=0)
    with online.uncounted():
        assert online.model(batches()[0]).isfinite().all()


class Caching(nn.Module):
    """Keeps what it computes of its parameter in inference mode, as timm's LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.attention_bias_cache = dict[str, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if "cpu" not in self.attention_bias_cache:
            self.attention_bias_cache["cpu"] = self.scale * 2
        return x * self.attention_bias_cache["cpu"]


@every
def test_a_network_that_keeps_tensors_can_be_copied_in_mid_stream(
    net: Net, batches: Stream, name: str
) -> None:
    online = _make(name, nn.Sequential(Caching(), *net()))
    first, second, third, _ = batches()
    online(first)
    other = copy.deepcopy(online)
    for x in (second, third):
        assert torch.equal(online(x), other(x))
    x = batches(seed=3)[0]
    assert torch.equal(online.export()(x), other.export()(x))
