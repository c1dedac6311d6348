from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normapps.adapt.online.memory import Kept, Memory
from normapps.errors import InputError


def _offer(memory: Memory, number: int, label: int, uncertainty: float = 0.0) -> bool:
    return memory.add(torch.tensor([float(number)]), label, uncertainty)


def _kept(memory: Memory) -> list[tuple[int, int, int]]:
    return [(int(each.sample), each.label, each.age) for each in memory.kept]


def test_below_capacity_all_classes_come_in_and_grow_older() -> None:
    memory = Memory(4, 2)
    assert _offer(memory, 0, 0)
    assert _offer(memory, 1, 1)
    assert _kept(memory) == [(0, 0, 2), (1, 1, 1)]
    assert memory.samples().tolist() == [[0.0], [1.0]]
    assert memory.ages().tolist() == [0.5, 0.25]


def test_a_class_with_its_share_replaces_its_own_worst() -> None:
    memory = Memory(4, 2)
    for number, unsure in enumerate((0.1, 0.6)):
        _offer(memory, number, 0, unsure)
    assert _offer(memory, 2, 0, 0.3)  # replaces the unsure one, not the older one
    assert [number for number, _, _ in _kept(memory)] == [0, 2]
    assert not _offer(memory, 3, 0, 0.69)  # worse than both
    assert _kept(memory) == [(0, 0, 4), (2, 0, 2)]  # they grew older all the same


def test_where_all_is_equal_the_oldest_goes() -> None:
    memory = Memory(4, 2)
    for number in range(3):
        _offer(memory, number, 0)
    assert [number for number, _, _ in _kept(memory)] == [1, 2]


def test_a_full_memory_gives_a_rare_class_the_place_of_a_frequent_one() -> None:
    memory = Memory(3, 2)  # 1.5 places a class: the second comes in, the third does not
    for number in range(2):
        _offer(memory, number, 0)
    _offer(memory, 2, 1)
    assert _offer(memory, 3, 1)
    assert sorted(label for _, label, _ in _kept(memory)) == [0, 1, 1]
    assert 0 not in [number for number, _, _ in _kept(memory)]


def test_only_the_most_frequent_class_gives_its_place() -> None:
    memory = Memory(4, 3)
    for number, (label, unsure) in enumerate([(0, 0.0), (0, 0.0), (1, 0.0), (2, 1.0)]):
        _offer(memory, number, label, unsure)
    assert _offer(memory, 4, 1)  # the sample of class 2 is the worst, and stays
    assert [number for number, _, _ in _kept(memory)] == [1, 2, 3, 4]


def test_the_score_is_the_papers() -> None:
    memory = Memory(8, 5, age_weight=2.0, uncertainty_weight=3.0)
    item = Kept(torch.zeros(1), 0, 0.7, age=4)
    expected = 2 / (1 + math.exp(-4 / 8)) + 3 * 0.7 / math.log(5)
    assert memory.score(item) == pytest.approx(expected, abs=1e-12)


Offers = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1.38)), max_size=60)


@given(Offers, st.integers(2, 12))
def test_never_more_than_the_capacity_nor_than_the_share(
    offers: list[tuple[int, float]], capacity: int
) -> None:
    memory = Memory(capacity, 4)
    for number, (label, unsure) in enumerate(offers):
        before, taken = len(memory), _offer(memory, number, label, unsure)
        assert len(memory) - before in ((0, 1) if taken else (0,))
        counts = [sum(each.label == label for each in memory.kept) for label in range(4)]
        assert sum(counts) == len(memory) <= capacity
        assert max(counts) <= math.ceil(capacity / 4)


def test_state_brings_everything_back_in_copies() -> None:
    memory = Memory(4, 3)
    for number in range(4):
        _offer(memory, number, number % 3, 0.1 * number)
    other = Memory(4, 3)
    other.load(memory.state())
    assert _kept(other) == _kept(memory)
    _offer(other, 9, 0)
    assert 9 not in [number for number, _, _ in _kept(memory)]


def test_a_sample_is_kept_in_a_copy() -> None:
    memory, batch = Memory(4, 2), torch.zeros(2, 3)
    memory.add(batch[0], 0, 0.0)
    batch.fill_(7)
    assert memory.samples().tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("capacity", "classes"), [(0, 2), (4, 1)])
def test_numbers_out_of_range(capacity: int, classes: int) -> None:
    with pytest.raises(InputError, match=r"at least 1|2 or more"):
        Memory(capacity, classes)
