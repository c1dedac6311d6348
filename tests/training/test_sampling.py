"""The batches of a step: every picture once a round, the same whenever the step comes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normapps.data.pool import Pool
from normapps.engine.distributed import World
from normapps.errors import InputError
from normapps.training.options import FitOptions
from normapps.training.sampling import LabelledFeed, Order


@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 3), st.integers(0, 5))
def test_each_round_takes_every_picture_once(length: int, size: int, world: int, seed: int) -> None:
    rounds = 3 * length
    order = Order(length, size, seed)
    taken = [
        int(row)
        for step in range(-(-rounds // (size * world)))
        for rank in range(world)
        for row in order.rows(step, World(rank, world))
    ][:rounds]
    assert Counter(taken) == dict.fromkeys(range(length), 3)
    for first in (0, length, 2 * length):
        assert sorted(taken[first : first + length]) == list(range(length))


def test_rounds_and_seeds_have_orders_of_their_own() -> None:
    whole = [Order(50, 50, seed).rows(step, World()).tolist() for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(each) for each in whole}) == 4


def normalize(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def numbered(count: int) -> Pool:
    """Pictures (1, 2, 2) that all show their label."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 2, 2)
    return Pool(images.contiguous(), torch.arange(count))


def test_a_labelled_step_is_the_same_whenever_it_comes() -> None:
    chosen = FitOptions(batch_size=8, shift=0.5, jitter=0.5, seed=3)
    one, other = (LabelledFeed(numbered(60), chosen, normalize) for _ in range(2))
    for step in range(4):
        one.batch(step)
    assert all(map(torch.equal, one.batch(4), other.batch(4)))
    assert not torch.equal(one.batch(4)[1], one.batch(5)[1])
    rank = LabelledFeed(numbered(60), chosen, normalize, World(1, 2)).batch(4)
    assert not torch.equal(one.batch(4)[1], rank[1])


def test_labels_belong_to_their_pictures() -> None:
    plain = FitOptions(batch_size=8, crop=1.0, flip=0.0, jitter=0.0)
    images, labels = LabelledFeed(numbered(30), plain, normalize).batch(7)
    assert torch.equal((images * 255).round().long()[:, 0, 0, 0], labels)
    changed, _ = LabelledFeed(numbered(30), FitOptions(batch_size=8), normalize).batch(7)
    assert not torch.equal(images, changed)


def test_pictures_without_labels_are_refused() -> None:
    with pytest.raises(InputError, match="no labels; put them into a folder a class"):
        LabelledFeed(Pool(numbered(4).images), FitOptions(), normalize)
