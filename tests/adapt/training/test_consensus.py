"""Min-entropy consensus, against its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from normapps.adapt.losses import entropy
from normapps.adapt.training.consensus import min_entropy_consensus
from normapps.errors import InputError


def _logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 7, generator=generator, dtype=torch.float64) * 3


def test_values() -> None:
    first, second = _logits(0), _logits(1)
    p, q = (np.exp(x.numpy()) / np.exp(x.numpy()).sum(1, keepdims=True) for x in (first, second))
    each_class = [-0.5 * (np.log(p[:, c]) + np.log(q[:, c])) for c in range(7)]
    found = min_entropy_consensus(first, second).numpy()
    np.testing.assert_allclose(found, np.min(each_class, axis=0), rtol=1e-12)


def test_of_equal_views_it_is_the_min_entropy() -> None:
    """−log max p, which is at most the entropy."""
    logits = _logits(0)
    found = min_entropy_consensus(logits, logits)
    torch.testing.assert_close(found, -logits.softmax(1).amax(1).log())
    assert (found <= entropy(logits)).all()


def test_views_that_are_sure_and_agree_cost_nothing_and_disagreement_does() -> None:
    sure = torch.eye(3) * 50
    assert min_entropy_consensus(sure, sure).tolist() == [0, 0, 0]
    assert (min_entropy_consensus(sure, sure.roll(1, 0)) > 20).all()


def test_gradient() -> None:
    views = _logits(0).requires_grad_(), _logits(1).requires_grad_()
    assert torch.autograd.gradcheck(min_entropy_consensus, views)


def test_half_precision_is_measured_in_float32() -> None:
    first, second = _logits(0).half(), _logits(1).half()
    found = min_entropy_consensus(first, second)
    torch.testing.assert_close(found, min_entropy_consensus(first.float(), second.float()))


def test_views_that_differ_in_shape() -> None:
    with pytest.raises(InputError, match=r"\(2, 3\), \(1, 3\): differ"):
        min_entropy_consensus(torch.zeros(2, 3), torch.zeros(1, 3))
