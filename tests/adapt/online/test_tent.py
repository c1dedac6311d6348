"""TENT against its plain formula: train-mode batch norms without tracking, entropy, a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401  # the guard of timm
from normapps.adapt.online import tent as module
from normapps.adapt.online.tent import Tent, collect_params, configure_model, tent
from normapps.errors import InputError
from normapps.norm.layers.streaming import StreamingNorm

timm: Any = pytest.importorskip("timm")
Net, Stream = Callable[..., nn.Sequential], Callable[..., list[Tensor]]


class Plain:
    """The formula on a copy of a network; batch norms as torch trains them, nothing tracked."""

    def __init__(self, model: nn.Module, make: Callable[[Any], Any], steps: int = 1) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.steps = steps
        norms = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
        layers = [each for each in self.model.modules() if isinstance(each, norms)]
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d):
                layer.training = True
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        self.parameters = [p.requires_grad_() for layer in layers for p in layer.parameters(False)]
        self.optimizer = make(self.parameters)

    def __call__(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            logits = self.model(x)
            p = torch.softmax(logits, 1)
            loss = -(p * torch.log_softmax(logits, 1)).sum(1).mean(0)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return logits.detach()


def _adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 5e-2, momentum=0.9)


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance"])
@pytest.mark.parametrize("make", [_adam, _sgd])
@pytest.mark.parametrize("steps", [1, 2])
def test_it_is_the_plain_formula(
    net: Net, batches: Stream, norm: str, make: Callable[[Any], Any], steps: int
) -> None:
    model = net(norm)
    plain = Plain(model, make, steps)
    configured = configure_model(copy.deepcopy(model))
    online = Tent(configured, make(collect_params(configured)[0]), steps)
    for x in batches():
        torch.testing.assert_close(online(x), plain(x), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(collect_params(configured)[0], plain.parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    moved = plain(batches()[0]) - Plain(model, make)(batches()[0])
    assert moved.abs().max() > 0.01  # what was compared has adapted


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("resnet18", torch.float32),
        ("mobilenetv2_050", torch.float64),  # at random it multiplies rounding by hundreds
    ],
)
def test_on_a_network_of_timms(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval().to(dtype)
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d):
            nn.init.normal_(each.running_mean, 0, 0.1)
            nn.init.uniform_(each.running_var, 0.5, 2)
    plain, online = Plain(model, _sgd), tent(model, lr=5e-2)
    for _ in range(2):
        x = torch.randn(4, 3, 64, 64, dtype=dtype)
        torch.testing.assert_close(online(x), plain(x), rtol=1e-5, atol=1e-5)
    strict = timm.create_model(name, num_classes=10).eval().to(dtype)
    strict.load_state_dict(online.export().state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64, dtype=dtype)
    assert torch.equal(strict(x), online.export()(x))


def test_the_logits_are_those_before_the_step(net: Net, batches: Stream) -> None:
    model, x = net("group"), batches()[0]
    online = tent(model, lr=1.0)
    torch.testing.assert_close(online(x), model(x))
    assert (online(x) - model(x)).abs().max() > 0.01


def test_entropy_falls_and_is_told(net: Net, batches: Stream) -> None:
    online, x = tent(net(), optimizer="adam", lr=1e-2), batches()[0]
    found = []
    for _ in range(10):
        online(x)
        found.append(online.facts["entropy"])
    assert found[-1] < found[0] - 0.05


def test_the_shape_that_everybody_knows(net: Net, batches: Stream) -> None:
    model = module.configure_model(net())
    params, names = module.collect_params(model)
    assert names == ["1.weight", "1.bias", "5.weight", "5.bias"]
    assert all(each.requires_grad for each in params)
    assert sum(each.requires_grad for each in model.parameters()) == 4
    optimizer = torch.optim.Adam(params, lr=1e-3)
    online = module.Tent(model, optimizer, steps=2, episodic=True)
    assert online(batches()[0]).shape == (7, 6)
    assert online.model is model
    keys = {key.removeprefix("model.") for key in online.state_dict() if key != "_extra_state"}
    assert keys == set(net().state_dict())  # running statistics, which TENT's code drops


def test_the_papers_settings_are_the_defaults(net: Net) -> None:
    sgd, adam = tent(net()).optimizer, tent(net(), optimizer="adam").optimizer
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (2.5e-4, 0.9)
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.defaults["lr"], adam.defaults["betas"]) == (1e-3, (0.9, 0.999))
    assert not sgd.defaults["weight_decay"]
    assert not adam.defaults["weight_decay"]


def test_a_prior_mixes_the_source_in(net: Net, batches: Stream) -> None:
    model, x = net(), batches((1,))[0]
    far = tent(model, prior=1e9)(x)
    torch.testing.assert_close(far, model(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(tent(model, prior=float("inf"))(x), model(x))
    near = tent(model, prior=4)
    assert not torch.allclose(near(x), model(x), atol=1e-2)
    assert [each.rule for each in near.modules() if isinstance(each, StreamingNorm)] == [
        "prior"
    ] * 2


def test_chosen_layers_alone_adapt(net: Net, batches: Stream) -> None:
    model = net()
    online = tent(model, exclude="5", lr=1.0)
    for x in batches():
        online(x)
    exported = online.export().state_dict()
    changed = {key for key, value in model.state_dict().items() if (exported[key] != value).any()}
    assert changed == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgdd"}, "unknown optimizer 'sgdd'; did you mean 'sgd'"),
        ({"lr": -1.0}, "lr -1.0"),
        ({"lr": float("nan")}, "lr nan"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"steps": 0}, "steps 0: must be at least 1"),
        ({"prior": -1.0}, "prior -1"),
        ({"include": "7"}, "unknown norm layer '7'"),
        ({"exclude": "*"}, "leave none of the 2 norm layers"),
    ],
)
def test_options_that_are_none(net: Net, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tent(net(), **options)
    assert "\n" not in str(caught.value)
