"""The statistics methods as streams, against formulas written here on the plain network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt import Online, create_method
from normapps.adapt.online.statistics import BatchStatistics, Statistics, prior
from normapps.errors import InputError


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(5)]
    for norm in norms:
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
    body = [nn.Conv2d(3, 6, 3), norms[0], nn.ReLU(), nn.Conv2d(6, 5, 3), norms[1], nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)).eval()


def _batches(sizes: tuple[int, ...] = (6, 6, 2)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 9, 9, generator=generator) * 2 + i for i, n in enumerate(sizes)]


Rule = Callable[[dict[str, Tensor], Tensor, int], tuple[Tensor, Tensor]]
"""State of a layer, its values (C, M), number of samples → what to normalize with."""


@torch.no_grad()
def _reference(model: nn.Sequential, batches: list[Tensor], rule: Rule) -> list[Tensor]:
    """Logits of each batch in float64, each batch norm with what a rule gives."""
    model = copy.deepcopy(model).double()
    states: dict[int, dict[str, Tensor]] = {}
    logits = []
    for batch in batches:
        x = batch.double()
        for layer in model:
            if not isinstance(layer, nn.BatchNorm2d):
                x = layer(x)
                continue
            own = {"mean": layer.running_mean, "var": layer.running_var}
            state = states.setdefault(id(layer), own)  # type: ignore[arg-type]
            mean, var = rule(state, x.movedim(1, 0).flatten(1), len(x))
            scale = layer.weight / (var + layer.eps).sqrt()
            shape = (1, -1, 1, 1)
            x = (x - mean.view(shape)) * scale.view(shape) + layer.bias.view(shape)
        logits.append(x)
    return logits


def _of_batch(state: dict[str, Tensor], x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return x.mean(1), x.var(1, unbiased=False)


def _schneider(state: dict[str, Tensor], x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    share = 16 / (16 + n)
    mean = share * state["mean"] + (1 - share) * x.mean(1)
    return mean, share * state["var"] + (1 - share) * x.var(1, unbiased=True)


def _robust(state: dict[str, Tensor], x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    state["mean"] = 0.95 * state["mean"] + 0.05 * x.mean(1)
    state["var"] = 0.95 * state["var"] + 0.05 * x.var(1, unbiased=False)
    return state["mean"], state["var"]


def _pooled(state: dict[str, Tensor], x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    state["x"] = torch.cat([state["x"], x], 1) if "x" in state else x
    state["n"] = state.get("n", torch.tensor(0)) + n
    return _schneider(state, state["x"], int(state["n"]))


CASES: dict[str, tuple[Rule, dict[str, Any]]] = {
    "adabn": (_of_batch, {}),
    "prior": (_schneider, {"n": 16}),
    "ema": (_robust, {"momentum": 0.05}),
    "cumulative": (_pooled, {"n": 16}),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_formulas(name: str) -> None:
    """The last batch is smaller, and counts for less."""
    model, batches = _model(), _batches()
    rule, options = CASES[name]
    online = create_method(name, model, **options)
    for x, expected in zip(batches, _reference(model, batches, rule), strict=True):
        logits = online(x)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logits, model(x), atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_chosen_layers_alone_follow(name: str) -> None:
    model, x = _model(), _batches()[0]
    one = create_method(name, model, include="1")(x)
    other = create_method(name, model, exclude="4")(x)
    assert torch.equal(one, other)
    assert not torch.allclose(one, create_method(name, model)(x), atol=1e-3)


def test_episodes_begin_at_the_source() -> None:
    model, batches = _model(), _batches()
    online = create_method("ema", model, episodic=True)
    online(batches[0])
    assert torch.equal(online(batches[1]), create_method("ema", model)(batches[1]))


def test_what_is_exported_normalizes_as_the_stream_did() -> None:
    model, x = _model(), _batches((7,))[0]
    online = create_method("prior", model, n=16)
    logits = online(x)
    torch.testing.assert_close(online.export()(x), logits, rtol=1e-5, atol=1e-5)


def test_one_input_is_refused_where_nothing_but_it_counts() -> None:
    model, x = _model(), _batches((1,))[0]
    for online in (create_method("adabn", model), create_method("prior", model, n=0)):
        assert isinstance(online, BatchStatistics)
        with pytest.raises(InputError, match=r"a batch of 1, needs 2: .* \(prior, .*rotta\)"):
            online(x)
    for name in ("source", "prior", "ema", "cumulative"):
        assert create_method(name, model)(x).isfinite().all()


def test_all_weight_on_the_source_is_the_source() -> None:
    model, x = _model(), _batches()[0]
    online = prior(model, float("inf"))
    assert type(online) is Statistics
    assert torch.equal(online(x), model(x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("prior", {"n": -1}, "prior -1"),
        ("ema", {"momentum": 1.5}, "momentum 1.5"),
        ("adabn", {"include": "5"}, "unknown norm layer '5'"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_method(name, _model(), **options)


def test_no_parameter_requires_a_gradient() -> None:
    online: Online = create_method("adabn", _model())
    assert not any(each.requires_grad for each in online.parameters())
