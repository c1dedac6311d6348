"""The guard on scikit-learn's digits: what it stops, what it lets pass, what it advises."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt.online.base import Online
from normapps.adapt.online.drift import distances, moments_of
from normapps.adapt.online.guard import Guard, HarmError
from normapps.adapt.online.lame import lame
from normapps.adapt.online.rotta import rotta
from normapps.adapt.online.tent import tent
from normapps.adapt.online.watch import Limits, Watch
from normapps.errors import InputError

LIMITS = Limits(0.7, 0.75, 0.15, 5.0, window=8, patience=8)


@functools.cache
def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1000 pictures to train on and 750 others, (N, 1, 8, 8) in [0, 1], with labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y, order = (
        torch.tensor(digits.target),
        torch.randperm(len(x), generator=torch.Generator().manual_seed(0)),
    )
    x, y = x[order], y[order]
    return x[:1000], y[:1000], x[1000:1750], y[1000:1750]


@functools.cache
def _source() -> nn.Sequential:
    """A network of three batch norms, trained; nobody may change it."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    x, y, *_ = _digits()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        for chosen in torch.randperm(len(x), generator=generator).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return net.eval()


def _tent(rate: float = 1e-3) -> Online:
    return tent(_source(), optimizer="adam", lr=rate)


def _run(online: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy of what it answers over batches of 50."""
    right = [online(a).argmax(1) == b for a, b in zip(x.split(50), y.split(50), strict=True)]
    return float(torch.cat(right).float().mean())


def _by_label(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    order = y.sort(stable=True).indices
    return x[order], y[order]


def test_a_clean_stream_needs_no_adaptation() -> None:
    *_, x, y = _digits()
    guard = Guard(_tent())
    assert _run(guard, x, y) > 0.95
    advice = guard.advice()
    assert advice.verdict == "not recommended"
    assert advice.reason.startswith("Do not adapt")
    assert advice.facts["distance"] < 0.01
    assert not guard.stopped


def test_a_change_of_contrast_is_adapted_to_and_recommended() -> None:
    *_, x, y = _digits()
    x = 0.3 * x + 0.1
    with torch.no_grad():
        before = float((_source()(x).argmax(1) == y).float().mean())
    guard = Guard(_tent())
    assert before < 0.3
    assert _run(guard, x, y) > 0.95
    assert not guard.stopped
    advice = guard.advice()
    assert advice.verdict == "recommended"
    assert advice.facts["distance"] > 0.5
    assert advice.facts["confidence"] > advice.facts["source_confidence"]


def test_collapse_at_a_huge_rate_on_a_sorted_stream_is_stopped() -> None:
    *_, x, y = _digits()
    x, y = _by_label(x, y)
    unguarded = _run(_tent(1.0), x, y)
    guard = Guard(_tent(1.0))
    guarded = _run(guard, x, y)
    assert unguarded < 0.3
    assert guarded > 0.9
    assert guard.stopped
    advice = guard.advice()
    assert advice.verdict == "not recommended"
    assert guard.stopped in advice.reason
    assert torch.equal(guard(x[:9]), _source()(x[:9]))  # the source answers from then on
    guard.reset()
    assert not guard.stopped
    assert torch.equal(guard(x[:50]), _tent(1.0)(x[:50]))


def test_collapse_of_shuffled_classes_is_stopped() -> None:
    *_, x, y = _digits()
    x = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    guard = Guard(_tent(1.0), least_agreement=0, most_doubt=1, most_drift=1e9)
    _run(guard, x, y)
    assert "collapse" in guard.stopped
    exported = guard.export()  # of the source
    for name, value in exported.state_dict().items():
        assert torch.equal(value, _source().state_dict()[name]), name


def test_a_sorted_stream_at_a_small_rate_is_stopped() -> None:
    *_, x, y = _digits()
    x, y = _by_label(x, y)
    guard = Guard(_tent(), least_agreement=0)  # by the fall of confidence alone
    assert _run(guard, x, y) > 0.8
    assert _run(_tent(), x, y) < 0.5
    assert "confidence" in guard.stopped


def test_reset_as_an_answer_begins_again_and_counts() -> None:
    *_, x, y = _digits()
    x, y = _by_label(x, y)
    guard = Guard(_tent(1.0), then="reset")
    _run(guard, x[:200], y[:200])
    assert guard.resets == 2  # at 100 and 200 samples
    assert not guard.stopped
    assert guard.watch.samples == 0
    for name, value in guard.online.export().state_dict().items():
        assert torch.equal(value, _source().state_dict()[name])
    assert "began again 2 times" in guard.advice().reason


def test_an_error_as_an_answer() -> None:
    *_, x, y = _digits()
    guard = Guard(_tent(1.0), then="raise")
    with pytest.raises(HarmError, match=r"adapting does harm: .*; go back by reset\(\)"):
        _run(guard, *_by_label(x, y))


@pytest.mark.parametrize("then", ["source", "reset"])
def test_a_network_that_became_nan_is_left(then: str) -> None:
    *_, x, _ = _digits()
    guard = Guard(_tent(), then=then)
    guard(x[:50])
    with torch.no_grad():
        guard.online.model[1].weight.fill_(float("nan"))
    assert torch.equal(guard(x[50:80]), _source()(x[50:80]))
    assert ("NaN" in guard.stopped) == (then == "source")
    assert guard.resets == (then == "reset")
    assert guard(x[80:90]).isfinite().all()


def test_an_error_of_a_sound_network_is_the_callers() -> None:
    class Strict(type(_tent())):  # type: ignore[misc]
        def step(self, x: Tensor) -> Tensor:
            raise InputError("no")

    online = _tent()
    online.__class__ = Strict
    guard = Guard(online)
    with pytest.raises(InputError, match=r"^no$"):
        guard(_digits()[2][:50])
    assert not guard.stopped


def test_it_is_the_method_as_long_as_nothing_happens() -> None:
    *_, x, _ = _digits()
    guard, online = Guard(_tent()), _tent()
    for batch in x[:200].split(50):
        assert torch.equal(guard(batch), online(batch))
    for name, value in online.export().state_dict().items():
        assert torch.equal(guard.export().state_dict()[name], value)


def test_too_early_and_without_batch_norms_it_is_undecided() -> None:
    *_, x, _ = _digits()
    guard = Guard(_tent())
    assert guard.advice().verdict == "undecided"
    guard(x[:50])
    assert guard.advice().reason == "Too early to say: 50 samples seen, 100 needed."
    guard = Guard(lame(_source()))
    guard(x[:200])
    advice = guard.advice()
    assert advice.verdict == "undecided"
    assert "No batch norm" in advice.reason
    assert "distance" not in advice.facts


def test_a_method_that_has_adapted_needs_the_source() -> None:
    *_, x, _ = _digits()
    online = _tent()
    online(x[:50])
    with pytest.raises(InputError, match="Tent has adapted already"):
        Guard(online)
    guard = Guard(online, _source())
    assert torch.equal(guard.source(x[:3]), _source()(x[:3]))


def test_distances_are_the_divergence_of_gaussians() -> None:
    """Of the first layer, whose input is the same in every method, from the formula."""
    *_, x, _ = _digits()
    for online, share in ((_tent(), 1.0), (rotta(_source(), update_every=50, strength=0), 0.05)):
        online(x[:50] + 0.2)
        norm = _source()[1]
        with torch.no_grad():
            seen = _source()[0](x[:50] + 0.2).movedim(1, 0).flatten(1).double()
        if share == 1:
            mean, var = seen.mean(1), seen.var(1)
        else:
            assert online.memory is not None  # type: ignore[union-attr]
            with torch.no_grad():
                kept = _source()[0](online.memory.samples())  # type: ignore[union-attr]
            seen = kept.movedim(1, 0).flatten(1).double()
            mean = (1 - share) * norm.running_mean.double() + share * seen.mean(1)
            var = (1 - share) * norm.running_var.double() + share * seen.var(1, unbiased=False)
        a, b = var + 1e-5, norm.running_var.double() + 1e-5
        gap = (mean - norm.running_mean.double()) ** 2
        expected = ((a / b + b / a + gap * (1 / a + 1 / b)) / 2 - 1).mean()
        found = distances(online.model, moments_of(_source()))
        assert found["1"] == pytest.approx(float(expected), rel=1e-3)
        assert set(found) == {"1", "4", "7"}


def _logits(classes: list[int], confidence: float, count: int = 4) -> Tensor:
    rest = (1 - confidence) / (count - 1)
    p = torch.full((len(classes), count), rest)
    p[torch.arange(len(classes)), torch.tensor(classes)] = confidence
    return p.log()


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (([0, 1, 2, 3] * 2, 0.8), ([0, 1, 2, 3] * 2, 0.8), ""),
        (([0] * 8, 0.8), ([0, 1, 2, 3] * 2, 0.8), "collapse, to 1.0 classes of the source's 4.0"),
        (([0] * 8, 0.8), ([0] * 8, 0.8), ""),  # a stream of one class is no collapse
        (([1, 2, 3, 0] * 2, 0.8), ([0, 1, 2, 3] * 2, 0.8), ""),  # the source is not sure
        (([1, 2, 3, 0] * 2, 0.9), ([0, 1, 2, 3] * 2, 0.95), "agrees with 0%"),
        (([0, 1, 2, 3] * 2, 0.6), ([0, 1, 2, 3] * 2, 0.8), "confidence is 0.60, the source's 0.80"),
        (([0, 1, 2, 3] * 2, 0.8), ([0, 1, 2, 3] * 2, 0.6), ""),
    ],
)
def test_what_counts_as_harm(found: Any, expected: Any, words: str) -> None:
    watch = Watch(LIMITS)
    watch.see(_logits(*found), _logits(*expected))
    harm = watch.harm(watch.facts())
    assert words in harm
    assert bool(harm) == bool(words)


def test_drift_counts_as_harm_and_patience_comes_first() -> None:
    watch = Watch(LIMITS)
    watch.see(_logits([0, 1, 2], 0.8), _logits([0, 1, 2], 0.8))
    assert watch.harm({**watch.facts(), "drift": 9.0}) == ""
    watch.see(_logits([0, 1, 2, 3, 0], 0.8), _logits([0, 1, 2, 3, 0], 0.8))
    assert "drifted 9.0 nats" in watch.harm({**watch.facts(), "drift": 9.0})
    assert watch.harm({**watch.facts(), "drift": 4.0}) == ""


def test_means_are_over_all_samples_until_the_window_is_full_and_then_forget() -> None:
    watch = Watch(LIMITS)
    sizes, confidences = (2, 3, 3), (0.4, 0.7, 0.9)
    for size, confidence in zip(sizes, confidences, strict=True):
        watch.see(_logits([0] * size, confidence), _logits([0] * size, 0.5))
    mean = sum(n * c for n, c in zip(sizes, confidences, strict=True)) / 8
    assert watch.facts()["confidence"] == pytest.approx(mean, abs=1e-6)
    watch.see(_logits([0] * 4, 0.3), _logits([0] * 4, 0.5))
    assert watch.facts()["confidence"] == pytest.approx((mean + 0.3) / 2, abs=1e-6)
    watch.see(_logits([0] * 9, 0.6), _logits([0] * 9, 0.5))
    assert watch.facts()["confidence"] == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"then": "sourec"}, "did you mean 'source'"),
        ({"least_classes": 1.2}, "least_classes 1.2"),
        ({"most_doubt": -0.1}, "most_doubt -0.1"),
        ({"window": 0}, "window 0"),
        ({"most_drift": 0.0}, "most_drift 0.0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Guard(_tent(), **options)
