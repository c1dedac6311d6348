"""Losses on logits, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from normapps.adapt.losses import entropy, soft_cross_entropy
from normapps.errors import InputError


def _logits(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype) * 4


def _softmax(logits: Tensor) -> np.ndarray:
    powers = np.exp(logits.numpy())
    softmax: np.ndarray = powers / powers.sum(1, keepdims=True)
    return softmax


def test_values() -> None:
    logits = _logits()
    p, q = _softmax(logits), _softmax(_logits().flip(0))
    expected = -(p * np.log(p)).sum(1)
    np.testing.assert_allclose(entropy(logits).numpy(), expected, rtol=1e-12)
    found = soft_cross_entropy(logits, torch.from_numpy(q))
    np.testing.assert_allclose(found.numpy(), -(q * np.log(p)).sum(1), rtol=1e-12)


def test_the_ends_of_the_entropy() -> None:
    torch.testing.assert_close(entropy(torch.zeros(2, 10)), torch.full((2,), 10.0).log())
    assert entropy(torch.eye(3) * 1e4).tolist() == [0, 0, 0]


def test_cross_entropy_to_classes_is_torchs_and_to_itself_the_entropy() -> None:
    logits, classes = _logits(), torch.tensor([0, 3, 6, 2, 2])
    targets = torch.nn.functional.one_hot(classes, 7).double()
    expected = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, targets), expected)
    torch.testing.assert_close(soft_cross_entropy(logits, logits.softmax(1)), entropy(logits))


def test_half_precision_is_measured_in_float32() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        logits = _logits(dtype)
        assert entropy(logits).dtype == torch.float32
        torch.testing.assert_close(entropy(logits), entropy(logits.float()))
        with torch.autocast("cpu", torch.bfloat16):
            assert soft_cross_entropy(logits, logits.softmax(1)).dtype == torch.float32


def test_gradients() -> None:
    logits = _logits().requires_grad_()
    targets = _logits().flip(1).softmax(1).requires_grad_()
    assert torch.autograd.gradcheck(entropy, (logits,))
    assert torch.autograd.gradcheck(soft_cross_entropy, (logits, targets))


def test_a_class_ruled_out_counts_for_nothing() -> None:
    open_logits = _logits()
    logits = torch.cat([open_logits, torch.full((5, 1), -torch.inf)], 1).requires_grad_()
    torch.testing.assert_close(entropy(logits), entropy(open_logits))
    (entropy(logits) + soft_cross_entropy(logits, logits.detach().softmax(1))).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, 7].any()


def test_nan_stays_in_its_sample() -> None:
    logits = _logits()
    logits[2, 1] = torch.nan
    assert entropy(logits).isnan().tolist() == [False, False, True, False, False]


def test_no_samples() -> None:
    assert entropy(torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(1, 2, 3), torch.zeros(2, 3).long()])
def test_what_are_no_logits(wrong: Tensor) -> None:
    with pytest.raises(InputError, match=r"must be \(N, C\)"):
        entropy(wrong)


def test_targets_of_another_shape() -> None:
    with pytest.raises(InputError, match="as the logits"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2))
