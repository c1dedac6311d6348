"""The penalty in a training loop: exact resume, targets, half precision, what goes wrong."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from normapps.errors import InputError
from normapps.models.small import small_cnn
from normapps.slim.regularizer import ScaleRegularizer
from normapps.slim.scales import split_parameters


class Loop:
    """Digits, a small network, a falling rate: somebody's training."""

    def __init__(self, adam: bool = False, total: int = 100, **options: Any) -> None:
        digits = load_digits()
        self.images = torch.tensor(digits.images[:, None] / 8 - 1).float()
        self.labels = torch.tensor(digits.target)
        torch.manual_seed(0)
        self.model = small_cnn(10, 1, 8, 8)
        if options.get("kind") == "polarization":
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.constant_(module.weight, 0.5)
        groups = split_parameters(self.model, 1e-4)
        self.optimizer: Any = Adam(groups, 0.02, weight_decay=0) if adam else SGD(groups, 0.1, 0.9)
        self.schedule = CosineAnnealingLR(self.optimizer, total)
        self.reg = ScaleRegularizer(self.model, self.optimizer, **options)

    def run(self, first: int, last: int) -> None:
        for step in range(first, last):
            draw = torch.Generator().manual_seed(step)
            picks = torch.randint(len(self.images), (32,), generator=draw)
            loss = F.cross_entropy(self.model(self.images[picks]), self.labels[picks])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.reg.step()
            self.schedule.step()

    def scales(self) -> Tensor:
        norms = [each for each in self.model.modules() if isinstance(each, nn.BatchNorm2d)]
        return torch.cat([norm.weight.detach() for norm in norms])


CASES: dict[str, dict[str, Any]] = {
    "plain": {"strength": 0.01},
    "group, target": {"strength": 0.01, "group": True, "target_sparsity": 0.5, "steps": 30},
    "adam": {"adam": True, "strength": 0.01},
    "polarization, target": {"kind": "polarization", "target_sparsity": 0.4, "steps": 30},
    "subgradient": {"kind": "subgradient", "strength": 0.01},
}


@pytest.mark.parametrize("name", CASES)
def test_resumed_is_uninterrupted_to_the_bit(name: str) -> None:
    whole = Loop(**CASES[name])
    whole.run(0, 30)
    first = Loop(**CASES[name])
    first.run(0, 17)
    kept = copy.deepcopy([first.model.state_dict(), first.optimizer.state_dict()])
    state = json.loads(json.dumps(first.reg.state_dict()))
    second = Loop(**CASES[name])
    second.model.load_state_dict(kept[0])
    second.optimizer.load_state_dict(kept[1])
    second.schedule.load_state_dict(first.schedule.state_dict())
    second.reg.load_state_dict(state)
    second.run(17, 30)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    assert second.reg.strength == whole.reg.strength
    assert second.reg.state_dict() == whole.reg.state_dict()


@pytest.mark.parametrize("group", [False, True])
def test_target_is_reached_and_not_passed(group: bool) -> None:
    loop = Loop(target_sparsity=0.5, steps=100, group=group, strength=1e-3)
    for first in range(0, 100, 20):
        loop.run(first, first + 20)
        assert loop.reg.sparsity() <= 0.5
    assert loop.reg.sparsity() > 0.44
    zeros = loop.scales() == 0
    assert loop.reg.sparsity() == pytest.approx(float(zeros.float().mean()))


def test_a_target_far_above_what_the_network_can_lose_empties_no_layer() -> None:
    loop = Loop(target_sparsity=0.9, steps=60, strength=10.0)
    loop.run(0, 60)
    assert loop.reg.sparsity() > 0.8
    assert max(loop.reg.layer_sparsity().values()) < 1


def test_what_stays_is_not_shrunk_once_there_are_zeros_enough() -> None:
    """However great λ is then: the scales that live move as the optimizer moves them."""
    loop = Loop(target_sparsity=0.5, steps=60, strength=0.5)
    loop.run(0, 30)
    assert loop.reg.sparsity() == 0.5
    loop.optimizer.param_groups[1]["momentum"] = 0.0
    before, lives = loop.scales(), loop.scales() != 0
    norms = [each for each in loop.model.modules() if isinstance(each, nn.BatchNorm2d)]
    rate = loop.optimizer.param_groups[1]["lr"]
    loop.run(30, 31)
    gradients = torch.cat([each.weight.grad for each in norms])
    expected = before - rate * gradients
    assert torch.allclose(loop.scales()[lives], expected[lives], atol=1e-6)


def test_dead_channel_of_a_group_is_silent() -> None:
    loop = Loop(strength=0.05, group=True)
    loop.run(0, 40)
    assert loop.reg.sparsity() > 0.1
    for module in loop.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight == 0, module.bias == 0)


def test_shares_by_layer_add_up() -> None:
    loop = Loop(strength=0.05)
    loop.run(0, 30)
    shares, sizes = loop.reg.layer_sparsity(), []
    for name in shares:
        scale = loop.model.get_submodule(name).weight
        assert shares[name] == pytest.approx(float((scale == 0).float().mean()))
        sizes.append(len(scale))
    total = sum(share * size for share, size in zip(shares.values(), sizes, strict=True))
    assert loop.reg.sparsity() == pytest.approx(total / sum(sizes))
    assert total > 0


def test_penalty_is_the_loss_term() -> None:
    plain, grouped = Loop(strength=0.02), Loop(strength=0.02, group=True)
    assert plain.reg.penalty() == pytest.approx(0.02 * float(plain.scales().abs().sum()))
    for module in grouped.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 3.0)
            nn.init.constant_(module.bias, -4.0)
    assert grouped.reg.penalty() == pytest.approx(0.02 * 5 * len(grouped.scales()))


def pushed(
    dtype: torch.dtype, steps: int, strength: float = 0.1
) -> tuple[nn.BatchNorm1d, ScaleRegularizer]:
    norm = nn.BatchNorm1d(3).to(dtype)
    optimizer = SGD(norm.parameters(), 0.01)
    reg = ScaleRegularizer(norm, optimizer, strength=strength)
    for _ in range(steps):
        norm.weight.grad, norm.bias.grad = (torch.zeros_like(norm.weight) for _ in "gb")
        optimizer.step()
        reg.step()
    return norm, reg


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_no_small_step(dtype: torch.dtype) -> None:
    """A step of 0.001 is less than half of bfloat16's spacing at 1, and 200 of them are 0.2."""
    norm, reg = pushed(dtype, 200)
    assert norm.weight[0].item() == pytest.approx(0.8, rel=0.004)
    other = nn.BatchNorm1d(3).to(dtype)
    other.load_state_dict(norm.state_dict())
    resumed = ScaleRegularizer(other, SGD(other.parameters(), 0.01), strength=0.1)
    resumed.load_state_dict(reg.state_dict())
    assert torch.equal(resumed.state_dict()["remainder"], reg.state_dict()["remainder"])
    assert reg.state_dict()["remainder"].any()
    norm, reg = pushed(dtype, 110, 1.0)
    assert reg.sparsity() == 1


def test_rates_of_groups_are_read_at_each_step() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters()}]
    optimizer = SGD(groups, 0.01)
    reg = ScaleRegularizer(model, optimizer, strength=0.5)
    for factor in (1.0, 3.0):
        optimizer.param_groups[0]["lr"] = 0.1 * factor
        for each in model.parameters():
            each.grad = torch.zeros_like(each)
        optimizer.step()
        reg.step()
    torch.testing.assert_close(model[0].weight.detach(), torch.full((2,), 1 - 0.05 - 0.15))
    torch.testing.assert_close(model[1].weight.detach(), torch.full((2,), 1 - 2 * 0.005))


def test_what_got_no_gradient_and_no_step_stays() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    for make in (lambda: SGD(model.parameters(), 0.1), lambda: Adam(model.parameters(), 0.1)):
        optimizer = make()
        reg = ScaleRegularizer(model, optimizer, strength=1.0)
        reg.step()
        model[0].weight.grad = torch.zeros(2)
        before = model[1].weight.detach().clone()
        optimizer.step()
        optimizer.zero_grad()
        reg.step()
        after = [norm.weight.detach().clone() for norm in model]
        reg.step()
        assert torch.equal(after[1], before)
        assert after[0].max() < 1
        assert torch.equal(model[0].weight, after[0])


def test_a_step_skipped_within_the_optimizer_brings_no_threshold() -> None:
    """Fused optimizers skip in the kernel where a GradScaler has found infinities."""
    norm = nn.BatchNorm1d(2)
    optimizer = Adam(norm.parameters(), 0.1, fused=True)
    reg = ScaleRegularizer(norm, optimizer, strength=1.0)
    for found, moves in ((0.0, True), (1.0, False)):
        before = norm.weight.detach().clone()
        norm.weight.grad, norm.bias.grad = torch.ones(2), torch.ones(2)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(found)
        optimizer.step()
        reg.step()
        assert torch.equal(norm.weight, before) != moves


def test_two_steps_without_a_call_between_are_refused() -> None:
    loop = Loop(strength=0.01)
    loop.run(0, 1)
    loop.optimizer.step()
    with pytest.raises(InputError, match=r"without reg\.step\(\) between"):
        loop.optimizer.step()
    loop.reg.remove()
    before = loop.scales()
    loop.optimizer.zero_grad()
    loop.optimizer.step()
    loop.reg.step()
    assert torch.equal(loop.scales(), before)


def test_nan_in_training_is_named() -> None:
    loop = Loop(strength=0.01)
    loop.run(0, 8)
    with torch.no_grad():
        loop.model.features[2].norm.weight[1] = float("nan")
    with pytest.raises(InputError, match=r"layer 'features.*of channel \d+ is nan; go back"):
        loop.run(8, 10)


def test_same_bits_whatever_the_random_state() -> None:
    loops = [Loop(**CASES["group, target"]) for _ in range(2)]
    for seed, loop in enumerate(loops):
        torch.manual_seed(seed)
        loop.run(0, 12)
    assert torch.equal(loops[0].scales(), loops[1].scales())


def test_state_of_another_regularizer_is_refused() -> None:
    plain, target = Loop(strength=0.01), Loop(**CASES["group, target"])
    polar = Loop(kind="polarization")
    with pytest.raises(InputError, match="kind polarization, not proximal"):
        plain.reg.load_state_dict(polar.reg.state_dict())
    with pytest.raises(InputError, match=r"other arguments \(target in one only\)"):
        plain.reg.load_state_dict(target.reg.state_dict())
    with pytest.raises(InputError, match="channels 7, not"):
        plain.reg.load_state_dict(plain.reg.state_dict() | {"channels": 7})


def test_arguments_are_checked() -> None:
    norm = nn.BatchNorm1d(2)
    optimizer = SGD(norm.parameters(), 0.1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"kind": "proximl"}, "did you mean 'proximal'"),
        ({"strength": -1.0}, r"strength -1\.0"),
        ({"strength": float("nan")}, "strength nan"),
        ({"target_sparsity": 0.5}, "target_sparsity needs steps"),
        ({"target_sparsity": 1.5, "steps": 9}, r"target_sparsity 1\.5"),
        ({"target_sparsity": 0.5, "steps": 9, "strength": 0.0}, r"strength 0\.0"),
    ]
    for options, match in cases:
        with pytest.raises(InputError, match=match) as error:
            ScaleRegularizer(norm, optimizer, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="optimizer list: must be a torch"):
        ScaleRegularizer(norm, [], strength=0.1)  # type: ignore[arg-type]
