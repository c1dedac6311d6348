from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normapps.adapt.online.configuration import configure_model
from normapps.adapt.online.cotta import Cotta, consistency, cotta
from normapps.adapt.online.views import random_view
from normapps.errors import InputError


def _net(classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, classes))


def _batch(count: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def _by_batch(net: nn.Sequential) -> nn.Sequential:
    """A copy in float64 that normalizes by the batch, all else as it is."""
    net = copy.deepcopy(net).double().train()
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    return net


def _entropies(p: Tensor, q: Tensor) -> Tensor:
    return -(q.softmax(1) * p.log_softmax(1)).sum(1)


@pytest.mark.parametrize("symmetric", [False, True])
def test_steps_without_views_and_restoring_are_the_formula(symmetric: bool) -> None:
    """Two steps by plain gradient descent, in float64, written out."""
    net, rate, momentum = _net(), 0.1, 0.1
    student, teacher = _by_batch(net), _by_batch(net)
    options = {"views": 0, "restore": 0.0, "teacher_momentum": momentum, "symmetric": symmetric}
    ours = configure_model(copy.deepcopy(net), train="all")
    online = Cotta(ours, torch.optim.SGD(ours.parameters(), rate), **options)
    for seed in (1, 2):
        x = _batch(seed=seed)
        target = teacher(x.double()).detach()
        p = student(x.double())
        losses = _entropies(p, target)
        if symmetric:
            losses = (losses + _entropies(target, p)) / 2
        grads = torch.autograd.grad(losses.mean(), list(student.parameters()))
        with torch.no_grad():
            for fast, slow, grad in zip(
                student.parameters(), teacher.parameters(), grads, strict=True
            ):
                fast.sub_(rate * grad)
                slow.copy_((1 - momentum) * slow + momentum * fast)
        torch.testing.assert_close(online(x), target.float(), atol=1e-5, rtol=0)
        assert online.facts["loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    for ours_, expected in ((online.model, student), (online.teacher, teacher)):
        for mine, theirs in zip(ours_.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(mine.data, theirs.data.float(), atol=1e-5, rtol=0)


def test_all_parameters_of_the_student_move_and_none_of_the_anchor() -> None:
    online = cotta(_net(), views=0, restore=0.0)
    source = copy.deepcopy(online.anchor.state_dict())
    online(_batch())
    online(_batch(seed=2))
    for name, value in online.model.named_parameters():
        assert not torch.equal(value, source[name]), name
    assert all(torch.equal(each, source[name]) for name, each in online.anchor.named_parameters())


def test_the_answer_is_the_teachers_mean_over_the_views() -> None:
    online = cotta(_net(), views=3, threshold=1.0, seed=4)
    teacher, x = copy.deepcopy(_net()).train(), _batch()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        expected = sum(teacher(random_view(x, generator)) for _ in range(3)) / 3
    torch.testing.assert_close(online(x), expected, atol=1e-5, rtol=0)
    assert online.facts["views"] == 3


def test_views_are_asked_for_below_the_threshold_only() -> None:
    net, x = _net(), _batch()
    with torch.no_grad():
        confidence = float(copy.deepcopy(net).train()(x).softmax(1).amax(1).mean())
    for threshold, views in ((confidence + 0.01, 2), (confidence - 0.01, 0)):
        online = cotta(net, views=2, threshold=threshold)
        online(x)
        assert online.facts["views"] == views
        assert online.facts["confidence"] == pytest.approx(confidence, abs=1e-5)


@pytest.mark.parametrize(("classes", "views"), [(10, 1), (100, 1), (400, 0)])
def test_the_papers_thresholds_by_the_number_of_classes(classes: int, views: int) -> None:
    net = _net(classes)
    with torch.no_grad():
        net[-1].weight.zero_()
        net[-1].bias.zero_()
        net[-1].bias[0] = torch.tensor(0.5 * (classes - 1)).log()  # a third for class 0
    online = cotta(net, views=1)
    online(_batch())
    assert online.facts["confidence"] == pytest.approx(1 / 3, abs=1e-4)
    assert online.facts["views"] == views


def test_a_share_of_the_weights_goes_back_to_the_source() -> None:
    net = nn.Sequential(nn.BatchNorm1d(200), nn.Linear(200, 200))
    online = cotta(net, views=0, restore=0.25)
    online(torch.randn(8, 200, generator=torch.Generator().manual_seed(0)))
    back = (online.model[1].weight == net[1].weight).float().mean()
    assert 0.24 < float(back) < 0.26
    assert cotta(net, views=0, restore=1.0)(torch.randn(8, 200)).shape == (8, 200)


def test_restoring_all_leaves_the_source_and_the_teacher_has_moved() -> None:
    net = _net()
    online = cotta(net, views=0, restore=1.0)
    online(_batch())
    for mine, source in zip(online.model.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, source)
    moved = zip(online.teacher.parameters(), net.parameters(), strict=True)
    assert any(not torch.equal(mine, source) for mine, source in moved)


def test_the_export_is_the_teacher_with_the_streams_statistics() -> None:
    net = _net()
    online = cotta(net, views=2, threshold=1.0)  # the views do not count
    batches = [_batch(), _batch(5, seed=2)]
    for batch in batches:
        online(batch)
    exported = online.export()
    for mine, teacher in zip(exported.parameters(), online.teacher.parameters(), strict=True):
        assert torch.equal(mine, teacher)
    # the first layer's filters moved by less than 1e-5 in the teacher
    seen = net[0](torch.cat(batches)).movedim(1, 0).flatten(1)
    torch.testing.assert_close(exported[1].running_mean, seen.mean(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(exported[1].running_var, seen.var(1), atol=1e-3, rtol=0)


class _Keeps(nn.Module):
    """A parameter that is read from a cache in inference mode, as timm's LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.attention_bias_cache = nn.Parameter(torch.ones(6)), {}

    def forward(self, x: Tensor) -> Tensor:
        kept = self.attention_bias_cache.setdefault("cpu", 2 * self.bias)
        return x + kept.view(1, -1, 1, 1)


def test_parameters_that_are_cached_adapt_too() -> None:
    net = _net()
    net.insert(1, _Keeps())
    net.insert(3, _Keeps())
    net(_batch())  # fills the caches
    online = cotta(net, views=0, restore=0.0, teacher_momentum=0.5)
    for seed in (1, 2):
        online(_batch(seed=seed))
    assert not torch.equal(online.model[3].bias, net[3].bias)
    exported, fresh = online.export(), _net()
    fresh.insert(1, _Keeps())
    fresh.insert(3, _Keeps())
    fresh.load_state_dict(exported.state_dict())
    assert torch.equal(exported(_batch()), fresh.eval()(_batch()))


def test_more_steps_are_counted_once() -> None:
    once, twice = cotta(_net(), views=0), cotta(_net(), views=0, steps=3)
    for online in (once, twice):
        online(_batch())
    assert once.teacher[1].seen_samples == twice.teacher[1].seen_samples == 8
    assert twice.optimizer is not None
    assert {int(each["step"]) for each in twice.optimizer.state.values()} == {3}


def test_consistency_is_the_cross_entropy_to_the_target() -> None:
    p, q = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(consistency(p, q), _entropies(p, q))
    both = (_entropies(p, q) + _entropies(q, p)) / 2
    torch.testing.assert_close(consistency(p, q, symmetric=True), both)


def test_a_batch_of_one_names_another_method() -> None:
    with pytest.raises(InputError, match=r"batch of 1.*rotta"):
        cotta(_net())(_batch(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"views": -1}, "views -1"),
        ({"restore": 1.5}, "restore 1.5"),
        ({"teacher_momentum": -0.1}, "teacher_momentum -0.1"),
        ({"threshold": 2.0}, "threshold 2.0"),
        ({"mean": (0.5,)}, "mean and std"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_options_out_of_range(options: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        cotta(_net(), **options)  # type: ignore[arg-type]
