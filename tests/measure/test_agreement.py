"""Agreement of two classifiers against sums in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from normapps.errors import InputError
from normapps.measure.agreement import compare_logits, confidences, describe_logits


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_values_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 50, 7)) * 3
    p, q = _softmax(first), _softmax(second)
    found = compare_logits(torch.from_numpy(first).float(), torch.from_numpy(second).float())
    assert (found.count, found.classes) == (50, 7)
    assert found.top1 == np.mean(p.argmax(1) == q.argmax(1))
    assert found.kl == pytest.approx(np.mean((p * np.log(p / q)).sum(1)), rel=1e-5)
    assert found.before.confidence == pytest.approx(p.max(1).mean(), rel=1e-5)
    assert found.after.entropy == pytest.approx(-(q * np.log(q)).sum(1).mean(), rel=1e-5)
    mean = q.mean(0)
    assert found.after.diversity == pytest.approx(-(mean * np.log(mean)).sum(), rel=1e-5)
    assert found.before.largest_share == np.bincount(p.argmax(1)).max() / 50
    np.testing.assert_allclose(confidences(torch.from_numpy(first)), p.max(1))


def test_a_collapse_and_a_spread_are_told_apart() -> None:
    logits = torch.zeros(8, 8)
    logits[:, 3] = 50
    assert describe_logits(logits).diversity == pytest.approx(0, abs=1e-12)
    assert describe_logits(logits).largest_share == 1
    spread = describe_logits(50 * torch.eye(8))
    assert spread.diversity == pytest.approx(math.log(8))
    assert spread.largest_share == 1 / 8


def test_certain_answers_give_finite_numbers() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    found = compare_logits(logits, logits)
    assert (found.kl, found.top1, found.before.entropy) == (0, 1, 0)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 3\) and \(2, 4\)"):
        compare_logits(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="must be"):
        describe_logits(torch.zeros(0, 3))
