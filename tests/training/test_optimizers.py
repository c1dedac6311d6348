"""Every way of training: what it makes, its formulas, and that digits are learnt with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer

from normapps.engine.run import optimizer_tensors, restore_optimizer
from normapps.errors import InputError
from normapps.norm.weight.manifold import constrain_
from normapps.norm.weight.methods import remove_weight_norm_
from normapps.norm.weight.penalties import orthogonal_penalty
from normapps.norm.weight.registry import WEIGHT_METHODS, normalize_weights_
from normapps.training.optimizers import OPTIMIZERS, create_optimizer, decay_groups
from normapps.training.optimizing import make_optimizer
from normapps.training.options import GRADIENTS, FitOptions

# Digits


@cache
def _digits() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))  # writers mixed
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    return images[order], torch.tensor(digits.target)[order]


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(128, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)),
    )


def _fit(network: nn.Module, optimizer: Optimizer, kind: str | None = None) -> float:
    """Train for four epochs; return the accuracy on pictures that were not learnt from."""
    images, labels = _digits()
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for chosen in torch.randperm(1400, generator=generator).split(40):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images[chosen]), labels[chosen])
            if kind is not None:
                loss = loss + 0.01 * orthogonal_penalty(network, kind)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float((network.eval()(images[1400:]).argmax(1) == labels[1400:]).double().mean())


def _plain(network: nn.Module, lr: float = 0.03) -> Optimizer:
    return create_optimizer("sgd", network, lr=lr, weight_decay=1e-4)


def _normalized(method: str) -> Callable[[nn.Module], Optimizer]:
    def make(network: nn.Module) -> Optimizer:
        normalize_weights_(network, method)
        return _plain(network, 0.01 if method == "orthogonal" else 0.03)

    return make


def _constrained(manifold: str) -> Callable[[nn.Module], Optimizer]:
    def make(network: nn.Module) -> Optimizer:
        optimizer = _plain(network)
        constrain_(optimizer, network, manifold)
        return optimizer

    return make


WAYS: dict[str, Callable[[nn.Module], Optimizer]] = {
    **{method: _normalized(method) for method in WEIGHT_METHODS},
    "oblique": _constrained("oblique"),
    "stiefel": _constrained("stiefel"),
    "so": _plain,
    "dso": _plain,
    "srip": _plain,
    "centralized": lambda n: create_optimizer("sgd", n, lr=0.03, centralize=True),
    "block": lambda n: create_optimizer("sgd", n, lr=0.015, block_normalize=True),
    "clipped": lambda n: create_optimizer("sgd", n, lr=0.05, clip=0.05),
    "adam": lambda n: create_optimizer("adam", n, lr=3e-3),
    "adamw": lambda n: create_optimizer("adamw", n, lr=3e-3, weight_decay=0.01),
    "lars": lambda n: create_optimizer("lars", n, lr=0.1, weight_decay=1e-4, trust_coeff=0.02),
    "lamb": lambda n: create_optimizer("lamb", n, lr=0.01, weight_decay=1e-4),
    "adamp": lambda n: create_optimizer("adamp", n, lr=3e-3, weight_decay=0.01),
}


@pytest.mark.parametrize("way", WAYS)
def test_digits_are_learnt(way: str) -> None:
    network = _network()
    accuracy = _fit(network, WAYS[way](network), way if way in ("so", "dso", "srip") else None)
    assert accuracy > 0.95
    if way in WEIGHT_METHODS:  # a plain network is left, for inference and export
        images = _digits()[0][:50]
        expected = network(images)
        remove_weight_norm_(network)
        assert [type(each) for each in network] == [type(each) for each in _network()]
        assert torch.equal(network(images), expected)


# What is made


def test_names_and_options() -> None:
    import timm.optim

    network = _network()
    kinds = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    kinds += (timm.optim.Lars, timm.optim.Lamb, timm.optim.AdamP)
    for (name, (_, _, own)), kind in zip(OPTIMIZERS.items(), kinds, strict=True):
        optimizer = create_optimizer(name, network, lr=0.3, weight_decay=0.2)
        assert type(optimizer) is kind
        for group in optimizer.param_groups:
            assert group["lr"] == 0.3
            assert all(group[key] == value for key, value in own.items())
    optimizer = create_optimizer("sgd", network.parameters(), lr=0.1, nesterov=True, momentum=0.5)
    assert (optimizer.param_groups[0]["nesterov"], optimizer.param_groups[0]["momentum"]) == (
        True,
        0.5,
    )
    groups = [{"params": [each], "lr": 0.1 * i} for i, each in enumerate(network.parameters())]
    made = create_optimizer("adam", groups, lr=1.0)
    assert [group["lr"] for group in made.param_groups] == [group["lr"] for group in groups]


def test_of_a_network_vectors_and_norms_do_not_decay() -> None:
    network = _network()
    network[0].bias.requires_grad_(False)  # type: ignore[union-attr, operator]
    optimizer = create_optimizer("adamw", network, lr=0.1, weight_decay=0.2)
    found = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in network.named_parameters():
        if name != "0.bias":
            assert found.pop(id(parameter)) == (0.2 if parameter.dim() > 1 else 0.0), name
    assert not found
    assert len(decay_groups(nn.BatchNorm1d(3), 0.1)) == 1


def test_trainers_get_the_same_optimizers_as_ever() -> None:
    network = _network()
    sgd = make_optimizer(network, FitOptions(optimizer="sgd", lr=0.1))
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.9, True)
    assert type(make_optimizer(network, FitOptions(optimizer="adam"))) is torch.optim.AdamW


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_trainers_edit_gradients(gradient: str) -> None:
    network = _network()
    optimizer = make_optimizer(network, FitOptions(gradient=gradient, optimizer="lamb", lr=0.0))
    assert type(optimizer).__name__ == "Lamb"
    weight = network[4].weight
    assert isinstance(weight, nn.Parameter)
    weight.grad = torch.rand(weight.shape) + 1
    before = weight.grad.clone()
    optimizer.step()
    rows = weight.grad.norm(dim=1) / weight.detach().norm(dim=1)
    assert torch.equal(weight.grad, before) == (gradient == "plain")
    assert (float(weight.grad.mean(1).abs().max()) < 1e-6) == (gradient == "centralized")
    assert bool((rows < 0.01001).all()) == (gradient == "clipped")
    assert (abs(float(weight.grad.norm()) - 1) < 1e-4) == (gradient == "unit")


def test_gradients_are_normalized_at_every_step() -> None:
    network = _network()
    optimizer = create_optimizer("sgd", network, lr=0.0, centralize=True, block_normalize=True)
    for scale in (1.0, 50.0):
        optimizer.zero_grad()
        (scale * network(_digits()[0][:8]).square().sum()).backward()
        optimizer.step()
        for parameter in network.parameters():
            assert parameter.grad is not None
            assert float(parameter.grad.norm()) == pytest.approx(1, abs=1e-4)
            if parameter.dim() > 1:
                assert float(parameter.grad.flatten(1).mean(1).abs().max()) < 1e-6


# Formulas, of a first step in float64


def _step(name: str, weight: Tensor, gradient: Tensor, **options: object) -> Tensor:
    parameter = nn.Parameter(weight.clone())
    parameter.grad = gradient.clone()
    create_optimizer(name, [parameter], **options).step()  # type: ignore[arg-type]
    return parameter.detach() - weight


def test_timms_optimizers_by_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    w, g = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    found = _step("lars", w, g, lr=2.0, weight_decay=0.1)
    ratio = 0.001 * w.norm() / (g.norm() + 0.1 * w.norm())
    torch.testing.assert_close(found, -2.0 * ratio * (g + 0.1 * w), rtol=1e-6, atol=1e-12)
    found = _step("lamb", w, g, lr=0.1, weight_decay=0.1, eps=1e-12)
    update = g.sign() + 0.1 * w
    expected = -0.1 * update * w.norm() / update.norm()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    tangent = g - (g * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
    found = _step("adamp", w, tangent, lr=0.1, eps=1e-12)
    sign = tangent.sign()
    expected = sign - (sign * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
    torch.testing.assert_close(found, -0.1 * expected, rtol=1e-6, atol=1e-9)
    assert float((found * w).sum(1).abs().max()) < 1e-9  # lengths stay to first order


# Checkpoints


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_checkpoints_of_a_run_resume_exactly(name: str) -> None:
    images, labels = _digits()

    def train(network: nn.Module, optimizer: Optimizer) -> None:
        for start in (0, 20, 40):
            optimizer.zero_grad()
            F.cross_entropy(
                network(images[start : start + 20]), labels[start : start + 20]
            ).backward()
            optimizer.step()

    def make(network: nn.Module) -> Optimizer:
        return create_optimizer(name, network, lr=0.01, weight_decay=0.01, centralize=True)

    whole, resumed = _network(), _network()
    optimizer, again = make(whole), make(resumed)
    train(whole, optimizer)
    saved = copy.deepcopy((whole.state_dict(), optimizer_tensors(optimizer)))
    train(whole, optimizer)
    assert all(isinstance(each, Tensor) for each in saved[1].values())
    resumed.load_state_dict(saved[0])
    restore_optimizer(again, saved[1])
    train(resumed, again)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


# Export


def test_orthogonal_weights_are_exported(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network, x = (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval(),
        torch.randn(2, 6),
    )
    normalize_weights_(network, "own", include=["0"])
    normalize_weights_(network, "oni", include=["2"])
    expected = network(x).detach()
    program = torch.export.export(network, (x,))  # as they are
    torch.testing.assert_close(program.module()(x), expected)
    remove_weight_norm_(network)
    file = tmp_path / "network.onnx"
    torch.onnx.export(network, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-6)


# Refusals


def test_refusals() -> None:
    network = _network()
    with pytest.raises(InputError, match="unknown optimizer 'lambs'; did you mean 'lamb'"):
        create_optimizer("lambs", network, lr=0.1)
    with pytest.raises(InputError, match="unknown option of optimizer 'sgd' 'momentun'; did you"):
        create_optimizer("sgd", network, lr=0.1, momentun=0.9)
    for lr, decay in ((-1.0, 0.0), (float("nan"), 0.0), (0.1, -1.0), (0.1, float("inf"))):
        with pytest.raises(InputError, match="must be 0 or above, and finite"):
            create_optimizer("sgd", network, lr=lr, weight_decay=decay)
    with pytest.raises(InputError, match="optimizer 'sgd': Invalid momentum value: -1"):
        create_optimizer("sgd", network, lr=0.1, momentum=-1.0)
    with pytest.raises(InputError, match="optimizer 'adam': 'float' object is not"):
        create_optimizer("adam", network, lr=0.1, betas=0.9)
    with pytest.raises(InputError, match="clip 0: must be above 0"):
        create_optimizer("sgd", network, lr=0.1, clip=0)
    with pytest.raises(InputError, match="optimizer 'adam': no parameters that require a gradient"):
        create_optimizer("adam", network.requires_grad_(False), lr=0.1)
