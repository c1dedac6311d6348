"""What all trainings of translators share: who is changed by which loss, rates, state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normapps.engine.distributed import World
from normapps.gan.translation.options import FrameOptions
from normapps.gan.translation.task import TranslationTask, learning_rate


def make(options: FrameOptions | None = None, seed: int = 0) -> TranslationTask:
    torch.manual_seed(seed)
    networks: dict[str, nn.Module] = {"g": nn.Linear(3, 2), "d": nn.Linear(2, 1)}
    chosen = options or FrameOptions(steps=10)
    return TranslationTask(networks, ("g",), chosen, World(), torch.device("cpu"))


def numbers(network: nn.Module) -> Tensor:
    return torch.cat([each.detach().flatten() for each in network.parameters()])


def loss_of(task: TranslationTask) -> Tensor:
    x = torch.tensor([[1.0, -2.0, 0.5]])
    found: Tensor = task.networks["d"](task.networks["g"](x)).square().mean()
    return found


def test_a_loss_changes_the_networks_named_and_no_other() -> None:
    task = make()
    before = {name: numbers(each) for name, each in task.networks.items()}
    task.change(("g",), loss_of(task), 0)
    assert torch.equal(numbers(task.networks["d"]), before["d"])
    assert all(each.grad is None for each in task.networks["d"].parameters())
    # Adam's first step is the rate, whatever the gradient
    moved = (numbers(task.networks["g"]) - before["g"]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 2e-4), rtol=1e-3, atol=0)


def test_gradients_are_averaged_over_the_processes() -> None:
    class Opposed(World):
        """Another process has the opposite gradients."""

        def mean(self, value: Tensor) -> Tensor:
            return (value - value) / 2

    task = make()
    before = [numbers(each) for each in task.networks.values()]
    task.here = Opposed()
    task.change(("g", "d"), loss_of(task), 0)
    for old, network in zip(before, task.networks.values(), strict=True):
        assert torch.equal(numbers(network), old)


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    task = make()
    before = [numbers(each) for each in task.networks.values()]
    task.change(("g", "d"), loss_of(task) * float("nan"), 0)
    for old, network in zip(before, task.networks.values(), strict=True):
        assert torch.equal(numbers(network), old)


def test_the_rate_stays_and_then_falls_to_zero() -> None:
    options = FrameOptions(steps=10, lr=0.4)
    rates = [learning_rate(step, options) for step in range(10)]
    assert rates == pytest.approx([0.4] * 6 + [0.32, 0.24, 0.16, 0.08])


def test_the_average_follows() -> None:
    task = make(FrameOptions(steps=10, ema=0.5))
    start = numbers(task.averages["g"])
    task.change(("g",), loss_of(task), 0)
    task.update_averages(100)
    wanted = 0.5 * start + 0.5 * numbers(task.networks["g"])
    torch.testing.assert_close(numbers(task.averages["g"]), wanted)
    assert not any(each.requires_grad for each in task.averages["g"].parameters())


def test_a_restored_task_goes_on_as_the_one_that_was_kept() -> None:
    task, again = make(), make(seed=1)
    for step in range(3):
        task.change(("g", "d"), loss_of(task), step)
        task.update_averages(step)
    tensors, values = task.state()
    again.restore({name: each.clone() for name, each in tensors.items()}, values)
    for each in (task, again):
        each.change(("g",), loss_of(each), 3)
        each.change(("d",), loss_of(each), 3)
        each.update_averages(3)
    ends = [each.state()[0] for each in (task, again)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    # beside weights and averages two moments and a count of Adam for every parameter
    assert len(ends[0]) == 4 + 2 + 3 * 4
