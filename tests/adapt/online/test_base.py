"""What every method with a gradient promises: state, reset, refusals, an ordinary export."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401  # the guard of timm
from normapps.adapt.methods import create_method, list_methods
from normapps.adapt.online.base import (
    Online,
    collect_params,
    configure_model,
    plain_copy,
    streaming_layers,
)
from normapps.adapt.online.eata import eata
from normapps.adapt.online.sar import sar
from normapps.adapt.online.tent import Tent, tent
from normapps.errors import InputError

timm: Any = pytest.importorskip("timm")
Net, Stream = Callable[..., nn.Sequential], Callable[..., list[Tensor]]
Make = Callable[..., Online]


def _eata(model: nn.Module, **options: Any) -> Online:
    return eata(model, margin=1.0, redundancy=2.0, **options)


def _sar(model: nn.Module, **options: Any) -> Online:
    return sar(model, margin=1.0, recovery=0, **options)


MAKES: dict[str, Make] = {"tent": tent, "eata": _eata, "sar": _sar}
every = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
NORMS = ("batch", "group", "layer", "instance")


def _differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The places at which two nested states are not the same to the bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys"]
        return [each for key in a for each in _differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [each for i, pair in pairs for each in _differences(*pair, f"{where}/{i}")]
    return [] if type(a) is type(b) and a == b else [where]


def _state(online: Online) -> dict[str, Any]:
    return copy.deepcopy(online.state_dict())


@every
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_reset_brings_the_whole_state_back(
    net: Net, batches: Stream, make: Make, norm: str, optimizer: str
) -> None:
    online, fresh = (make(net(norm), optimizer=optimizer, lr=0.1) for _ in range(2))
    for x in batches():
        online(x)
    assert _differences(_state(online), _state(fresh))
    online.reset()
    assert _differences(_state(online), _state(fresh)) == []
    assert online.facts == {}
    for x in batches(seed=2):
        assert torch.equal(online(x), fresh(x))
    assert _differences(_state(online), _state(fresh)) == []


@every
@pytest.mark.parametrize("options", [{}, {"prior": 8.0}, {"steps": 2}, {"optimizer": "adam"}])
def test_a_file_written_in_mid_stream_goes_on_to_the_bit(
    net: Net, batches: Stream, make: Make, options: dict[str, Any]
) -> None:
    online, other = (make(net(), lr=0.05, **options) for _ in range(2))
    first, second, *rest = batches()
    online(first)
    online(second)
    file = io.BytesIO()
    torch.save(online.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for x in rest:
        assert torch.equal(online(x), other(x))
    assert _differences(_state(online), _state(other)) == []
    other.reset()  # to where it was made, not to where it was loaded
    fresh = make(net(), lr=0.05, **options)
    assert _differences(_state(other), _state(fresh)) == []


@every
def test_what_is_loaded_does_not_follow_its_source(net: Net, batches: Stream, make: Make) -> None:
    online, other = (make(net(), lr=0.05, optimizer="adam") for _ in range(2))
    online(batches()[0])
    state = online.state_dict()
    other.load_state_dict(state)
    kept = _state(other)
    online(batches()[1])
    assert _differences(_state(other), kept) == []


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_episodes_are_fresh_each_time_in_any_mode(
    net: Net, batches: Stream, make: Make, mode: Callable[[], Any]
) -> None:
    online = make(net(), episodic=True, lr=0.1, steps=2, optimizer="adam")
    for x in batches():
        fresh = make(net(), lr=0.1, steps=2, optimizer="adam")
        expected = fresh(x)
        with mode():
            found = online(x.clone())
        assert torch.equal(found, expected)
        assert not found.requires_grad
        assert _differences(_state(online), _state(fresh)) == []


@every
def test_inference_mode_changes_no_bit_and_gradients_stay_off_the_input(
    net: Net, batches: Stream, make: Make
) -> None:
    with torch.inference_mode():
        inside = make(net(), lr=0.1)
        inputs = [x.clone() for x in batches()]
        found = [inside(x) for x in inputs]
        inside.reset()
        again = [inside(x) for x in inputs]
    outside = make(net(), lr=0.1)
    expected = [outside(x) for x in batches()]
    assert _differences(found, expected) == _differences(again, expected) == []


@every
@pytest.mark.parametrize("norm", NORMS)
def test_the_export_is_an_ordinary_network(
    net: Net, batches: Stream, make: Make, norm: str
) -> None:
    source = net(norm)
    before = copy.deepcopy(source.state_dict())
    online = make(source, lr=0.1)
    for x in batches():
        online(x)
    assert _differences(source.state_dict(), before) == []
    exported = online.export()
    assert [type(each) for each in exported.modules()] == [type(each) for each in source.modules()]
    assert not any(each.training for each in exported.modules())
    assert all(each.requires_grad for each in exported.parameters())
    loaded = net(norm)
    loaded.load_state_dict(exported.state_dict(), strict=True)
    assert torch.equal(loaded(batches()[0]), exported(batches()[0]))
    after = exported.state_dict()
    assert (after["9.weight"] == before["9.weight"]).all()  # the head stays
    assert _differences(after, before)


def test_the_exported_population_is_the_streams(net: Net, batches: Stream) -> None:
    online = tent(net(), lr=0.0)
    for x in batches():
        online(x)
    rows = torch.cat([net()[0](x).movedim(1, 0).flatten(1) for x in batches()], 1).detach()
    first: Any = online.export()[1]  # type: ignore[index]
    torch.testing.assert_close(first.running_mean, rows.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.running_var, rows.var(1), rtol=1e-5, atol=1e-5)


@every
def test_two_runs_are_the_same(net: Net, batches: Stream, make: Make) -> None:
    runs = []
    for seed in (5, 6):
        online = make(net(), lr=0.1)
        torch.manual_seed(seed)
        runs.append([*[online(x) for x in batches()], _state(online)])
    assert _differences(*runs) == []


@every
def test_modes_of_the_wrapper_change_nothing(net: Net, batches: Stream, make: Make) -> None:
    online, other = make(net(), lr=0.1).eval(), make(net(), lr=0.1).train()
    for x in batches():
        assert torch.equal(online(x), other(x))
    assert not online.training
    assert not online.model[3].training  # type: ignore[index,union-attr]  # dropout


@every
def test_a_copy_is_another_one(net: Net, batches: Stream, make: Make) -> None:
    online = make(net(), lr=0.1)
    online(batches()[0])
    other = copy.deepcopy(online)
    kept = _state(other)
    expected = online(batches()[1])
    assert _differences(_state(other), kept) == []
    assert torch.equal(other(batches()[1]), expected)
    assert _differences(_state(other), _state(online)) == []


MODES: tuple[Callable[[], Any], ...] = (torch.inference_mode, torch.no_grad, torch.enable_grad)


@pytest.mark.parametrize("name", list_methods())
def test_every_method_can_be_made_in_inference_mode(net: Net, batches: Stream, name: str) -> None:
    model, expected = net(), create_method(name, net())
    with torch.inference_mode():
        online = create_method(name, model)
    for x, mode in zip(batches(), MODES, strict=False):
        with mode():
            found = online(x.clone())
        assert torch.equal(found, expected(x))
    online.reset()


BAD = {
    "nan": (float("nan"), "NaN or infinite values"),
    "inf": (float("inf"), "NaN or infinite values"),
    "overflow": (1e38, "too large for torch.float32 statistics|makes NaN or infinite logits"),
}


@every
@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize(("norm", "prior"), [("batch", 0), ("batch", 8), ("group", 0)])
def test_a_batch_that_is_not_finite_changes_nothing(
    net: Net, batches: Stream, make: Make, case: str, norm: str, prior: float
) -> None:
    value, message = BAD[case]
    if (case, norm) == ("overflow", "group"):  # makes finite zeros of it and keeps no statistics
        return
    online, other = (make(net(norm), lr=0.1, prior=prior) for _ in range(2))
    first, second, third, _ = batches()
    bad = second.clone()
    bad[2, 1] = value
    online(first)
    other(first)
    with pytest.raises(InputError, match=message) as caught:
        online(bad)
    assert "\n" not in str(caught.value)
    assert _differences(_state(online), _state(other)) == []
    assert torch.equal(online(third), other(third))
    assert _differences(_state(online), _state(other)) == []


def test_large_finite_values_are_no_reason_to_refuse(net: Net) -> None:
    x = torch.full((2, 3, 9, 9), 1e37)  # whose sum is infinite
    tent(net()).check_batch(x)
    x[1, 2, 3, 4] = -float("inf")
    with pytest.raises(InputError, match="NaN or infinite"):
        tent(net()).check_batch(x)


@pytest.mark.parametrize("rule", ["ema", "cumulative"])
def test_statistics_that_move_at_once_go_back(net: Net, batches: Stream, rule: str) -> None:
    online = Tent(*_configured(net(), rule=rule))
    online(batches()[0])
    before = _state(online)
    bad = batches()[1]
    bad[0] = 1e38
    with pytest.raises(InputError, match=r"logits|too large"):
        online(bad)
    assert _differences(_state(online), before) == []
    online(batches()[2])
    assert _differences(_state(online), before)


def _configured(model: nn.Module, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = configure_model(model, **options)
    return model, torch.optim.SGD(collect_params(model)[0], 0.1)


def test_a_gradient_that_is_not_finite_changes_nothing(net: Net, batches: Stream) -> None:
    class Steep(Tent):
        def step(self, x: Tensor) -> Tensor:
            logits = self.logits(x)
            self.descend((logits - logits.detach()).abs().sqrt().sum())
            return logits

    online = Steep(*_configured(net()))
    before = _state(online)
    with pytest.raises(InputError, match="the gradient of this batch is not finite"):
        online(batches()[0])
    assert _differences(_state(online), before) == []
    assert all(each.grad is None for each in online.parameters())


@every
def test_a_checkpoint_that_is_not_finite_is_one_line(net: Net, batches: Stream, make: Make) -> None:
    model = net()
    with torch.no_grad():
        model[4].weight[0] = float("nan")
    with pytest.raises(InputError, match=r"Sequential makes NaN .* check the checkpoint") as caught:
        make(model)(batches()[0])
    assert "\n" not in str(caught.value)


@every
def test_classes_that_are_ruled_out_are_no_error(net: Net, batches: Stream, make: Make) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return torch.cat([y[:, :-1], torch.full_like(y[:, -1:], -float("inf"))], 1)

    online = make(Masked(), lr=0.1)
    for x in batches():
        assert online(x).isneginf().sum() == len(x)
    assert all(each.isfinite().all() for each in online.parameters())


@every
def test_one_input_is_refused_where_nothing_but_it_counts(
    net: Net, batches: Stream, make: Make
) -> None:
    x = batches((1,))[0]
    with pytest.raises(InputError, match=r"a batch of 1, needs 2: .*\(prior, rotta\)") as caught:
        make(net())(x)
    assert "\n" not in str(caught.value)
    for online in (make(net(), prior=16), make(net("layer")), make(net("group"))):
        for _ in range(3):
            assert online(x).isfinite().all()
    with pytest.raises(InputError, match="a batch of 0, needs 2"):
        make(net())(x[:0])
    with pytest.raises(InputError, match="a batch of 0, needs 1"):
        make(net("group"))(x[:0])


@every
def test_one_input_behind_a_global_pooling(make: Make) -> None:
    """One value a channel: with a source its variance stays the source's; alone it is refused."""
    torch.manual_seed(0)
    pool = [nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*pool, nn.Flatten(), nn.Linear(8, 4)).eval()
    online = make(model, prior=4, lr=0.1)
    for _ in range(3):
        assert online(torch.randn(1, 3, 9, 9)).isfinite().all()
    assert online.export()[2].running_var.isfinite().all()  # type: ignore[index,union-attr]
    assert make(model)(torch.randn(2, 3, 9, 9)).isfinite().all()


@every
def test_networks_that_cannot_adapt_are_refused_in_one_line(make: Make, net: Net) -> None:
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))
    for model, message in ((bare, "no normalization layer"), (plain, "no scale or shift")):
        with pytest.raises(InputError, match=message) as caught:
            make(model)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="leave none of the 2 norm layers"):
        make(net(), exclude=["1", "5"])


@every
def test_a_network_in_bfloat16(net: Net, batches: Stream, make: Make) -> None:
    online, exact = make(net().bfloat16(), lr=0.05), make(net(), lr=0.05)
    for x in batches():
        found, expected = online(x.bfloat16()), exact(x)
        assert found.dtype == torch.bfloat16
        assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    for name, layer in streaming_layers(online.model).items():
        other = streaming_layers(exact.model)[name]
        torch.testing.assert_close(layer.seen_mean, other.seen_mean, rtol=0.05, atol=0.05)
        assert torch.equal(layer.seen_samples, other.seen_samples)
    exported = online.export()
    assert {each.dtype for each in exported.parameters()} == {torch.bfloat16}


@every
def test_under_autocast(net: Net, batches: Stream, make: Make) -> None:
    online, exact = make(net(), lr=0.05), make(net(), lr=0.05)
    for x in batches():
        with torch.autocast("cpu", torch.bfloat16):
            found = online(x)
        expected = exact(x)
        assert (found - expected).abs().max() < 0.1 * expected.abs().max()


@every
def test_a_model_that_returns_more_than_logits(net: Net, batches: Stream, make: Make) -> None:
    class Dict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"features": x, "logits": self.body(x)}

    online, other = make(Dict(), lr=0.1), make(net(), lr=0.1)
    for x in batches():
        assert torch.equal(online(x), other(x))
    assert isinstance(online.export(), Dict)


def test_frozen_batch_norms_follow_and_are_frozen_again() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5).eval()
    frozen = timm.layers.freeze_batch_norm_2d(model)
    online = tent(frozen, lr=0.1)
    x = torch.randn(4, 3, 32, 32)
    first = online(x)
    assert not torch.equal(online(x), first)
    exported = online.export()
    assert [type(each) for each in exported.modules()] == [type(each) for each in frozen.modules()]
    frozen.load_state_dict(exported.state_dict(), strict=True)
    assert torch.equal(frozen(x), exported(x))


def test_steps_count_a_batch_once(net: Net, batches: Stream) -> None:
    online = tent(net(), steps=3, lr=0.1)
    for x in batches():
        online(x)
    assert [int(each.seen_samples) for each in streaming_layers(online).values()] == [22, 22]
    twice = sar(net(), margin=1.0, recovery=0)
    twice(batches()[0])
    assert [int(each.seen_samples) for each in streaming_layers(twice).values()] == [7, 7]


def test_a_layer_that_stands_in_two_places_hears_both(batches: Stream) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 4, 1), norm, nn.Flatten())
    online = tent(model, lr=0.0)
    x = batches()[0]
    online(x)
    (layer,) = streaming_layers(online).values()
    one = model[0](x)
    two = model[2](nn.functional.batch_norm(one, None, None, norm.weight, norm.bias, True))
    rows = torch.cat([one, two]).movedim(1, 0).flatten(1).detach()
    torch.testing.assert_close(layer.seen_mean, rows.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.seen_var, rows.var(1, correction=0), rtol=1e-5, atol=1e-5)
    assert int(layer.seen_count) == rows.shape[1]


def test_the_first_state_leaves_out_what_never_changes(net: Net, batches: Stream) -> None:
    online = tent(net())
    online(batches()[0])
    assert online._first is not None
    assert "model.0.weight" not in online._first
    assert "model.1.weight" in online._first


def test_a_frozen_layer_follows_untrained(net: Net, batches: Stream) -> None:
    model = configure_model(net(), freeze="5")
    assert collect_params(model)[1] == ["1.weight", "1.bias"]
    assert list(streaming_layers(model)) == ["1", "5"]
    everything = configure_model(net(), train="all")
    assert all(each.requires_grad for each in everything.parameters())
    nothing = configure_model(net(), train="none")
    assert not any(each.requires_grad for each in nothing.parameters())
    with pytest.raises(InputError, match="unknown train 'afine'; did you mean 'affine'"):
        configure_model(net(), train="afine")
    assert type(plain_copy(model)[1]) is nn.BatchNorm2d  # type: ignore[index]


def test_a_method_without_its_optimizer(net: Net, batches: Stream) -> None:
    with pytest.raises(InputError, match="Tent needs an optimizer"):
        Tent(configure_model(net()), None)(batches()[0])  # type: ignore[arg-type]
