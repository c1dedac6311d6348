"""SAR against its formulas: the filter twice, the move, the step, the recovery."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normapps.models  # noqa: F401  # the guard of timm
from normapps.adapt.online.sam import climbed
from normapps.adapt.online.sar import sar, top_layers
from normapps.errors import InputError

timm: Any = pytest.importorskip("timm")
Net, Stream = Callable[..., nn.Sequential], Callable[..., list[Tensor]]
MARGIN, RHO = 0.4, 0.3


class Plain:
    """The method by itself, on a copy of a network."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.parameters = []
        for layer in self.model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.training = True
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = None
            if isinstance(layer, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
                self.parameters += [each.requires_grad_() for each in layer.parameters()]
        self.velocity = [torch.zeros_like(each) for each in self.parameters]
        self.average: float | None = None
        self.selected: list[tuple[int, int]] = []

    def __call__(self, x: Tensor) -> Tensor:
        limit = MARGIN * math.log(6)
        logits = self.model(x)
        entropies = torch.distributions.Categorical(logits=logits).entropy()
        chosen = [i for i in range(len(x)) if entropies[i] < limit]
        again: list[int] = []
        if chosen:
            grads = torch.autograd.grad(entropies[chosen].mean(), self.parameters)
            norm = sum(float(grad.square().sum()) for grad in grads) ** 0.5
            before = [each.detach().clone() for each in self.parameters]
            self._move([RHO / norm * grad for grad in grads])
            entropies = torch.distributions.Categorical(logits=self.model(x)).entropy()
            again = [i for i in chosen if entropies[i] < limit]
            loss = entropies[again].mean()
            grads = torch.autograd.grad(loss, self.parameters) if again else ()
            self._move([old - now for old, now in zip(before, self.parameters, strict=True)])
        if again:
            self.velocity = [0.9 * v + g for v, g in zip(self.velocity, grads, strict=True)]
            self._move([-5e-2 * v for v in self.velocity])
            value = float(loss)
            self.average = value if self.average is None else 0.9 * self.average + 0.1 * value
        self.selected.append((len(chosen), len(again)))
        return logits.detach()

    @torch.no_grad()
    def _move(self, by: list[Tensor]) -> None:
        for parameter, step in zip(self.parameters, by, strict=True):
            parameter.add_(step)


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_it_is_the_plain_formula(net: Net, batches: Stream, norm: str) -> None:
    model = net(norm)
    plain, online = Plain(model), sar(model, margin=MARGIN, rho=RHO, recovery=0, lr=5e-2)
    counts = []
    for x in batches((7, 5, 6, 9, 4)):
        torch.testing.assert_close(online(x), plain(x), rtol=1e-5, atol=1e-5)
        counts.append((online.facts["reliable"], online.facts["selected"]))
    assert counts == plain.selected
    assert online.ema == pytest.approx(plain.average, rel=1e-5)
    assert 0 < sum(first for first, _ in counts) < 31
    flat = sar(model, margin=MARGIN, rho=0.0, recovery=0, lr=5e-2)
    last = [flat(x) for x in batches((7, 5, 6, 9, 4))][-1]
    assert not torch.allclose(last, plain(x), atol=1e-3)  # the move matters


def test_a_sample_that_the_move_makes_unreliable_is_left_out(net: Net, batches: Stream) -> None:
    online = sar(net(), margin=MARGIN, rho=3.0, recovery=0)
    found = []
    for x in batches((9,) * 6):
        online(x)
        found.append(online.facts["selected"] < online.facts["reliable"])
    assert any(found)


def test_the_move_is_taken_back_to_the_bit() -> None:
    torch.manual_seed(0)
    one, two, rest = (nn.Parameter(torch.randn(5) * 10**k) for k in range(3))
    one.grad, two.grad = torch.randn(5), torch.randn(5)
    before = [each.detach().clone() for each in (one, two, rest)]
    norm = torch.cat([one.grad, two.grad]).norm()
    with climbed([one, two, rest], norm, 0.1):
        moved = torch.cat([one - before[0], two - before[1]]).detach()
        assert float(moved.norm()) == pytest.approx(0.1, rel=1e-3)
        torch.testing.assert_close(one.detach(), before[0] + 0.1 * one.grad / norm)
        assert torch.equal(rest, before[2])
    for each, old in zip((one, two, rest), before, strict=True):
        assert torch.equal(each, old)


def test_without_a_sample_nothing_changes(net: Net, batches: Stream) -> None:
    online = sar(net(), margin=0.0, lr=1.0)
    before = copy.deepcopy(online.state_dict())
    online(batches()[0])
    for key, value in online.state_dict().items():
        assert key == "_extra_state" or torch.equal(value, before[key]), key
    assert online.facts["selected"] == 0
    assert online.ema is None


def test_collapsed_it_goes_back_and_begins_anew(net: Net, batches: Stream) -> None:
    """The average of the loss begins anew: else every batch after it would go back again."""
    stream = batches((7, 5, 6, 9, 4))
    free = sar(net(), margin=1.0, recovery=0, lr=0.5)
    averages = []
    for x in stream:
        free(x)
        averages.append(free.ema)
    limit = averages[2] + 1e-6  # type: ignore[operator]
    assert min(averages[:2]) > limit  # type: ignore[type-var]
    online, fresh = (sar(net(), margin=1.0, recovery=limit, lr=0.5) for _ in range(2))
    for x in stream[:3]:
        online(x)
    assert online.facts["resets"] == online.resets == 1
    assert online.ema is None
    state, first = online.state_dict(), fresh.state_dict()
    assert state.keys() == first.keys()
    for key, value in first.items():
        assert key == "_extra_state" or torch.equal(state[key], value), key
    assert state["_extra_state"]["optimizer"] == first["_extra_state"]["optimizer"]
    for name, layer in first["_extra_state"]["stream"].items():
        for key, value in layer.items():
            assert torch.equal(state["_extra_state"]["stream"][name][key], value)
    assert torch.equal(online(stream[3]), fresh(stream[3]))
    assert online.resets == 1
    online.reset()
    assert (online.ema, online.resets) == (None, 0)


def test_batches_of_one_without_batch_statistics(net: Net, batches: Stream) -> None:
    for norm in ("group", "layer"):
        online = sar(net(norm), margin=1.0, recovery=0, lr=0.1)
        logits = torch.stack([online(x) for x in batches((1,) * 5)])
        assert logits.isfinite().all()
        assert online.facts["selected"] == 1
    with pytest.raises(InputError, match=r"Sar got a batch of 1, needs 2: .*prior=16"):
        sar(net())(batches((1,))[0])
    assert sar(net(), prior=16)(batches((1,))[0]).isfinite().all()


TOPS = {
    "resnet18": ("layer4.0.bn1", "layer4.1.bn2"),
    "vit_tiny_patch16_224": ("blocks.9.norm1", "norm"),
    "vit_large_patch16_224": ("blocks.18.norm1", "norm"),
    "convnext_atto": ("stages.3.downsample.0", "head.norm"),
    "vgg11_bn": (),
}


@pytest.mark.parametrize("name", TOPS)
def test_layers_near_the_output(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    found = top_layers(model)
    assert (found[0], found[-1]) == TOPS[name] if TOPS[name] else found == ()


def test_the_top_follows_the_stream_but_is_not_trained() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5).eval()
    online = sar(model, margin=1.0, lr=1.0, recovery=0)
    online(torch.randn(4, 3, 32, 32))
    exported = online.export().state_dict()
    changed = {key for key, value in model.state_dict().items() if (exported[key] != value).any()}
    top = {key for key in changed if key.startswith("layer4")}
    assert {key.rpartition(".")[2] for key in top} == {"running_mean", "running_var"}
    assert "layer3.1.bn2.weight" in changed
    every = sar(model, margin=1.0, lr=1.0, recovery=0, freeze_top=False)
    every(torch.randn(4, 3, 32, 32))
    assert (every.export().layer4[1].bn1.weight != model.layer4[1].bn1.weight).any()  # type: ignore[index,union-attr]


@pytest.mark.parametrize("name", ["margin", "rho", "recovery"])
def test_options_that_are_none(net: Net, name: str) -> None:
    for value in (-1.0, float("nan")):
        with pytest.raises(InputError, match=f"{name} {value}") as caught:
            sar(net(), **{name: value})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
