"""Finetuning while rounded: digits come back, equations of a step, resume, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from normapps.data.pool import Pool
from normapps.errors import InputError
from normapps.quant.fake import Ranges, fake_quantize_, input_ranges
from normapps.quant.finetune import Finetuning, Rounds, finetune_
from normapps.quant.finetune_options import QatOptions
from normapps.quant.qat import QatTrainer
from normapps.training.sampling import LabelledFeed

SHORT = QatOptions(steps=6, lr=1e-3, weight_bits=4, warmup=0)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Digits (1797, 1, 8, 8) in [0, 1] in a fixed random order, and their classes."""
    pictures, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(pictures, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return x[order], torch.tensor(classes)[order]


@pytest.fixture(scope="module")
def learnt(digits: tuple[Tensor, Tensor]) -> nn.Sequential:
    """A small network that knows the first 1200 digits; not to be changed."""
    x, classes = digits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(10):
            for rows in torch.randperm(1200).split(100):
                loss = F.cross_entropy(model(x[rows]), classes[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return _badly_scaled(model.eval())


@torch.no_grad()
def _badly_scaled(model: nn.Sequential) -> nn.Sequential:
    """The same function with channels from an eighth to eight times as large."""
    factors = 2 ** torch.linspace(-3, 3, 16)[torch.arange(16) * 7 % 16]
    first, second = model[0], model[2]
    first.weight.mul_(factors[:, None, None, None])
    first.bias.mul_(factors)
    second.weight.div_(factors[None, :, None, None])
    return model


@pytest.fixture
def model(learnt: nn.Sequential) -> nn.Sequential:
    return copy.deepcopy(learnt)


@pytest.fixture
def batches(digits: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The digits that were learnt from, without classes."""
    return list(digits[0][:1200].split(100))


def accuracy(model: nn.Module, digits: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((model(digits[0][1200:]).argmax(1) == digits[1][1200:]).float().mean())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def largest(model: nn.Sequential) -> Tensor:
    """The largest weight of each channel of all layers."""
    layers = (model[0], model[2], model[5])
    return torch.cat([layer.weight.detach().abs().flatten(1).amax(1) for layer in layers])


def near(one: Ranges, other: Ranges) -> bool:
    return one.keys() == other.keys() and all(
        value == pytest.approx(other[name]) for name, value in one.items()
    )


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "per_channel"), [(4, 8, False), (3, 4, True)]
)
def test_digits_that_few_bits_lost_come_back_without_labels(
    weight_bits: int,
    activation_bits: int,
    per_channel: bool,
    model: nn.Sequential,
    batches: list[Tensor],
    digits: tuple[Tensor, Tensor],
) -> None:
    rule = {
        "weight_bits": weight_bits, "activation_bits": activation_bits, "per_channel": per_channel,
    }  # fmt: skip
    plain = accuracy(model, digits)
    with fake_quantize_(model, activations=input_ranges(model, batches), **rule):
        naive = accuracy(model, digits)
    done = finetune_(model, batches, QatOptions(steps=120, lr=1e-3, **rule))
    with fake_quantize_(model, activations=done.ranges, **rule):
        after = accuracy(model, digits)
    assert plain > 0.92
    assert naive < plain - 0.25
    assert after > naive + 0.6 * (plain - naive)
    assert done.is_finished
    assert len(done.losses) == 120
    assert done.losses[-1] < 0.5 * done.losses[0]


def test_the_weights_rounded_are_those_of_the_loss(
    model: nn.Sequential, batches: list[Tensor]
) -> None:
    """A further run without learning begins with the loss that rounding from outside gives."""
    done = finetune_(model, batches, replace(SHORT, steps=20, range_lr=0.05))
    teacher = copy.deepcopy(model)
    still = replace(SHORT, steps=1, lr=0.0)
    again = finetune_(model, batches, still, teacher=teacher, ranges=done.ranges)
    with torch.no_grad():
        wanted = F.log_softmax(teacher(batches[0]), 1)
        with fake_quantize_(model, weight_bits=4, activations=done.ranges):
            mine = F.log_softmax(model(batches[0]), 1)
    expected = (wanted.exp() * (wanted - mine)).sum(1).mean()
    assert again.losses[0] == pytest.approx(float(expected), rel=1e-3)
    assert near(again.ranges, done.ranges)


def test_learned_clips_are_the_largest_weights_of_all(
    model: nn.Sequential, batches: list[Tensor]
) -> None:
    """The trainer's own forward pass is the same before and after the weights are cut off."""
    options = replace(SHORT, steps=30, range_lr=0.05)
    feed = Rounds(batches)
    trainer = QatTrainer(model, feed, options, copy.deepcopy(model), input_ranges(model, batches))
    for step in range(options.steps):
        trainer.step(step)
    learnt = torch.cat([log.detach().exp().flatten() for log in trainer.rounding.weight_logs])
    assert bool((learnt <= 1).all())
    assert float(learnt.min()) < 0.9
    limits = largest(model)
    with torch.no_grad():
        before = trainer.rounding(batches[0])
        trainer.rounding.cut_off_()
        after = trainer.rounding(batches[0])
    assert torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(largest(model), limits * learnt)


def within(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp; the gradient is 1 at the ends too, whatever torch's own clamp has there."""
    inside = (x >= low) & (x <= high)
    return torch.where(inside, x, x.detach().clamp(low, high))


def through(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def test_a_step_is_that_of_the_equations() -> None:
    """SGD on KL + 0.5 cross entropy of a linear layer, written out in float64."""
    torch.manual_seed(0)
    model, teacher = nn.Sequential(nn.Linear(6, 4)), nn.Linear(6, 4)
    x, classes = torch.randn(50, 6), torch.randint(4, (50,))
    low, high, top = -1.5, 2.0, 15
    options = QatOptions(
        steps=1, lr=0.1, warmup=0, optimizer="sgd", weight_bits=4, activation_bits=4,
        label_weight=0.5, temperature=2.0, range_lr=0.2,
    )  # fmt: skip
    w = model[0].weight.detach().double().requires_grad_()
    b = model[0].bias.detach().double().requires_grad_()
    logs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
    step = w.detach().abs().amax(1, keepdim=True) / 7 * log.exp()
    # a hair wider, so that the largest weights lie within their range as rounded ones do
    weight = within(through(w / step), -7, 7) * step
    first, last = low * logs[0].exp(), high * logs[1].exp()
    scale = (last - first) / top
    zero = through(-first / scale)
    inputs = within(through(x.double() / scale) + zero, 0, top) - zero
    logits = inputs * scale @ weight.T + b
    with torch.no_grad():
        wanted = F.softmax(teacher(x).double() / 2, 1)
    kl = (wanted * (wanted.log() - F.log_softmax(logits / 2, 1))).sum(1).mean()
    loss = 4 * kl + 0.5 * F.cross_entropy(logits, classes)
    loss.backward()
    done = finetune_(
        model, [(x, classes)], replace(options, learn_clips=False), teacher=teacher,
        ranges={"0": (low, high)},
    )  # fmt: skip
    assert done.losses == pytest.approx((float(loss.detach()),), rel=1e-5)
    rate = 0.1 * 1.9  # Nesterov's first step
    for found, own in ((model[0].weight, w), (model[0].bias, b)):
        assert own.grad is not None
        assert torch.allclose(found.double(), own.detach() - rate * own.grad, atol=1e-5)
    assert logs.grad is not None
    ends = torch.tensor([low, high]) * (-0.2 * 1.9 * logs.grad).exp()
    assert done.ranges["0"] == pytest.approx(tuple(ends.tolist()), rel=1e-4)


def test_labels_teach_what_the_teacher_does_not_know(digits: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    batches = [(x, y) for x, y in zip(digits[0][:1200].split(300), digits[1][:1200].split(300),
               strict=True)]  # fmt: skip
    options = QatOptions(steps=40, lr=0.03, label_weight=10.0)
    before = accuracy(model, digits)
    with finetune_(model, batches, replace(options, label_weight=0.0)):
        assert accuracy(model, digits) < before + 0.1
    with finetune_(model, batches, options):
        assert accuracy(model, digits) > 0.8


def test_everything_comes_back(model: nn.Sequential, batches: list[Tensor]) -> None:
    model.train()
    model[0].weight.requires_grad_(False)
    before = weights(model)
    done = finetune_(model, batches, SHORT)
    assert isinstance(done, Finetuning)
    assert model.training
    assert not model[0].weight.requires_grad
    assert model[2].weight.requires_grad
    assert all(each.grad is None for each in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    changed = weights(model)
    assert not any(torch.equal(value, changed[name]) for name, value in before.items())
    done()
    assert same(before, weights(model))


def test_options_decide_what_is_rounded_and_learns(
    model: nn.Sequential, batches: list[Tensor]
) -> None:
    ranges = input_ranges(model, batches)
    with finetune_(model, batches, replace(SHORT, weights_only=True)) as done:
        assert done.ranges == {}
    with finetune_(model, batches, replace(SHORT, learn_ranges=False), ranges=ranges) as done:
        assert near(done.ranges, ranges)
    with finetune_(model, batches, replace(SHORT, range_lr=0.1), ranges=ranges) as done:
        assert done.ranges["2"][1] != pytest.approx(ranges["2"][1], rel=1e-3)
        assert done.ranges["2"][0] == 0  # behind a ReLU
    with finetune_(model, batches, replace(SHORT, exclude=("2",))) as done:
        assert set(done.ranges) == {"0", "5"}
    with finetune_(model, batches, replace(SHORT, precision="bfloat16")) as done:
        assert done.losses[-1] < 10


def test_the_teacher_is_the_network_as_it_was(model: nn.Sequential, batches: list[Tensor]) -> None:
    plain = finetune_(copy.deepcopy(model), batches, SHORT).losses
    itself = finetune_(copy.deepcopy(model), batches, SHORT, teacher=model).losses
    alone = copy.deepcopy(model)
    assert finetune_(alone, batches, SHORT, teacher=alone).losses == plain == itself
    assert all(each.requires_grad for each in model.parameters())


def test_a_weight_of_two_layers_is_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    batches = [torch.randn(20, 6)]
    done = finetune_(model, batches, SHORT)
    assert model[2].weight is model[0].weight
    assert set(done.ranges) == {"0", "2"}
    assert done.losses[-1] < done.losses[0]


def test_pictures_of_a_feed(model: nn.Sequential, digits: tuple[Tensor, Tensor]) -> None:
    images = (digits[0][:200] * 255).to(torch.uint8)
    pool = Pool(images, digits[1][:200], tuple("0123456789"), ())
    options = replace(SHORT, batch_size=32, crop=1.0, flip=0.0, jitter=0.0)
    feed = LabelledFeed(pool, options, lambda x: x.float() / 255)
    done = finetune_(model, feed, options)
    first, _ = feed.batch(0)
    assert first.shape == (32, 1, 8, 8)
    assert set(done.ranges) == {"0", "2", "5"}


def test_a_run_resumes_exactly(model: nn.Sequential, batches: list[Tensor], tmp_path: Path) -> None:
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    straight = finetune_(whole, batches, SHORT)
    first = finetune_(parts, batches, replace(SHORT, stop_after=2), folder=tmp_path)
    assert not first.is_finished
    assert len(first.losses) == 2
    first()
    rest = finetune_(parts, batches, SHORT, folder=tmp_path)
    assert rest.is_finished
    assert first.losses + rest.losses == straight.losses
    assert rest.ranges == straight.ranges
    assert same(weights(whole), weights(parts))
    with pytest.raises(InputError, match="the run was started with weights"):
        finetune_(parts, batches, SHORT, folder=tmp_path)
    with pytest.raises(InputError, match="was started with --weight-bits 4, not 8"):
        finetune_(parts, batches, replace(SHORT, weight_bits=8), folder=tmp_path)


def test_rounds_give_the_batch_of_any_step() -> None:
    batches = [torch.full((1,), float(each)) for each in range(3)]
    rounds = Rounds(batches)
    order = [0, 1, 2, 3, 7, 2, 2, 4]
    assert [int(rounds.batch(step)[0]) for step in order] == [step % 3 for step in order]
    pairs = Rounds([(batches[1], torch.tensor([5]))])
    assert pairs.batch(4)[1] == torch.tensor([5])


def generated(batches: list[Tensor]) -> Iterator[Tensor]:
    yield from batches


def test_batches_that_cannot_be_learnt_from_are_refused(
    model: nn.Sequential, batches: list[Tensor]
) -> None:
    before = weights(model)
    with pytest.raises(InputError, match="a generator is gone after one pass: give a list"):
        finetune_(model, generated(batches), SHORT)
    with pytest.raises(InputError, match="no batch came to a layer"):
        finetune_(model, [], SHORT)
    with pytest.raises(InputError, match="there are no batches to learn from"):
        finetune_(model, [], replace(SHORT, weights_only=True))
    with pytest.raises(InputError, match="a batch of str: give tensors"):
        finetune_(model, ["nine"], replace(SHORT, weights_only=True))
    with pytest.raises(InputError, match="not logits"):
        finetune_(model[:2], batches, SHORT)
    assert same(before, weights(model))


def test_a_loss_that_is_not_finite_leaves_the_model_as_it_was(
    model: nn.Sequential, batches: list[Tensor]
) -> None:
    before = weights(model)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[5].bias.fill_(torch.nan)
    with pytest.raises(InputError, match="step 0: the loss is not finite; give a lower --lr"):
        finetune_(model, batches, SHORT, teacher=broken)
    with pytest.raises(InputError, match="is not finite"):
        finetune_(model, batches, replace(SHORT, lr=1e30, weights_only=True))
    assert same(before, weights(model))
