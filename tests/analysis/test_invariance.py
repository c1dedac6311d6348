"""Scale invariance: which layers have it, what breaks it, and the angle of a step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from known_networks import normalized, pictures
from torch import nn

from normapps.analysis.invariance import (
    IDLE,
    NO,
    UP_TO_EPS,
    YES,
    equilibrium,
    scale_invariance,
)
from normapps.norm import create_norm

LABELS = torch.arange(16) % 4


def test_a_batch_norm_makes_the_weight_before_it_a_direction() -> None:
    conv, linear = scale_invariance(normalized(nn.BatchNorm2d(8)), (pictures(16), LABELS))
    assert conv.invariant == YES
    assert conv.change < 1e-4  # eps: (1e-5 / 2σ²)(1 − 1/9) with σ² near .3
    assert conv.change == pytest.approx(1e-5 / (2 * conv.variance) * 8 / 9, rel=1)
    assert conv.cosine < 1e-4
    assert conv.ratio == pytest.approx(1, abs=1e-3)
    assert linear.invariant == NO
    assert linear.change > 0.3
    assert linear.ratio > 1.1


def test_without_eps_what_is_left_is_rounding() -> None:
    batch = scale_invariance(normalized(nn.BatchNorm2d(8, eps=1e-12)), (pictures(16), LABELS))
    group = scale_invariance(normalized(nn.GroupNorm(2, 8, eps=1e-12)), (pictures(16), LABELS))
    assert batch[0].change < 2e-6
    assert group[0].change < 3e-5


def test_a_bias_before_a_group_norm_breaks_it() -> None:
    free, bound = (
        scale_invariance(normalized(nn.GroupNorm(2, 8), bias=bias), (pictures(16), LABELS))[0]
        for bias in (False, True)
    )
    assert free.invariant == YES
    assert bound.invariant == NO


def test_small_variances_are_told_from_weights_that_count() -> None:
    model = normalized(nn.BatchNorm2d(8))
    with torch.no_grad():
        model[0].weight.mul_(1e-2)
    row = scale_invariance(model, (pictures(16), LABELS))[0]
    assert row.change > 1e-3
    assert row.variance < 1e-3
    assert row.invariant == UP_TO_EPS
    assert model[1].eps == 1e-5


def test_a_weight_behind_which_nothing_counts() -> None:
    model = normalized(nn.BatchNorm2d(8))
    nn.init.zeros_(model[1].weight)
    assert scale_invariance(model, (pictures(16), LABELS))[0].invariant == IDLE


def test_a_weight_that_says_little_is_not_scale_invariant() -> None:
    class Whisper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.aside = normalized(nn.BatchNorm2d(8)), nn.Linear(3 * 64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) + 1e-5 * self.aside(x.flatten(1))

    with torch.random.fork_rng(devices=[]):
        row = scale_invariance(Whisper(), (pictures(16), LABELS))[-1]
    assert row.layer == "aside"
    assert row.change < 1e-3
    assert row.ratio == pytest.approx(3, rel=1e-2)
    assert row.invariant == NO


def test_rates_and_angles_against_a_step_that_is_taken() -> None:
    model, lr = normalized(nn.BatchNorm2d(8)), 0.5
    row = scale_invariance(model, (pictures(16), LABELS), lr)[0]
    copy = normalized(nn.BatchNorm2d(8)).double().train()
    F.cross_entropy(copy(pictures(16).double()), LABELS).backward()
    w, g = copy[0].weight.detach().flatten(), copy[0].weight.grad
    assert g is not None
    moved = w - lr * g.flatten()
    cosine = float(w @ moved / w.norm() / moved.norm())
    assert row.angle == pytest.approx(math.acos(cosine), rel=1e-3)
    assert row.norm == pytest.approx(float(w.norm()), rel=1e-5)
    assert row.effective == pytest.approx(lr / float(w @ w), rel=1e-5)


def test_equilibrium() -> None:
    # w ← (1 − ηλ)w − ηg with g ⟂ w of norm c/‖w‖ ends in this angle, at ‖w‖⁴ = ηc²/2λ
    lr, decay, norm = 0.1, 1e-3, 1.0
    for _ in range(100_000):
        angle = math.atan2(lr / norm, (1 - lr * decay) * norm)
        norm = math.hypot((1 - lr * decay) * norm, lr / norm)
    assert angle == pytest.approx(equilibrium(lr, decay), rel=1e-3)


def test_the_model_comes_back_as_it_was() -> None:
    model = normalized(nn.BatchNorm2d(8)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scale_invariance(model, (pictures(16), None))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[1].training
    assert all(each.requires_grad and each.grad is None for each in model.parameters())


def test_a_layer_that_whitens_vectors_gets_all_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 16), create_norm("iternorm", 16, group_size=16), nn.ReLU(), nn.Linear(16, 4)
    )
    rows = scale_invariance(model, (torch.randn(40, 12), torch.arange(40) % 4), few=8)
    assert [row.layer for row in rows] == ["0", "3"]
    assert rows[0].change < 0.01 < rows[1].change
