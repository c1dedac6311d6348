"""Prior mixing: Schneider's formula by hand, the true number of samples, its two limits."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.adapt import adabn, prior, prior_
from normapps.errors import InputError


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3))
    norm: Any = model[1]
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval()


def _batches(sizes: tuple[int, ...] = (6, 5, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, generator=generator) * 2 + 1 for n in sizes]


def _expected(model: nn.Sequential, batches: list[Tensor], n: float, rule: str) -> list[Tensor]:
    """The mixture of the first and only batch norm, whose input no statistics change."""
    norm: Any = model[1]
    with torch.no_grad():
        x = copy.deepcopy(model[0]).double()(torch.cat(batches).double())
    x = x.movedim(1, 0).flatten(1)
    share = n / (n + sum(map(len, batches)))
    source = norm.running_mean.double(), norm.running_var.double()
    mean = share * source[0] + (1 - share) * x.mean(1)
    var = share * source[1] + (1 - share) * x.var(1, unbiased=True)
    if rule == "pooled":
        var += share * (1 - share) * (source[0] - x.mean(1)) ** 2
    return [mean, var]


@pytest.mark.parametrize("rule", ["linear", "pooled"])
@settings(max_examples=25)
@given(n=st.floats(0, 1e6))
def test_the_mixture_is_schneiders(rule: str, n: float) -> None:
    model, batches = _model(), _batches()
    norm: Any = prior(model, batches, n, rule=rule)[1]  # type: ignore[index]
    mean, var = _expected(model, batches, n, rule)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=1e-6)


def test_n_counts_samples_not_batches() -> None:
    model = _model()
    whole, parts = _batches((14,)), _batches((14,))[0].split((10, 4))
    one, other = prior(model, whole, mode="fixed"), prior(model, list(parts), mode="fixed")
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key])


def test_16_samples_are_the_default() -> None:
    model, batches = _model(), _batches()
    one, other = prior(model, batches), prior(model, batches, 16, rule="linear")
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_no_prior_is_adabn() -> None:
    model, batches = _model(), _batches()
    one, other = prior(model, batches, 0), adabn(model, batches)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("options", [{"n": math.inf}, {"weight": 0}])
def test_all_weight_on_the_source_changes_no_bit(options: dict[str, Any]) -> None:
    model, batches = _model(), _batches()
    norm: Any = model[1]
    norm.running_mean[0] = -0.0
    before = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    adaptation = prior_(model, batches, **options)
    after = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    assert after == before
    assert adaptation.target.samples == 14


def test_the_populations_and_the_way_back() -> None:
    model, batches = _model(), _batches()
    y = model(batches[0])
    with prior_(model, batches, 14, weight=0.5) as adaptation:
        changed = model(batches[0])
        applied = adaptation.applied.layers["1"].mean
    own, target = (each.layers["1"].mean for each in (adaptation.before, adaptation.target))
    torch.testing.assert_close(applied, 0.75 * own + 0.25 * target.to(own), check_dtype=False)
    assert not torch.equal(changed, y)
    assert torch.equal(model(batches[0]), y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": -1}, "n -1: the source counts for 0 samples or more"),
        ({"n": float("nan")}, "n nan"),
        ({"n": "16"}, "n '16'"),
        ({"rule": "poled"}, "unknown rule 'poled'; did you mean 'pooled'"),
        ({"weight": 2}, "weight 2"),
    ],
)
def test_errors_come_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prior(_model(), [], **options)
