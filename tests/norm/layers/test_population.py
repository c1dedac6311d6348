"""What the layers that remember have in common: processes, conversion, folding, inference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

import normapps.models  # noqa: F401  guards the import of timm
from normapps.errors import InputError
from normapps.graph.fold import fold_batchnorm_
from normapps.norm import BATCH, Moments, channel_groups, convert_norm, create_norm
from normapps.norm.layers.base import NormLayer
from normapps.norm.layers.population import pooled

NAMES = ("diminishing", "memorized", "moving", "online", "prong")
OPTIONS: dict[str, dict[str, Any]] = {
    "diminishing": {"power": 0.5},
    "moving": {"warmup": 1, "memory": 2},
    "online": {"guard": "none"},
    "prong": {"group_size": 2, "every": 2},
}
every_name = pytest.mark.parametrize("name", NAMES)
STEPS = ((3, 1), (0, 4), (2, 2))
"""Samples of each process, batch by batch."""


def _layer(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    layer = create_norm(name, 4, **OPTIONS.get(name, {}), **more).double()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter)
    return layer


def _batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, grad = torch.randn(2, 4, 4, 3, dtype=torch.float64, generator=generator)
    return x * 2 + step, grad


def _train(layer: nn.Module, step: int, rank: int | None = None) -> tuple[Tensor, Tensor]:
    x, grad = _batch(step)
    if rank is not None:
        x, grad = (each.split(STEPS[step])[rank] for each in (x, grad))
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(grad)
    return y.detach(), torch.as_tensor(x.grad)


def _in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for name in NAMES:
        layer = _layer(name, sync=True)
        steps = [_train(layer, step, rank) for step in range(len(STEPS))]
        results[name] = {"steps": steps, "state": layer.state_dict()}
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_are_one_on_the_joined_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(_in_process, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in NAMES:
        one, other = (each[name] for each in ranks)
        layer = _layer(name)
        for step in range(len(STEPS)):
            expected = _train(layer, step)
            pairs = zip(one["steps"][step], other["steps"][step], strict=True)
            if name != "online":  # whose samples go one after the other in each process
                for found, wanted in zip(pairs, expected, strict=True):
                    torch.testing.assert_close(torch.cat(found), wanted)
        for key, value in layer.state_dict().items():
            if key != "control":  # each process's own
                torch.testing.assert_close(one["state"][key], other["state"][key])
            if name != "online":
                torch.testing.assert_close(one["state"][key], value)


@every_name
def test_a_batch_of_nothing_is_refused_and_one_of_one_learnt_from(name: str) -> None:
    layer = _layer(name)
    with pytest.raises(InputError, match="in training: 0 sample"):
        layer(torch.randn(0, 4, 3).double())
    x = torch.randn(1, 4, 3, requires_grad=True, dtype=torch.float64)
    layer(x).sum().backward()
    assert torch.isfinite(torch.as_tensor(x.grad)).all()
    assert int(layer.num_batches_tracked) == 1


@every_name
def test_a_network_of_timm_is_converted_trained_and_brought_back(name: str) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(layer.num_features) * 0.1
            layer.running_var = torch.rand(layer.num_features) + 0.5
    x = torch.randn(2, 3, 64, 64)
    converted: Any = convert_norm(model, name, **OPTIONS.get(name, {}))
    layers = [each for each in converted.modules() if isinstance(each, NormLayer)]
    assert len(layers) > 5
    assert any(isinstance(each.act, nn.SiLU) for each in layers)
    with torch.no_grad():
        before = model(x)
        if name not in ("moving", "prong"):  # one has no mean, the other a ridge of its own
            torch.testing.assert_close(converted(x), before, rtol=1e-3, atol=1e-4)
    start = copy.deepcopy(converted.state_dict())
    optimizer = torch.optim.SGD(converted.train().parameters(), lr=1e-3)
    for _ in range(2):
        converted(x).square().sum().backward()
        optimizer.step()
    assert all(torch.isfinite(each.grad).all() for each in converted.parameters())
    moved = [not torch.equal(each, start[key]) for key, each in converted.state_dict().items()]
    assert sum(moved) > 0.8 * len(moved)
    if name == "prong":  # whose matrices no layer of torch's has
        return
    back: Any = convert_norm(convert_norm(converted, "batch"), "torch").eval()
    assert {each.momentum for each in back.modules() if isinstance(each, nn.BatchNorm2d)} == {0.1}
    assert list(back.state_dict()) == list(model.state_dict())
    if name != "moving":
        with torch.no_grad():
            torch.testing.assert_close(back(x), converted.eval()(x), rtol=1e-3, atol=1e-4)


@every_name
def test_it_folds_into_the_convolution_before_it(name: str) -> None:
    options = {**OPTIONS.get(name, {}), "layout": "2d", "act": nn.ReLU}
    model = nn.Sequential(nn.Conv2d(3, 4, 3), create_norm(name, 4, **options))
    images = torch.randn(4, 3, 8, 8)
    for _ in range(3):
        model(images)
    with torch.no_grad():
        expected = model.eval()(images)
        folding = fold_batchnorm_(model, images)
    assert len(folding.folded) == 1
    assert isinstance(model[1], nn.ReLU)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_layer_scaling_is_no_fixed_map() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), create_norm("online", 4, layout="2d")).eval()
    folding = fold_batchnorm_(model, torch.randn(2, 3, 8, 8))
    assert "measures each input at inference" in folding.left[0][1]


@every_name
def test_a_half_precision_network_remembers_in_float32(name: str) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4).to(torch.bfloat16)
    converted: Any = convert_norm(norm, name, **OPTIONS.get(name, {})).train()
    held = {key: each.dtype for key, each in converted.named_buffers() if "running" in key}
    assert set(held.values()) == {torch.float32}, held
    assert converted(torch.randn(4, 4, 2, 2).to(torch.bfloat16)).dtype == torch.bfloat16
    back: Any = convert_norm(converted, "batch")
    assert back.running_mean.dtype == torch.bfloat16
    assert torch.isfinite(back(torch.randn(4, 4, 2, 2).to(torch.bfloat16))).all()


def test_pooled_moments_are_those_of_the_samples_together() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(6, 4, 5, generator=generator), torch.randn(3, 4, 5) * 3 + 2
    for full, partition in ((False, BATCH), (True, channel_groups(2))):
        parts = [Moments.of(each.double(), partition, full=full) for each in (one, other)]
        found = pooled(*parts, torch.tensor(1 / 3).double())
        wanted = parts[0].merge(parts[1])
        torch.testing.assert_close(found.mean, wanted.mean)
        torch.testing.assert_close(found.var, wanted.var)
        if full:
            torch.testing.assert_close(found.cov, wanted.cov)
