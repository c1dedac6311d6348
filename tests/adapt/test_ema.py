"""Online statistics: the recurrence by hand, each batch normalized with the updated values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt import create_method, ema, ema_
from normapps.errors import InputError
from normapps.norm import create_norm


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(5), nn.BatchNorm2d(4), nn.BatchNorm1d(4)]
    for norm in norms:
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    first = [nn.Conv2d(3, 5, 3), norms[0], nn.ReLU(), nn.Dropout(0.5)]
    last = [nn.Conv2d(5, 4, 3), norms[1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), norms[2]]
    return nn.Sequential(*first, *last).eval()


NORMS = ("1", "5", "8")


def _batches(sizes: tuple[int, ...] = (6, 5, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, generator=generator) * 2 + 1 for n in sizes]


@torch.no_grad()
def _reference(
    model: nn.Sequential, batches: list[Tensor], momentum: float | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer by layer in float64. Without a momentum all values so far are kept and measured."""
    model = copy.deepcopy(model).double()
    running = {
        name: (model.get_buffer(f"{name}.running_mean"), model.get_buffer(f"{name}.running_var"))
        for name in NORMS
    }
    seen: dict[str, list[Tensor]] = {name: [] for name in NORMS}
    for batch in batches:
        x = batch.double()
        for name, layer in model.named_children():
            if name in NORMS:
                values = x.movedim(1, 0).flatten(1)
                seen[name].append(values)
                if momentum is None:
                    values = torch.cat(seen[name], 1)
                share = 1.0 if momentum is None else momentum
                new = values.mean(1), values.var(1, unbiased=False)
                if values.shape[1] > 1:
                    running[name] = tuple(  # type: ignore[assignment]
                        (1 - share) * old + share * each
                        for old, each in zip(running[name], new, strict=True)
                    )
                shape = (1, -1, *[1] * (x.dim() - 2))
                mean, var = (each.view(shape) for each in running[name])
                x = (x - mean) / (var + layer.eps).sqrt()
            else:
                x = layer(x)
    if momentum is None:
        whole = {name: torch.cat(seen[name], 1) for name in NORMS}
        return {name: (values.mean(1), values.var(1)) for name, values in whole.items()}
    return running


@pytest.mark.parametrize("momentum", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("sizes", [(6, 5, 3), (4, 1, 4, 1)])
def test_statistics_follow_the_stream(momentum: float, sizes: tuple[int, ...]) -> None:
    model, batches = _model(), _batches(sizes)
    adapted = ema(model, batches, momentum)
    for name, (mean, var) in _reference(model, batches, momentum).items():
        layer: Any = adapted.get_submodule(name)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(6, 5, 3), (4, 1, 4, 1)])
def test_cumulative_pools_by_count(sizes: tuple[int, ...]) -> None:
    model, batches = _model(), _batches(sizes)
    adaptation = ema_(model, batches, cumulative=True)
    assert adaptation.target.samples == sum(sizes)
    for name, (mean, var) in _reference(model, batches, None).items():
        layer: Any = model.get_submodule(name)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=1e-6)


def test_the_online_method_leaves_the_same_behind() -> None:
    model, batches = _model(), _batches()
    online = create_method("ema", model, momentum=0.2)
    for x in batches:
        online(x)
    there, here = online.export().state_dict(), ema(model, batches, 0.2).state_dict()
    assert list(there) == list(here)
    for key, value in here.items():
        if "num_batches" not in key:
            torch.testing.assert_close(there[key], value, rtol=1e-5, atol=1e-6)


def test_the_order_counts_and_the_model_is_left_alone() -> None:
    model, batches = _model().train(), _batches()
    before = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    y = model.eval()(batches[0])
    model.train()
    one, other = ema(model, batches, 0.5), ema(model, batches[::-1], 0.5)
    assert not torch.allclose(one[1].running_mean, other[1].running_mean)  # type: ignore[index]
    after = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    assert after == before
    assert model.training
    assert torch.equal(model.eval()(batches[0]), y)


@pytest.mark.parametrize("options", [{"momentum": 0}, {"weight": 0}])
def test_all_weight_on_the_source_changes_no_bit(options: dict[str, Any]) -> None:
    model, batches = _model(), _batches()
    norm: Any = model[1]
    norm.running_mean[0] = -0.0
    before = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    ema_(model, batches, **options)
    after = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    assert after == before


def test_chosen_layers_alone_follow_and_come_back() -> None:
    model, batches = _model(), _batches()
    own = {key: value.clone() for key, value in model.state_dict().items()}
    with ema_(model, batches, 0.5, exclude="5", limit=8) as adaptation:
        changed = {key for key, value in model.state_dict().items() if not value.equal(own[key])}
        assert changed == {f"{name}.running_{what}" for name in "18" for what in ("mean", "var")}
        assert adaptation.layers == ("1", "8")
        assert adaptation.target.samples is None
    assert all(value.equal(own[key]) for key, value in model.state_dict().items())


def test_whitening_layers_follow_by_their_covariance() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), create_norm("zca", 8, group_size=4)).eval()
    batches = _batches((6,))
    own: Any = model[1]
    with torch.no_grad():
        x = model[0](batches[0]).movedim(1, 0).flatten(1)
    centred = (x - x.mean(1, keepdim=True)).view(2, 4, -1)
    cov = centred @ centred.mT / x.shape[1]
    found: Any = ema(model, batches, 0.25)[1]  # type: ignore[index]
    torch.testing.assert_close(found.running_cov, 0.75 * own.running_cov + 0.25 * cov)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": -0.1}, "momentum -0.1"),
        ({"momentum": float("nan")}, "momentum nan"),
        ({"momentum": None}, "momentum None"),
        ({"weight": 2}, "weight 2"),
        ({"include": "9"}, "unknown norm layer '9'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ema(_model(), _batches(), **options)


def test_streams_that_cannot_be_followed() -> None:
    model = _model()
    with pytest.raises(InputError, match="no inputs"):
        ema(model, [])
    with pytest.raises(InputError, match="layer '1': activations are not finite"):
        ema(model, [_batches()[0] * float("inf")])
    with pytest.raises(InputError, match="layer '8': the first batch gives one value a channel"):
        ema(model, _batches((1, 4)), cumulative=True)
    with pytest.raises(InputError, match="comes to none of its 1 layers"):
        ema_(_Unused(), _batches())


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return x
