"""Right and wrong answers of a network, picture by picture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normapps.data.pool import Pool
from normapps.errors import InputError
from normapps.training.evaluation import PoolBatches, Score, right_answers

CPU = torch.device("cpu")


def answers(right: int, of: int) -> torch.Tensor:
    return torch.arange(of) < right


def test_a_score_has_its_intervals() -> None:
    score = Score("art", answers(80, 100), answers(50, 100))
    assert (score.accuracy.mean, score.accuracy.count) == (0.8, 100)
    assert score.baseline is not None
    assert score.baseline.mean == 0.5
    assert score.difference is not None
    assert abs(score.difference.mean - 0.3) < 1e-9


def batches(labels: list[int] | None, seed: int | None = None) -> PoolBatches:
    """Three pictures with a single bright pixel each: 0, 1 and 1."""
    images = torch.zeros(3, 1, 1, 2, dtype=torch.uint8)
    images[torch.arange(3), 0, 0, torch.tensor([0, 1, 1])] = 255
    pool = Pool(images, None if labels is None else torch.tensor(labels))
    return PoolBatches(pool, lambda x: x.float() / 255, 2, CPU, seed)


def test_the_brightest_pixel_is_the_answer() -> None:
    model = nn.Flatten().train()
    assert right_answers(model, batches([0, 1, 0])).tolist() == [True, True, False]
    assert model.training  # as it was
    with pytest.raises(InputError, match="no labels to compare"):
        right_answers(model, batches(None))


def test_batches_are_the_pool_in_its_order_or_mixed() -> None:
    plain = batches([0, 1, 1])
    assert [len(each) for each in plain] == [2, 1]
    whole = torch.cat(list(plain)).flatten(1)
    assert whole.tolist() == [[1, 0], [0, 1], [0, 1]]
    mixed = [torch.cat(list(batches(None, seed))).flatten(1).argmax(1).tolist() for seed in
             range(20)]  # fmt: skip
    assert {tuple(each) for each in mixed} == {(0, 1, 1), (1, 0, 1), (1, 1, 0)}
