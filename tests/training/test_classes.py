"""One list of classes for all domains, by name, and a classifier of that many outputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import normapps.models  # noqa: F401  (guard)
from normapps.data.pool import Pool
from normapps.errors import InputError
from normapps.models.load import open_model
from normapps.training.classes import match_classes, outputs_of, split, with_classes


def pool(labels: list[int] | None, classes: tuple[str, ...] = ()) -> Pool:
    """A picture a label, whose first pixel is its number."""
    count = 4 if labels is None else len(labels)
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return Pool(images, None if labels is None else torch.tensor(labels), classes)


def test_classes_are_numbered_by_name_over_all_sources() -> None:
    one, two = pool([0, 1, 1], ("cat", "dog")), pool([0, 1], ("ant", "dog"))
    other = pool([0, 1, 2], ("dog", "emu", "cat"))
    found = match_classes({"a": one, "b": two}, [("c", other), ("d", pool(None))])
    assert found.classes == ("ant", "cat", "dog")
    assert [each.labels.tolist() for each in found.sources if each.labels is not None] == [
        [1, 2, 2],
        [0, 2],
    ]
    kept, bare = found.others
    assert kept.labels is not None
    assert kept.labels.tolist() == [2, 1]
    assert kept.images[:, 0, 0, 0].tolist() == [0, 2]
    assert bare.labels is None
    assert found.said == ("c: left out 1 of 3 pictures, of classes that no source has (emu)",)


def test_numbers_are_ordered_as_numbers_and_empty_classes_do_not_count() -> None:
    names = tuple(str(i) for i in range(12))
    found = match_classes([("a", pool([2, 10, 11], names))], [])
    assert found.classes == ("2", "10", "11")
    unnamed = match_classes([("a", pool([0, 2]))], [("b", pool([2, 2]))])
    assert unnamed.classes == ("0", "2")
    assert unnamed.others[0].labels is not None
    assert unnamed.others[0].labels.tolist() == [1, 1]


def test_pools_that_fit_are_not_copied() -> None:
    one = pool([0, 1], ("a", "b"))
    found = match_classes([("x", one)], [("y", one)])
    assert found.sources[0] is one
    assert found.others[0] is one


def test_what_cannot_be_matched_is_refused() -> None:
    good = pool([0, 1], ("a", "b"))
    with pytest.raises(InputError, match="x: has no labels"):
        match_classes([("x", pool(None))], [])
    with pytest.raises(InputError, match="x: has one class"):
        match_classes([("x", pool([0, 0], ("a",)))], [])
    with pytest.raises(InputError, match=r"y: its classes \(q\) are none of the sources' \(a, b\)"):
        match_classes([("x", good)], [("y", pool([0], ("q",)))])


def test_a_class_of_one_picture_is_trained_on() -> None:
    rest, held = split(pool([0, 0, 0, 0, 1, 2, 2, 2, 2, 2], ("a", "b", "c")), 5)
    assert rest.labels is not None
    assert held.labels is not None
    assert sorted(rest.labels.tolist()) == [0, 0, 0, 0, 1, 2, 2, 2, 2]
    assert held.labels.tolist() == [2]


def test_every_nth_picture_is_held_out_of_each_class() -> None:
    whole = pool([0, 1] * 10, ("a", "b"))
    rest, held = split(whole, 5)
    assert held.labels is not None
    assert held.labels.tolist().count(0) == held.labels.tolist().count(1) == 2
    numbers = [*rest.images[:, 0, 0, 0].tolist(), *held.images[:, 0, 0, 0].tolist()]
    assert sorted(numbers) == list(range(20))
    assert split(whole, 0) == (whole, whole)
    bare = pool(None)
    assert split(bare, 5) == (bare, bare)
    with pytest.raises(InputError, match="--hold-out 30: leaves no picture of 20"):
        split(whole, 30)
    with pytest.raises(InputError, match="--hold-out 1: leaves no picture"):
        split(whole, 1)


@pytest.mark.parametrize("name", ["test_resnet", "normapps.models.small:small_cnn"])
def test_another_classifier_keeps_everything_else(name: str) -> None:
    opened = open_model(name, seed=3)
    other, fresh = with_classes(opened, 7, seed=0)
    assert outputs_of(other) == 7
    own, state = opened.model.state_dict(), other.model.state_dict()
    assert len(fresh) == 2
    assert all(torch.equal(own[key], state[key]) for key in state if key not in fresh)
    assert other.source["arguments"]["num_classes"] == 7
    again, none = with_classes(other, 7, seed=0)
    assert again is other
    assert none == ()


def test_the_seed_makes_the_new_classifier() -> None:
    opened = open_model("normapps.models.small:small_cnn")
    made = [with_classes(opened, 3, seed)[0].model.state_dict() for seed in (0, 0, 1)]
    key = "classifier.weight"
    assert torch.equal(made[0][key], made[1][key])
    assert not torch.equal(made[0][key], made[2][key])


def test_a_network_that_takes_no_number_of_classes_is_refused() -> None:
    opened = open_model("normapps.models.small:small_cnn")
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    source = {"builder": "factory", "arguments": {"factory": "torch.nn:Flatten"}}
    fixed = replace(opened, model=model, source=source)
    with pytest.raises(InputError, match="its classifier cannot be given 5 classes"):
        with_classes(fixed, 5, 0)
