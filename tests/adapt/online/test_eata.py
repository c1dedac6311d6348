"""EATA against its formulas: the two filters, the weight, the moving average, the penalty."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt.online.eata import Eata, eata, fisher_information
from normapps.errors import InputError

Net, Stream = Callable[..., nn.Sequential], Callable[..., list[Tensor]]
MARGIN, REDUNDANCY = 0.75, 0.93


def _plain_batch_norms(model: nn.Module) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    model = copy.deepcopy(model).eval().requires_grad_(False)
    named = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.training = True
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
            for key, parameter in layer.named_parameters():
                named[f"{name}.{key}"] = parameter.requires_grad_()
    return model, named


class Plain:
    """The method in loops over samples, on a copy of a network of batch norms."""

    def __init__(self, model: nn.Module, fisher: dict[str, Tensor], weight: float) -> None:
        self.model, self.named = _plain_batch_norms(model)
        self.start = {name: each.detach().clone() for name, each in self.named.items()}
        self.fisher, self.weight = fisher, weight
        self.optimizer = torch.optim.SGD(list(self.named.values()), 5e-2, momentum=0.9)
        self.usual: Tensor | None = None
        self.selected: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        limit = MARGIN * math.log(logits.shape[1])
        terms, kept = [], []
        for row in logits:
            p = row.softmax(0)
            h = -(p * p.log()).sum()
            if h >= limit:
                continue
            if self.usual is not None:
                cosine = self.usual @ p / (self.usual.norm() * p.norm())
                if abs(float(cosine)) >= REDUNDANCY:
                    continue
            terms.append(math.exp(limit - float(h)) * h)
            kept.append(p.detach())
        self.selected.append(len(kept))
        if kept:
            loss = torch.stack(terms).mean()
            for name, fisher in self.fisher.items():
                moved = self.named[name] - self.start[name]
                loss = loss + self.weight * (fisher * moved**2).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            mean = torch.stack(kept).mean(0)
            self.usual = mean if self.usual is None else 0.9 * self.usual + 0.1 * mean
        return logits.detach()


def _plain_fisher(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    model, named = _plain_batch_norms(model)
    total = {name: torch.zeros_like(each) for name, each in named.items()}
    for x in batches:
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, logits.argmax(1))
        for name, each in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            total[name] += each**2 / len(batches)
    return total


STREAM = (7, 5, 6, 9, 4)


def test_it_is_the_plain_formula(net: Net, batches: Stream) -> None:
    model = net()
    source = batches((6, 6), seed=3)
    online = eata(
        model, fisher=source, fisher_weight=20, margin=MARGIN, redundancy=REDUNDANCY, lr=5e-2
    )
    plain = Plain(model, _plain_fisher(model, source), 20)
    counts = []
    for x in batches(STREAM):
        torch.testing.assert_close(online(x), plain(x), rtol=1e-5, atol=1e-5)
        counts.append(online.facts["selected"])
    assert counts == plain.selected
    assert plain.usual is not None
    torch.testing.assert_close(online.probabilities, plain.usual, rtol=1e-5, atol=1e-6)
    # the stream shows every case: kept, unreliable, redundant
    assert 0 < sum(counts) < sum(STREAM)
    assert any(count < online.facts["reliable"] for count in counts)
    bare = eata(model, margin=MARGIN, redundancy=REDUNDANCY, lr=5e-2)
    last = [bare(x) for x in batches(STREAM)][-1]
    assert not torch.allclose(last, online(batches(STREAM)[-1]), atol=1e-4)  # the penalty matters


def test_fisher_information_is_the_formula(net: Net, batches: Stream) -> None:
    model, source = net(), batches((6, 4, 5), seed=3)
    before = copy.deepcopy(model.state_dict())
    expected = _plain_fisher(model, source)
    with torch.inference_mode():
        found = fisher_information(model, [(x, torch.zeros(len(x))) for x in source])
    assert list(found) == list(expected) == ["1.weight", "1.bias", "5.weight", "5.bias"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-9)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    first = fisher_information(model, source, limit=6)
    torch.testing.assert_close(first, _plain_fisher(model, source[:1]), rtol=1e-4, atol=1e-9)


def test_without_a_sample_nothing_changes(net: Net, batches: Stream) -> None:
    online = eata(net(), margin=0.0, lr=1.0)
    before = copy.deepcopy(online.state_dict())
    online(batches()[0])
    assert online.facts["selected"] == online.facts["reliable"] == 0
    after = online.state_dict()
    for key, value in before.items():
        assert key == "_extra_state" or torch.equal(after[key], value), key
    assert online.probabilities is None
    assert before["_extra_state"]["optimizer"] == after["_extra_state"]["optimizer"]


def test_what_is_like_the_usual_is_left_out(net: Net, batches: Stream) -> None:
    online, x = eata(net(), margin=1.0, redundancy=0.0), batches()[0]
    online(x)
    assert online.facts["selected"] == 7  # the first batch has nothing to be like
    usual = online.probabilities
    online(x)
    assert online.facts["selected"] == 0
    assert online.facts["reliable"] == 7
    assert online.probabilities is usual


def test_a_reset_forgets_the_usual_prediction(net: Net, batches: Stream) -> None:
    online = eata(net(), margin=1.0, redundancy=0.99)
    x = batches()[0]
    first = online(x)
    online(batches()[1])
    online.reset()
    assert online.probabilities is None
    assert torch.equal(online(x), first)
    assert online.facts["selected"] == 7


def test_the_penalty_keeps_to_the_source(net: Net, batches: Stream) -> None:
    model = net()
    fisher = {
        name: torch.ones_like(each) for name, each in fisher_information(model, batches()).items()
    }
    moved = []
    for weight in (0.0, 50.0):
        online = eata(
            model, fisher=fisher, fisher_weight=weight, margin=1.0, redundancy=2.0, lr=1e-2
        )
        for x in batches() * 3:
            online(x)
        moved.append(
            sum(float((p - online.anchor[name]).square().sum()) for name, p in _named(online))
        )
    assert moved[1] < 0.5 * moved[0]


def _named(online: Eata) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in online.model.named_parameters() if name in online.anchor]


def test_a_state_carries_what_the_penalty_needs(net: Net, batches: Stream) -> None:
    stream, options = batches((5, 5, 5, 5)), {"margin": 1.0, "redundancy": 2.0, "lr": 1e-2}
    online = eata(net(), fisher=batches((6,), seed=3), **options)  # type: ignore[arg-type]
    for x in stream[:2]:
        online(x)
    other = eata(net(), **options)  # type: ignore[arg-type]
    other.load_state_dict(copy.deepcopy(online.state_dict()))
    for x in stream[2:]:
        assert torch.equal(other(x), online(x))


def test_what_does_not_fit_is_refused_in_one_line(net: Net, batches: Stream) -> None:
    good = fisher_information(net(), batches())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"fisher": {"2.weight": torch.ones(8)}}, "fisher information of '2.weight'"),
        ({"fisher": {"1.weight": torch.ones(9)}}, r"'1.weight', \(9,\), is not of this network"),
        ({"fisher": good | {"1.bias": torch.full((8,), float("nan"))}}, "negative or not finite"),
        ({"fisher": []}, "the loader gave no inputs"),
        ({"margin": -0.1}, "margin -0.1"),
        ({"fisher_weight": float("nan")}, "fisher_weight nan"),
        ({"optimizer": "lion"}, "unknown optimizer"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            eata(net(), **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"one class have no entropy"):
        eata(net(classes=1))(batches()[0])
