"""AdaBN: the target's statistics by an independent reference, chosen layers, weights, undo."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt import Adaptation, adabn, adabn_, prior
from normapps.errors import InputError
from normapps.norm import create_norm
from normapps.norm.population import Population, apply_, measure, merge


class Net(nn.Module):
    """Three batch norms; γ, β and statistics that are not the initial ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.stage = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 5)
        self.bn3 = nn.BatchNorm1d(5)
        for layer in (self.bn1, self.stage[0], self.bn3):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.bn1(self.conv1(x)).relu())
        x = self.stage(self.conv2(x))
        y: Tensor = self.bn3(self.head(x.mean((2, 3))))
        return y


NAMES = ("bn1", "stage.0", "bn3")


def _batches(sizes: tuple[int, ...] = (6, 5, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 9, 9, generator=generator) * 2 + 1 for n in sizes]


def _reference(model: Net, batches: list[Tensor], chosen: tuple[str, ...]) -> dict[str, Any]:
    """One pass: chosen layers with batch statistics, the others with their own, in float64."""
    model = copy.deepcopy(model).double().eval()
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in NAMES}
    heard: dict[str, list[Tensor]] = {name: [] for name in NAMES}

    def hear(name: str) -> Callable[..., None]:
        return lambda layer, args: heard[name].append(args[0].movedim(1, 0).flatten(1).clone())

    for name, layer in layers.items():
        layer.register_forward_pre_hook(hear(name))
        layer.train(name in chosen)
        layer.momentum = 0.0
    with torch.no_grad():
        for x in batches:
            model(x.double())
    values = {name: torch.cat(heard[name], 1) for name in chosen}
    return {name: (x.mean(1), x.var(1)) for name, x in values.items()}


def _bits(model: nn.Module) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("chosen", [NAMES, ("bn1", "bn3"), ("stage.0",)])
def test_chosen_layers_get_the_target_and_the_others_stay(chosen: tuple[str, ...]) -> None:
    model, batches = Net(), _batches()
    expected = _reference(model, batches, chosen)
    before = _bits(model)
    adapted = adabn(model, batches, include=chosen)
    assert _bits(model) == before
    for name, (mean, var) in expected.items():
        layer: Any = adapted.get_submodule(name)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=1e-6)
    written = {f"{name}.{key}" for name in chosen for key in ("running_mean", "running_var")}
    changed = {key for key, value in _bits(adapted).items() if value != before[key]}
    assert changed == written


def test_exclude_is_the_complement_and_a_folder_takes_what_is_in_it() -> None:
    model, batches = Net(), _batches()
    one = adabn(model, batches, include="stage")
    other = adabn(model, batches, exclude=["bn?"])
    assert _bits(one) == _bits(other) != _bits(model)


def test_the_way_back_and_what_was_done() -> None:
    model, batches = Net(), _batches()
    before, y = _bits(model), model.eval()(batches[0])
    keys = list(model.state_dict())
    with adabn_(model, batches, include="bn*") as adaptation:
        assert isinstance(adaptation, Adaptation)
        assert not torch.allclose(model(batches[0]), y)
        after = _bits(model)
        assert adaptation.layers == ("bn1", "bn3")
        assert list(adaptation.before.layers) == list(NAMES)
        assert list(adaptation.target.layers) == ["bn1", "bn3"]
        assert adaptation.target.unreached == ("stage.0",)
        assert adaptation.target.samples == 14
        assert adaptation.applied is adaptation.target
    assert _bits(model) == before
    assert list(model.state_dict()) == keys
    assert torch.equal(model(batches[0]), y)
    apply_(model, adaptation.target)  # a population of some layers is one of the whole model
    assert _bits(model) == after


def test_populations_of_chosen_layers_are_saved_and_merged(tmp_path: Any) -> None:
    model, batches = Net(), _batches((4, 4))
    parts = [adabn_(copy.deepcopy(model), [x], include="bn1", mode="fixed").target for x in batches]
    parts[0].save(tmp_path / "part.safetensors")
    whole = merge([Population.load(tmp_path / "part.safetensors"), parts[1]])
    apply_(model, whole)
    expected = adabn(Net(), batches, include="bn1", mode="fixed")
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)


@pytest.mark.parametrize("mode", ["one-pass", "layerwise", "fixed"])
def test_modes_are_those_of_measure(mode: str) -> None:
    model, batches = Net(), _batches()
    expected = copy.deepcopy(model)
    apply_(expected, measure(model, batches, mode=mode))
    assert _bits(adabn(model, batches, mode=mode)) == _bits(expected)


def test_weight_mixes_what_is_stored() -> None:
    model, batches = Net(), _batches()
    own, full = model.state_dict(), adabn(model, batches).state_dict()
    half = adabn(model, batches, weight=0.25).state_dict()
    for name in NAMES:
        for key in (f"{name}.running_mean", f"{name}.running_var"):
            expected = 0.75 * own[key].double() + 0.25 * full[key].double()
            torch.testing.assert_close(half[key].double(), expected, rtol=1e-6, atol=1e-7)


def test_weight_0_changes_no_bit() -> None:
    """Not that of a negative zero, of a subnormal number or of a NaN either."""
    model, batches = Net(), _batches()
    with torch.no_grad():
        model.bn1.running_mean[:2] = torch.tensor([-0.0, 1e-42])
        model.bn3.running_mean[0] = float("nan")
    before = _bits(model)
    adaptation = adabn_(model, batches, weight=0)
    assert _bits(model) == before
    assert adaptation.target.samples == 14
    assert adaptation.applied is adaptation.before


def test_the_copy_is_an_ordinary_one() -> None:
    model, batches = Net(), _batches()
    model.conv1.requires_grad_(False)
    model.train()
    adapted = adabn(model, batches)
    assert type(adapted) is Net
    assert all(module.training for module in (*model.modules(), *adapted.modules()))
    assert [each.requires_grad for each in adapted.parameters()] == [
        each.requires_grad for each in model.parameters()
    ]
    assert not any(module._forward_pre_hooks for module in adapted.modules())
    shared = {each.data_ptr() for each in model.state_dict().values()}
    assert not shared & {each.data_ptr() for each in adapted.state_dict().values()}


def test_limit_and_progress() -> None:
    model, batches, seen = Net(), _batches(), list[int]()
    adaptation = adabn_(model, batches, limit=8, progress=seen.append)
    assert (adaptation.target.samples, seen) == (8, [6, 2])


def test_whitening_layers_adapt_by_their_covariance() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), create_norm("zca", 8, group_size=4), nn.ReLU())
    batches, norm = _batches(), model[1]
    own = norm.running_cov.clone()
    full, half = adabn(model, batches), adabn(model, batches, weight=0.5)
    assert not torch.allclose(full[1].running_cov, own)  # type: ignore[index]
    middle = (own + full[1].running_cov) / 2  # type: ignore[index]
    torch.testing.assert_close(half[1].running_cov, middle)  # type: ignore[index]


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), "1", None])
def test_weights_that_are_none(weight: Any) -> None:
    with pytest.raises(InputError, match="weight"):
        adabn(Net(), _batches(), weight=weight)


def test_errors_are_one_line_and_leave_the_model() -> None:
    model, batches = Net(), _batches()
    before = _bits(model)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"include": "bn4"}, "unknown norm layer 'bn4'; did you mean 'bn"),
        ({"exclude": "*"}, "excludes all of the 3 layers"),
        ({"mode": "twice"}, "unknown mode"),
        ({"limit": 0}, "limit 0"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            adabn_(model, batches, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no inputs"):
        adabn_(model, [], include="bn1")
    with pytest.raises(InputError, match="not finite"):
        adabn_(model, [batches[0] * float("nan")], include="stage.0")
    assert _bits(model) == before
    assert list(model.state_dict()) == list(Net().state_dict())
    with pytest.raises(InputError, match="no layer with running statistics"):
        adabn(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), batches)


def test_all_processes_measure_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """`measure` does it, and its tests show that; here it is asked to."""
    asked: list[tuple[Any, Any]] = []

    def listen(*args: Any, sync: bool, group: Any, **options: Any) -> Population:
        asked.append((sync, group))
        return measure(*args, **options)

    monkeypatch.setattr("normapps.adapt.adaptation.measure", listen)
    for function in (adabn, prior):
        function(Net(), _batches(), sync=True, group="shards")
    assert asked == [(True, "shards")] * 2
