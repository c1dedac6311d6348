from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normapps.adapt.online.streams import STREAMS, Step, create_stream
from normapps.errors import InputError

SIZES = (7, 12, 5)
LABELS = [torch.arange(size) % 3 for size in SIZES]


def _make(name: str, batch_size: int = 4, seed: int = 0, least: int = 1) -> list[Step]:
    return create_stream(name, SIZES, batch_size, labels=LABELS, seed=seed, least=least)


def _all(steps: list[Step]) -> list[tuple[int, int]]:
    pairs = [zip(step.domains.tolist(), step.indices.tolist(), strict=True) for step in steps]
    return [each for pair in pairs for each in pair]


@given(st.sampled_from(sorted(STREAMS)), st.integers(1, 30), st.integers(0, 9), st.integers(1, 3))
def test_every_sample_comes_once_and_a_seed_gives_one_order(
    name: str, batch_size: int, seed: int, least: int
) -> None:
    steps = _make(name, batch_size, seed, least)
    whole = {(domain, index) for domain, size in enumerate(SIZES) for index in range(size)}
    assert Counter(_all(steps)) == Counter(whole)
    assert _all(steps) == _all(_make(name, batch_size, seed, least))
    assert steps[0].reset
    assert all(len(step) < batch_size + least for step in steps)


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_another_seed_is_another_order(name: str) -> None:
    assert _all(_make(name)) != _all(_make(name, seed=1))


@pytest.mark.parametrize(
    ("name", "resets"), [("one-shift", 3), ("sorted", 3), ("continual", 1), ("mixed", 1)]
)
def test_resets_are_where_promised(name: str, resets: int) -> None:
    steps = _make(name)
    assert sum(step.reset for step in steps) == resets
    if resets == 3:
        domains = [int(step.domains[0]) for step in steps]
        first = [domains.index(domain) for domain in range(3)]
        assert [number for number, step in enumerate(steps) if step.reset] == first


@pytest.mark.parametrize("name", ["one-shift", "continual", "sorted"])
def test_domains_come_one_after_another(name: str) -> None:
    steps = _make(name)
    assert all(len(step.domains.unique()) == 1 for step in steps)
    order = [domain for domain, _ in _all(steps)]
    assert order == sorted(order)


def test_one_shift_and_continual_differ_in_the_resets_alone() -> None:
    assert _all(_make("one-shift")) == _all(_make("continual"))


def test_mixed_batches_hold_several_domains() -> None:
    assert len(_make("mixed", 12)[0].domains.unique()) > 1


def test_sorted_is_class_by_class_and_shuffled_within() -> None:
    for domain in range(3):
        order = [index for each, index in _all(_make("sorted")) if each == domain]
        labels = LABELS[domain][order].tolist()
        assert labels == sorted(labels)
        if domain == 1:  # of 12 samples
            assert order != sorted(order, key=lambda index: (int(LABELS[domain][index]), index))


def test_a_small_last_batch_joins_the_one_before() -> None:
    sizes = [len(step) for step in _make("one-shift", 3, least=2)]
    assert sizes == [3, 4, 3, 3, 3, 3, 3, 2]
    assert [len(step) for step in create_stream("mixed", [9], 4, least=2)] == [4, 5]
    assert [len(step) for step in create_stream("mixed", [1], 4, least=2)] == [1]


def test_parts_put_a_batch_together() -> None:
    for step in _make("mixed"):
        found = torch.full((len(step), 2), -1)
        for domain, places, indices in step.parts():
            found[places] = torch.stack([torch.full_like(indices, domain), indices], 1)
        assert found.tolist() == torch.stack([step.domains, step.indices], 1).tolist()


def test_a_domains_order_stays_when_others_are_added() -> None:
    alone = _all(create_stream("one-shift", SIZES[:1], 4, seed=3))
    assert _all(create_stream("one-shift", SIZES, 4, seed=3))[:7] == alone


@pytest.mark.parametrize(
    ("name", "sizes", "batch_size", "words"),
    [
        ("one-shfit", [3], 2, "did you mean 'one-shift'"),
        ("mixed", [], 2, "needs a domain"),
        ("mixed", [3, 0], 2, "domain 1 has no samples"),
        ("continual", [3], 0, "batch size 0"),
        ("sorted", [3], 2, "needs a label of every sample"),
    ],
)
def test_what_cannot_be_made_is_said(
    name: str, sizes: list[int], batch_size: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        create_stream(name, sizes, batch_size)


def test_labels_of_another_length() -> None:
    with pytest.raises(InputError, match="needs a label of every sample"):
        create_stream("sorted", [3], 2, labels=[torch.zeros(2)])
