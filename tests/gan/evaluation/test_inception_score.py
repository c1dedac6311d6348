"""The classifier score against its definition, and at both of its ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normapps.errors import InputError
from normapps.gan.evaluation.inception_score import classifier_score


def reference(shares: np.ndarray) -> float:
    whole = shares.mean(0)
    return float(np.exp((shares * (np.log(shares) - np.log(whole))).sum(1).mean()))


def test_one_split_equals_the_definition() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 3
    mean, deviation = classifier_score(logits, splits=1)
    assert mean == pytest.approx(reference(logits.double().softmax(1).numpy()), rel=1e-10)
    assert deviation == 0


def test_splits_share_out_every_picture_once() -> None:
    """Parts of 4, 3 and 3 of the shuffled pictures."""
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    shares = logits.double().softmax(1).numpy()[order]
    values = [reference(part) for part in (shares[:4], shares[4:7], shares[7:])]
    mean, deviation = classifier_score(logits, splits=3, seed=2)
    assert mean == pytest.approx(np.mean(values), rel=1e-10)
    assert deviation == pytest.approx(np.std(values), rel=1e-8)


def test_sure_and_varied_scores_the_number_of_classes_and_alike_scores_one() -> None:
    sure = torch.eye(5).repeat(4, 1) * 2000  # whose other shares are 0 in float64
    assert classifier_score(sure, splits=1)[0] == pytest.approx(5)
    assert classifier_score(torch.randn(1, 5).repeat(20, 1), splits=2) == (pytest.approx(1), 0)


@pytest.mark.parametrize("splits", [0, 5])
def test_splits_must_fit(splits: int) -> None:
    with pytest.raises(InputError, match=f"{splits} splits"):
        classifier_score(torch.zeros(4, 2), splits=splits)
