from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt.online.rotta import Rotta, rotta, timeliness
from normapps.adapt.online.views import random_view
from normapps.errors import InputError


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    body += [nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    net.train()(torch.randn(32, 3, 9, 9))
    with torch.no_grad():
        net[-1].weight.mul_(4)
    return net.eval()


def _batches(count: int, size: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 9, 9, generator=generator) * 1.5 + 0.5 for _ in range(count)]


class _Robust(nn.Module):
    """Robust batch norm, written from the paper's equation 3, in float64."""

    def __init__(self, norm: nn.BatchNorm2d, share: float) -> None:
        super().__init__()
        self.mean, self.var = norm.running_mean.double(), norm.running_var.double()
        self.weight = nn.Parameter(norm.weight.detach().double().clone())
        self.bias = nn.Parameter(norm.bias.detach().double().clone())
        self.share, self.eps = share, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        if self.training:
            values = x.movedim(1, 0).flatten(1)
            mean = (1 - self.share) * mean + self.share * values.mean(1)
            var = (1 - self.share) * var + self.share * values.var(1, unbiased=False)
            self.mean, self.var = mean.detach(), var.detach()
        shape = (1, -1, 1, 1)
        y = (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()
        return y * self.weight.view(shape) + self.bias.view(shape)


class _Reference:
    """The whole method, for a memory that keeps everything."""

    def __init__(self, net: nn.Sequential, rate: float, share: float, momentum: float) -> None:
        net = copy.deepcopy(net).double()
        for place in (1, 4):
            net[place] = _Robust(net[place], share)  # type: ignore[arg-type]
        self.student, self.teacher = net, copy.deepcopy(net)
        self.rate, self.momentum = rate, momentum

    def answer(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.teacher.eval()(x.double())

    def update(self, samples: Tensor, view: Tensor, ages: Tensor) -> None:
        self.student.train()
        self.teacher.train()
        with torch.no_grad():
            target = self.teacher(samples.double()).softmax(1)
        log_p = self.student(view.double()).log_softmax(1)
        weight = (-ages).exp() / (1 + (-ages).exp())
        loss = (-(target * log_p).sum(1) * weight.double()).mean()
        trained = [self.student[place] for place in (1, 4)]
        parameters = [each for norm in trained for each in norm.parameters()]
        grads = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.sub_(self.rate * grad)
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for slow, fast in pairs:
                slow.copy_((1 - self.momentum) * slow + self.momentum * fast)


def _make(net: nn.Module, **options: Any) -> Rotta:
    """RoTTA with plain gradient descent, so that small differences stay small."""
    online = rotta(net, **options)
    assert online.optimizer is not None
    online.optimizer = torch.optim.SGD(online.optimizer.param_groups[0]["params"], 0.1)
    return online


def test_many_batches_are_the_formulas() -> None:
    """Answers, statistics and parameters over eight batches with three updates, in float64."""
    net, batches = _net(), _batches(8)
    options = {"momentum": 0.05, "teacher_momentum": 0.2}
    online = _make(net, capacity=200, update_every=10, **options)
    reference = _Reference(net, 0.1, 0.05, 0.2)
    seen: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        torch.testing.assert_close(online(batch), reference.answer(batch).float(), **_CLOSE)
        for sample in batch:  # a memory this large keeps all
            seen.append(sample)
            if len(seen) % 10 == 0:
                ages = torch.arange(len(seen), 0, -1) / 200
                samples = torch.stack(seen)
                reference.update(samples, random_view(samples, generator), ages)
    assert online.memory is not None
    assert len(online.memory) == 32
    for ours, theirs in ((online.model, reference.student), (online.teacher, reference.teacher)):
        for place in (1, 4):
            torch.testing.assert_close(ours[place].running_mean, theirs[place].mean.float())
            torch.testing.assert_close(ours[place].running_var, theirs[place].var.float())
            for name in ("weight", "bias"):
                mine, expected = getattr(ours[place], name), getattr(theirs[place], name)
                torch.testing.assert_close(mine.data, expected.data.float(), **_CLOSE)
    assert not torch.allclose(online.model[1].weight, net[1].weight, atol=1e-4)


_CLOSE = {"atol": 1e-5, "rtol": 0.0}


def test_the_robust_batch_norm_is_the_papers() -> None:
    """The student's layers alone, over several batches: equation 3."""
    net = _net()
    online, reference = rotta(net), _Reference(net, 0, 0.05, 0).student.train()
    for batch in _batches(5):
        ours = online.model(batch)
        torch.testing.assert_close(ours, reference(batch.double()).float(), **_CLOSE)


def test_answers_use_the_statistics_as_they_are() -> None:
    """A stream between two updates changes nothing: what comes in one batch does not matter."""
    online = rotta(_net(), update_every=1000)
    batch = _batches(1)[0]
    whole = online(batch)
    torch.testing.assert_close(torch.cat([online(each[None]) for each in batch]), whole)
    torch.testing.assert_close(whole, _net()(batch))


def test_batches_of_one_learn_as_larger_ones_until_the_first_update() -> None:
    one, four = (_make(_net(), update_every=8) for _ in range(2))
    for batch in _batches(2):
        four(batch)
        for sample in batch:
            one(sample[None])
    assert one.facts["updates"] == four.facts["updates"] == 1
    for a, b in zip(one.model.parameters(), four.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_update_falls_due_within_a_batch() -> None:
    online = rotta(_net(), update_every=3)
    online(_batches(1, size=8)[0])
    assert online.facts["updates"] == 2
    assert online.samples == 8


def test_a_memory_of_one_sample_is_not_learnt_from() -> None:
    online = rotta(_net(), capacity=3, update_every=1)
    sample = _batches(1, size=1)[0]
    online(sample)
    assert online.facts == {"updates": 0, "memory": 1}


def test_the_student_sees_views_and_the_teacher_the_samples() -> None:
    """With views the student's statistics go elsewhere than without; the teacher's do not."""
    plain, viewed = (rotta(_net(), update_every=4, strength=s) for s in (0.0, 1.0))
    batch = _batches(1)[0]
    plain(batch)
    viewed(batch)
    assert torch.equal(plain.teacher[1].running_mean, viewed.teacher[1].running_mean)
    assert not torch.equal(plain.model[1].running_mean, viewed.model[1].running_mean)


def test_only_scales_and_shifts_adapt_and_the_teacher_is_exported() -> None:
    net = _net()
    online = rotta(net, update_every=4)
    for batch in _batches(3):
        online(batch)
    exported = online.export()
    changed = {
        name
        for name, value in exported.named_parameters()
        if not torch.equal(value, net.state_dict()[name])
    }
    assert changed == {"1.weight", "1.bias", "4.weight", "4.bias"}
    batch = _batches(1)[0]
    torch.testing.assert_close(exported(batch), online(batch), atol=1e-6, rtol=0)


def test_timeliness_is_a_half_for_new_samples_and_falls() -> None:
    ages = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    torch.testing.assert_close(timeliness(ages), (-ages).exp() / (1 + (-ages).exp()))


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.BatchNorm1d(4, affine=False)])
def test_no_batch_norm_that_can_adapt_names_other_methods(norm: nn.Module) -> None:
    with pytest.raises(InputError, match=r"no batch norm with a scale .* take tent, [^\n]* lame$"):
        rotta(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capacity": 1}, "capacity 1"),
        ({"update_every": 0}, "update_every 0"),
        ({"momentum": 1.1}, "momentum 1.1"),
        ({"teacher_momentum": 2}, "teacher_momentum 2"),
        ({"strength": -1}, "strength -1"),
    ],
)
def test_options_out_of_range(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        rotta(_net(), **options)  # type: ignore[arg-type]
